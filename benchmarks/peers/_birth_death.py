r"""Sample catalogs of an image: a Markov chain in which sources move, appear, vanish, split and merge.

The number of sources is unknown, as in probabilistic cataloging (Brewer et al. 2013, doi:10.1088/0004-6256/146/1/7;
Portillo et al. 2017, doi:10.3847/1538-3881/aa8565); the moves are reversible jumps (Green 1995,
doi:10.1093/biomet/82.4.711). Sources are stars and round exponential galaxies, the noise is white and known, and prior
and likelihood are those of the scenes that `Prior` draws: the chain is the exact answer to which others are compared.

A catalog is a list in random order with the density :math:`p(N) \prod_i p(\theta_i)`, where :math:`\theta` is x, y, ln
flux and, of galaxies, ln radius. A new source is put at a random place of the list and a random one vanishes, so that
the factors 1 / (N + 1) of both cancel. A proposal returns what else the acceptance ratio has beside posterior
densities: the density of the way back over that of the way forth, times the Jacobian.

- *walk*: flux and position of a source change by normal steps.
- *reshape*: a star becomes a galaxy, a galaxy a star or another size, while the light in its core stays.
- *birth*, *death*: a source appears where the matched filter of the residuals is high, or anywhere; one vanishes.
- *split*, *merge*: a source divides its flux between two about its center of light; a source takes up another nearby.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from benchmarks.peers._templates import Source, Templates

__all__ = ["Prior", "State", "Target", "advance", "sample_catalogs"]

FOCUS = 0.7  # of births follow the residuals, the others come anywhere
WEIGHT = 0.25  # of the squared signal-to-noise ratio in ln of the density of births
SETTLING = (0.01, 0.03, 0.1, 0.3, 1.0, 1.0, 1.0, 1.0)  # powers of the likelihood
BRIGHTEST = 50.0  # squared signal-to-noise ratio beyond which births are no more likely


@dataclass(frozen=True)
class Prior:
    """What sources a stamp has.

    Parameters
    ----------
    number
        Probabilities of 0, 1, 2, ... sources.
    flux
        Least and largest flux, log-uniform between.
    side
        Pixels on a side of the stamp; sources lie anywhere in it.
    galaxy_fraction
        Fraction of the sources that are galaxies.
    radius
        Least and largest half-light radius of galaxies in pixels, log-uniform between.
    """

    number: tuple[float, ...]
    flux: tuple[float, float]
    side: int
    galaxy_fraction: float = 0.0
    radius: tuple[float, float] = (0.5, 3.0)

    @cached_property
    def ln_number(self) -> NDArray[np.float64]:
        """The ln of the probability of each number of sources, and of one more than the largest."""
        with np.errstate(divide="ignore"):
            return np.log([*self.number, 0.0])

    @cached_property
    def ln_kind(self) -> tuple[float, float]:
        """The ln of the probability of a star, and of the density of a galaxy in ln radius."""
        star, galaxy = 1 - self.galaxy_fraction, self.galaxy_fraction / math.log(self.radius[1] / self.radius[0])
        return tuple(math.log(value) if value else -math.inf for value in (star, galaxy))

    @cached_property
    def ln_flux(self) -> float:
        """The ln of the density in ln flux."""
        return -math.log(math.log(self.flux[1] / self.flux[0]))

    def ln_density(self, source: Source) -> float:
        """Return ln of the density of a source; minus infinity where there is none."""
        x, y, flux, radius = source
        inside = min(x, y) >= -0.5 and max(x, y) < self.side - 0.5 and self.flux[0] <= flux <= self.flux[1]
        if not inside or (radius and not self.radius[0] <= radius <= self.radius[1]):
            return -math.inf
        return self.ln_flux - 2 * math.log(self.side) + self.ln_kind[radius > 0]

    def kind(self, rng: np.random.Generator) -> float:
        """Draw a half-light radius, 0 for a star."""
        return math.exp(rng.uniform(*np.log(self.radius))) if rng.random() < self.galaxy_fraction else 0.0

    def sample(self, rng: np.random.Generator) -> list[Source]:
        """Draw a catalog."""
        number = rng.choice(len(self.number), p=self.number)
        place = rng.uniform(-0.5, self.side - 0.5, (number, 2)).tolist()
        return [(x, y, math.exp(rng.uniform(*np.log(self.flux))), self.kind(rng)) for x, y in place]


class State(NamedTuple):
    """A catalog, and the image minus its light ``(y, x)``."""

    sources: list[Source]
    residual: NDArray[np.float64]


class Proposal(NamedTuple):
    """A change of the catalog: which sources go, what comes, and ln of the ratio of proposals times the Jacobian."""

    gone: tuple[int, ...]
    new: tuple[Source, ...]
    ln_ratio: float


@dataclass(frozen=True, eq=False)
class Target:
    """The posterior of the catalogs of an image.

    Parameters
    ----------
    templates
        Images of the sources.
    prior
        What sources there are.
    sky_rms
        Noise of a pixel.
    power
        Of the likelihood; 0 for the prior alone.
    """

    templates: Templates
    prior: Prior
    sky_rms: float
    power: float = 1.0

    @cached_property
    def flux_error(self) -> float:
        """Error of the flux of an isolated star."""
        return self.sky_rms / math.sqrt(float((self.templates.star**2).sum()))

    @cached_property
    def blur(self) -> float:
        """Error of the position of an isolated star in pixels, times its signal-to-noise ratio."""
        slope = np.gradient(self.templates.star, axis=1)
        return math.sqrt(float((self.templates.star**2).sum() / (slope**2).sum()))

    @cached_property
    def _filter(self) -> tuple[int, NDArray[np.complex128]]:
        length = fft.next_fast_len(self.prior.side + self.templates.side, real=True)
        return length, fft.rfft2(self.templates.star[::-1, ::-1].astype(float), (length, length))

    def start(self, image: NDArray, sources: Sequence[Source] = ()) -> State:
        """Begin a chain with a catalog."""
        return State([*sources], image - self.templates.image(sources, self.prior.side))

    def births(self, residual: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the flux of the star that fits best at each pixel, and the probability of a birth there."""
        length, kernel = self._filter
        half = slice(self.templates.side // 2, self.templates.side // 2 + self.prior.side)
        summed = fft.irfft2(fft.rfft2(residual, (length, length)) * kernel, (length, length))[half, half]
        flux = summed * (self.flux_error / self.sky_rms) ** 2
        weight = np.exp(WEIGHT * np.clip(flux / self.flux_error, 0, math.sqrt(BRIGHTEST)) ** 2)
        return flux, FOCUS * weight / weight.sum() + (1 - FOCUS) / weight.size

    def ln_birth(self, source: Source, births: tuple[NDArray, NDArray]) -> float:
        """Return ln of the density at which a source is born."""
        x, y, flux, radius = source
        best, probability = (float(values[round(y), round(x)]) for values in births)
        core = flux / math.exp(self.templates.ln_scale(radius))
        fit = math.log(core / self.flux_error) - 0.5 * ((core - best) / self.flux_error) ** 2
        ln_flux = np.logaddexp(self.prior.ln_flux, fit - 0.5 * math.log(2 * math.pi)) - math.log(2)
        return math.log(probability) + float(ln_flux) + self.prior.ln_kind[radius > 0]

    @property
    def reach(self) -> float:
        """Width in pixels of the separations of sources that split."""
        return 1.2 * self.blur


def walk(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose another flux and position; the steps in position fit the brighter of both fluxes."""
    if not state.sources:
        return None
    index = int(rng.integers(len(state.sources)))
    x, y, flux, radius = state.sources[index]
    size, *step = rng.normal(size=4).tolist()
    error = math.exp(0.7 * size) * target.flux_error * math.exp(target.templates.ln_scale(radius))
    moved = flux + error * step[0]
    if moved <= 0:
        return None
    error *= target.blur / max(flux, moved)
    return Proposal((index,), ((x + error * step[1], y + error * step[2], moved, radius),), math.log(flux / moved))


def reshape(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose another kind or size; the flux in the core stays."""
    if not state.sources or not target.prior.galaxy_fraction:
        return None
    index = int(rng.integers(len(state.sources)))
    x, y, flux, radius = state.sources[index]
    low, high = target.prior.radius
    ln_uniform = -math.log(math.log(high / low))
    if not radius:  # half of the moves of galaxies lead back
        other, ln_ratio = math.exp(rng.uniform(math.log(low), math.log(high))), -math.log(2) - ln_uniform
    elif rng.random() < 0.5:
        other, ln_ratio = 0.0, math.log(2) + ln_uniform
    else:
        other, ln_ratio = radius * math.exp(0.3 * rng.normal()), 0.0
        if not low <= other <= high:
            return None
    scale = math.exp(target.templates.ln_scale(other) - target.templates.ln_scale(radius))
    return Proposal((index,), ((x, y, flux * scale, other),), ln_ratio)


def birth(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose a new source."""
    births = target.births(state.residual)
    pixel = int(np.searchsorted(births[1].ravel().cumsum(), rng.random()).clip(max=births[1].size - 1))
    y, x = divmod(pixel, target.prior.side)
    radius = target.prior.kind(rng)
    if rng.random() < 0.5:
        flux = math.exp(rng.uniform(*np.log(target.prior.flux)))
    else:
        flux = births[0][y, x] + target.flux_error * rng.normal()
        flux *= math.exp(target.templates.ln_scale(radius))
    x, y = np.add([x, y], rng.uniform(-0.5, 0.5, 2)).tolist()
    source = (x, y, float(flux), radius)
    if target.prior.ln_density(source) == -math.inf:
        return None
    return Proposal((), (source,), -target.ln_birth(source, births))


def death(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose to leave a source out."""
    if not state.sources:
        return None
    index = int(rng.integers(len(state.sources)))
    source = state.sources[index]
    births = target.births(state.residual + target.templates.image([source], target.prior.side))
    return Proposal((index,), (), target.ln_birth(source, births))


def split(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose two sources instead of one: one of its kind and another."""
    if not state.sources:
        return None
    index = int(rng.integers(len(state.sources)))
    x, y, flux, radius = state.sources[index]
    share, (dx, dy) = rng.random(), (target.reach * rng.normal(size=2)).tolist()
    first = (x + (1 - share) * dx, y + (1 - share) * dy, share * flux, radius)
    second = (x - share * dx, y - share * dy, (1 - share) * flux, target.prior.kind(rng))
    after = [*state.sources[:index], *state.sources[index + 1 :], second]
    return Proposal((index,), (first, second), _ln_split(first, second, after, target))


def merge(state: State, target: Target, rng: np.random.Generator) -> Proposal | None:
    """Propose that a source takes up the light of another, the nearer the more probable."""
    if len(state.sources) < 2:
        return None
    index = int(rng.integers(len(state.sources)))
    first = state.sources[index]
    others = [*state.sources[:index], *state.sources[index + 1 :]]
    chosen = int(rng.choice(len(others), p=np.exp(_ln_near(first, others, target))))
    second = others[chosen]
    share = first[2] / (first[2] + second[2])
    x, y = (share * first[axis] + (1 - share) * second[axis] for axis in (0, 1))
    ordered = [*others[:chosen], *others[chosen + 1 :], second]
    ln_ratio = -_ln_split(first, second, ordered, target)
    return Proposal((index, chosen + (chosen >= index)), ((x, y, first[2] + second[2], first[3]),), ln_ratio)


def _ln_near(source: Source, others: Sequence[Source], target: Target) -> NDArray[np.float64]:
    """Return ln of the probability of each other source to be taken up by a source."""
    place = np.array(others)[:, :2] - source[:2]
    value = -0.5 * (place**2).sum(1) / target.reach**2
    value -= value.max()
    return value - math.log(np.exp(value).sum())


def _ln_split(first: Source, second: Source, others: Sequence[Source], target: Target) -> float:
    """Return ln of the ratio of a split, where `others` are all sources beside the first, with the second at the end.

    Back leads the choice of the first source of N + 1 and of its neighbor, forth the choice of one of N, the separation
    and the other's kind; the Jacobian in ln flux is 1 / (share (1 - share)).
    """
    share = first[2] / (first[2] + second[2])
    squared = (first[0] - second[0]) ** 2 + (first[1] - second[1]) ** 2
    ln_separation = -0.5 * squared / target.reach**2 - math.log(2 * math.pi * target.reach**2)
    back = math.log(len(others)) + float(_ln_near(first, others, target)[-1])
    return back - ln_separation - target.prior.ln_kind[second[3] > 0] - math.log(share * (1 - share))


Move = Callable[[State, Target, np.random.Generator], Proposal | None]
MOVES: dict[Move, float] = {walk: 0.6, reshape: 0.1, birth: 0.1, death: 0.1, split: 0.05, merge: 0.05}
"""Moves with their probabilities; opposite ones are as frequent as each other."""


def advance(state: State, target: Target, moves: int, rng: np.random.Generator) -> State:
    """Return the state of the chain after a number of proposals."""
    chosen = rng.choice(len(MOVES), moves, p=[*MOVES.values()])
    todo, prior, templates = [*MOVES], target.prior, target.templates
    for kind, chance in zip(chosen.tolist(), rng.exponential(size=moves).tolist(), strict=True):
        proposal = todo[kind](state, target, rng)
        if proposal is None:
            continue
        gone = [state.sources[index] for index in proposal.gone]
        before, after = len(state.sources), len(state.sources) - len(gone) + len(proposal.new)
        ln_ratio = proposal.ln_ratio + float(prior.ln_number[after] - prior.ln_number[before])
        ln_ratio += sum(map(prior.ln_density, proposal.new)) - sum(map(prior.ln_density, gone))
        if ln_ratio == -math.inf:
            continue
        light = templates.image(proposal.new, prior.side, without=gone)
        gain = float(np.vdot(light, state.residual - 0.5 * light)) / target.sky_rms**2
        if ln_ratio + target.power * gain > -chance:
            kept = [source for index, source in enumerate(state.sources) if index not in proposal.gone]
            state = State([*kept, *proposal.new], state.residual - light)
    return state


def sample_catalogs(
    image: NDArray, target: Target, *, moves: int, samples: int, rng: np.random.Generator
) -> dict[str, NDArray]:
    """Sample catalogs of an image ``(y, x)``, after as many moves for the chain to settle, from no source at all.

    Meanwhile the power of the likelihood rises, so that a galaxy is not held for many stars forever. Returns ``sample,
    x, y, flux, radius``, one value per source of each sample.
    """
    state, found = target.start(image), []
    for power in SETTLING:
        state = advance(state, replace(target, power=power), moves // len(SETTLING), rng)
    for number in range(samples):
        state = advance(state, target, moves // samples, rng)
        found += [(number, *source) for source in state.sources]
    columns = np.reshape(found, (-1, 5)).T
    return {"sample": columns[0].astype(int)} | dict(zip(("x", "y", "flux", "radius"), columns[1:], strict=True))
