"""Modes and curvature of the posterior of a blend under the generative model.

Damped Gauss-Newton steps (Levenberg 1944, doi:10.1090/qam/10666) from a guess of all unknowns, with the images'
derivatives by central differences and the population's moments as a normal prior.

The damping is Nielsen's (1999, IMM-REP-1999-05, Technical University of Denmark): less where a step keeps what it
promised, the more the oftener it does not.

How the light of galaxies that are close to each other is to be divided the image may not say: which of them is the
compact one, and sometimes nothing but the sum. The posterior then has modes that one climb does not find, or is a long
bent valley that no single normal distribution fills: `Modes` climbs from both sides, and once in each section of the
valley.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .latents import LATENTS
from .likelihood import NoisyImage, expected_periodogram, whitened
from .model import KNOWN, NUISANCES, POSITION, BlendModel, Observed, in_all_orders

__all__ = ["Modes", "find_mode", "linearized", "prior_moments", "sensitivity"]

# Steps of central differences: of each latent but the flux, and of the PSF's width.
STEPS = {"x": 0.02, "y": 0.02, "log_radius": 0.01, "index": 0.03, "stretch_plus": 0.02, "stretch_cross": 0.02}
GROWTH_STEP = 0.005
# Farthest that one step goes, by latent and nuisance.
REACH = {"log_flux": 0.7, "x": 2.0, "y": 2.0, "log_radius": 0.5, "index": 1.0} | dict.fromkeys(LATENTS[5:], 0.4)
NUISANCE_REACH = (0.2, 0.05)
DAMPING, MORE = 1e-2, 2.0
PRIOR_DRAWS = 4096
CONVERGED = 0.02  # in ln of the posterior, that an undamped step promises
NEAR = 1.5  # FWHM of the PSF, closer than which galaxies' light may be divided in several ways
SAME = 1.0  # squared distance of two modes that are one, in units of their width
RATIOS, HOLD = (-1.8, -0.9, 0.0, 0.9, 1.8), 0.6  # ln of the flux ratios that climbs are held near, and how near
LEAST_SHARE = 0.01  # of a mode, to be drawn from


def prior_moments(model: BlendModel, observed: Observed, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return mean and precision of the unknowns under the prior.

    Parameters
    ----------
    model
        The model.
    observed
        How the images were taken.
    seed
        Seed of the draws that they are measured on.

    Returns
    -------
    mean, precision
        ``(blend, number)`` and ``(number, number)``: those of a normal distribution of the same moments.
    """
    mean, precision = _moments_at_unit_noise(model, seed)
    mean = mean.expand(len(observed.sky_rms), -1).clone()
    for galaxy in range(model.galaxies):
        mean[:, galaxy * len(LATENTS)] -= observed.sky_rms.double().log()
    return mean, precision


@lru_cache(maxsize=8)
def _moments_at_unit_noise(model: BlendModel, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean ``(number,)`` and precision; once for each model, as that takes a second."""
    drawn = model.draw_unknown(PRIOR_DRAWS, sky_rms=torch.ones(PRIOR_DRAWS), seed=seed).double()
    fixed = torch.tensor([model.sky_level, model.psf_growth]) == 0
    covariance = torch.cov(drawn.T)
    covariance[-2:, -2:] += torch.diag(torch.where(fixed, KNOWN**2, 0.0))
    return drawn.mean(0), torch.linalg.inv(covariance)


def sensitivity(model: BlendModel, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected light, and its derivatives with respect to all unknowns.

    Parameters
    ----------
    model
        The model.
    unknown
        ``(blend, number)``.

    Returns
    -------
    light, derivatives
        ``(blend, galaxy, y, x)`` and ``(blend, number, y, x)``, over the sky noise: by central differences, but for
        fluxes and the sky level.
    """
    latents, _, growth = model.split(unknown)
    light = model.light(latents, growth)
    columns = {"log_flux": light}
    for name, step in STEPS.items():
        moved = torch.zeros(len(LATENTS)).to(latents)
        moved[LATENTS.index(name)] = step
        columns[name] = (model.light(latents + moved, growth) - model.light(latents - moved, growth)) / (2 * step)
    per_galaxy = torch.stack([columns[name] for name in LATENTS], 2).flatten(1, 2)
    wider, narrower = (model.light(latents, growth + sign * GROWTH_STEP).sum(1) for sign in (1, -1))
    nuisances = torch.stack([torch.ones_like(wider), (wider - narrower) / (2 * GROWTH_STEP)], 1)
    return light, torch.cat([per_galaxy, nuisances], 1)


def linearized(model: BlendModel, observed: Observed, unknown: Tensor) -> tuple[NoisyImage, Tensor, Tensor]:
    """Return the distribution of images, and what they tell of their unknowns: the model as if it were linear there.

    Parameters
    ----------
    model
        The model.
    observed
        How the images were taken; the pixels are not used.
    unknown
        ``(blend, number)``.

    Returns
    -------
    noisy, power, rows
        The distribution; the expected periodogram of its noise; whitened derivatives ``(blend, number, value)``, whose
        products are the Fisher information. What the noise's own size tells of the light is left out.
    """
    light, derivatives = sensitivity(model, unknown.float())
    noisy = model.noisy(light.sum(1), unknown[:, -2].float(), observed)
    power = expected_periodogram(model.instrument.noise_kernel, model.size)
    return noisy, power, whitened(derivatives / noisy.standard_deviation[:, None], power).flatten(2)


def find_mode(
    model: BlendModel, observed: Observed, start: Tensor, *, steps: int, prior: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb to a mode of the posterior, the prior taken as normal.

    Parameters
    ----------
    model, observed
        The model and its images.
    start
        ``(blend, number)``.
    steps
        Most damped Gauss-Newton steps; a blend has no more once another one promises little.
    prior
        Mean ``(blend, number)`` and precision ``(blend, number, number)`` of the normal prior; those of `prior_moments`
        if None.

    Returns
    -------
    mode, precision, log_density
        ``(blend, number)``; ``(blend, number, number)``, the curvature there; and ``(blend,)``, natural logarithm of
        the posterior up to a constant of the blend.
    """
    mean, prior_precision = prior_moments(model, observed) if prior is None else prior
    prior_precision = prior_precision.expand(len(start), -1, -1)
    reach = torch.tensor([*[REACH[name] for name in LATENTS] * model.galaxies, *NUISANCE_REACH]).double()
    place = start.double().clone()
    damping, worse = torch.full((len(place),), DAMPING).double(), torch.full((len(place),), MORE).double()
    information, gradient, value = _normal_equations(model, observed, place, mean=mean, precision=prior_precision)
    active = torch.arange(len(place))
    for _ in range(steps):
        curvature = information[active]
        scale = curvature.diagonal(dim1=-2, dim2=-1)
        step = torch.linalg.solve(curvature + torch.diag_embed(damping[active, None] * scale), gradient[active])
        step = step * (reach / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
        ahead, some = place[active] + step, Observed(*(array[active] for array in observed))
        found = _normal_equations(model, some, ahead, mean=mean[active], precision=prior_precision[active])
        gain = found[2] - value[active]
        expected = (step * (gradient[active] - (curvature @ step[..., None])[..., 0] / 2)).sum(-1)
        better, taken = gain > 0, active[gain > 0]
        place[taken], information[taken] = ahead[better], found[0][better]
        gradient[taken], value[taken] = found[1][better], found[2][better]
        kept = (1 - (2 * gain / expected.clamp(min=1e-12) - 1) ** 3).clamp(min=1 / 3)
        damping[active] *= torch.where(better, kept, worse[active])
        worse[active] = torch.where(better, MORE, MORE * worse[active])
        undamped = torch.linalg.solve(information[active], gradient[active])
        active = active[(undamped * gradient[active]).sum(-1) / 2 > CONVERGED]
        if not len(active):
            break
    return place, information, value


def _normal_equations(
    model: BlendModel, observed: Observed, unknown: Tensor, *, mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the information, the gradient and the logarithm of the posterior with a normal prior."""
    noisy, power, rows = linearized(model, observed, unknown)
    residual = whitened(noisy.residual(observed.image), power).flatten(1)
    information = (rows @ rows.mT).double() + precision
    offset = unknown - mean
    pull = (precision @ offset[..., None])[..., 0]
    gradient = (rows @ residual[..., None])[..., 0].double() - pull
    value = noisy.log_prob(observed.image).double() - (pull * offset).sum(-1) / 2
    return information, gradient, value


class Modes(NamedTuple):
    """Modes of some blends, and sections of valleys.

    Parameters
    ----------
    place
        Unknowns ``(mode, blend, number)``.
    precision
        The curvature there ``(mode, blend, number, number)``; of a section, with what holds it.
    share
        How much to draw about each ``(mode, blend)``: adds up to one, and is zero where a blend has no more modes.
    """

    place: Tensor
    precision: Tensor
    share: Tensor

    @classmethod
    def find(cls, model: BlendModel, observed: Observed, start: Tensor, *, steps: int) -> Modes:
        """Climb from a guess; and on from there in several ways, if the closest two galaxies are near each other.

        They are put in each other's place; and the ln of their flux ratio is held near one value after the other, which
        divides a valley into sections. Climbs that end at the same place, be it with the galaxies in another order,
        count once, and what is far below the highest end does not.

        Parameters
        ----------
        model, observed
            The generative model and its images.
        start
            The guess ``(blend, number)``.
        steps
            Most Gauss-Newton steps of a climb.

        Returns
        -------
        Modes
            The heaviest first; one for most blends.
        """
        place, precision, value = find_mode(model, observed, start, steps=steps)
        pair, distance = _closest(model, place)
        near = (distance < NEAR * model.instrument.fwhm).nonzero()[:, 0]
        if not len(near):
            return cls(place[None], precision[None], torch.ones_like(value)[None])
        some, first = Observed(*(array[near] for array in observed)), (place[near], precision[near], value[near])
        ends = [first, find_mode(model, some, _exchanged(model, place[near], pair[near]), steps=steps)]
        ends += [_held(model, some, place[near], pair=pair[near], ratio=ratio, steps=steps) for ratio in RATIOS]
        several = _distinct(*(torch.stack(array) for array in zip(*ends, strict=True)))
        share = torch.zeros(len(ends), len(place)).double()
        share[0] = 1.0
        modes = cls(*(array.expand(len(ends), *array.shape).clone() for array in (place, precision)), share)
        for array, values in zip(modes, several, strict=True):
            array[:, near] = values
        return modes

    def alike(self) -> list[NDArray[np.int64]]:
        """Divide blends into those with one mode, with two, and so on.

        Returns
        -------
        list of NDArray
            Numbers of the blends of each kind that there is.
        """
        modes = (self.share > 0).sum(0).numpy()
        return [np.flatnonzero(modes == number) for number in np.unique(modes)]

    def select(self, blends: NDArray[np.int64]) -> Modes:
        """Take some blends, without modes that none of them has.

        Parameters
        ----------
        blends
            Their numbers.

        Returns
        -------
        Modes
            Of these alone.
        """
        kept = (self.share[:, blends] > 0).any(1)
        return Modes(*(value[kept][:, blends] for value in self))


def _closest(model: BlendModel, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return which two galaxies are closest ``(blend, 2)``, and how far apart they are in pixels."""
    galaxies = place[:, : -len(NUISANCES)].unflatten(-1, (model.galaxies, len(LATENTS)))
    distance = torch.cdist(galaxies[..., POSITION], galaxies[..., POSITION])
    distance = distance + torch.diag_embed(torch.full_like(galaxies[..., 0], math.inf))
    least, pair = distance.flatten(1).min(-1)
    return torch.stack([pair // model.galaxies, pair % model.galaxies], -1), least


def _exchanged(model: BlendModel, place: Tensor, pair: Tensor) -> Tensor:
    """Put two galaxies in each other's place."""
    moved, blends = place.clone(), torch.arange(len(place))
    for one, other in (pair.T, pair.T.flip(0)):
        for position in POSITION:
            moved[blends, one * len(LATENTS) + position] = place[blends, other * len(LATENTS) + position]
    return moved


def _held(
    model: BlendModel, observed: Observed, place: Tensor, *, pair: Tensor, ratio: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb with the ln of two galaxies' flux ratio held near a value; the density is that of the posterior."""
    blends, (one, other) = torch.arange(len(place)), pair.T * len(LATENTS)
    along = torch.zeros_like(place)
    along[blends, one], along[blends, other] = -1.0, 1.0
    log_total = torch.logaddexp(place[blends, one], place[blends, other])
    start = place.clone()
    start[blends, one] = log_total - math.log1p(math.exp(ratio))
    start[blends, other] = start[blends, one] + ratio
    mean, precision = prior_moments(model, observed)
    held = precision + along[..., None] * along[:, None] / HOLD**2
    middle = torch.linalg.solve(held, mean @ precision + along * ratio / HOLD**2)
    end, curvature, value = find_mode(model, observed, start, steps=steps, prior=(middle, held))
    for sign, center, matrix in ((1, middle, held), (-1, mean, precision)):
        offset = end - center
        value = value + sign * (offset * (matrix @ offset[..., None])[..., 0]).sum(-1) / 2
    return end, curvature, value


def _distinct(place: Tensor, precision: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each end of a climb a share, but for those that are low or near a higher one; the largest shares first."""
    value = value.nan_to_num(nan=-math.inf)
    order = value.argsort(dim=0, descending=True)
    place = place.gather(0, order[..., None].expand_as(place))
    precision = precision.gather(0, order[..., None, None].expand_as(precision))
    value = value.gather(0, order)
    orders = in_all_orders(place)
    # The square root: a normal prior knows little of where the true one ends.
    log_share = (value - value[0]) / 2
    log_share = torch.where(log_share > math.log(LEAST_SHARE), log_share, -math.inf)
    log_share[0] = 0.0
    for number in range(1, len(place)):
        offset = orders[:, number, None] - place[:number]
        distance = torch.einsum("okbn,kbnm,okbm->okb", offset, precision[:number], offset).amin(0)
        known = ((distance < SAME) & torch.isfinite(log_share[:number])).any(0)
        log_share[number] = torch.where(known, -math.inf, log_share[number])
    share = log_share.softmax(0)
    order = share.argsort(dim=0, descending=True, stable=True)
    place = place.gather(0, order[..., None].expand_as(place))
    precision = precision.gather(0, order[..., None, None].expand_as(precision))
    return place, precision, share.gather(0, order)
