"""Modes and curvature of the posterior of a blend under the generative model.

Damped Gauss-Newton steps (Levenberg 1944, doi:10.1090/qam/10666) from a guess of all unknowns, with the images'
derivatives by central differences and the population's moments as a normal prior.

The light of galaxies that are close to each other can often be divided in two ways, which of them is the compact one,
and a climb finds the way that it began with: `Modes` climbs twice.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .latents import LATENTS
from .likelihood import NoisyImage, expected_periodogram, whitened
from .model import KNOWN, NUISANCES, POSITION, BlendModel, Observed

__all__ = ["Modes", "find_mode", "linearized", "prior_moments", "sensitivity"]

# Steps of central differences: of each latent but the flux, and of the PSF's width.
STEPS = {"x": 0.02, "y": 0.02, "log_radius": 0.01, "index": 0.03, "stretch_plus": 0.02, "stretch_cross": 0.02}
GROWTH_STEP = 0.005
# Farthest that one step goes, by latent and nuisance.
REACH = {"log_flux": 0.7, "x": 2.0, "y": 2.0, "log_radius": 0.5, "index": 1.0} | dict.fromkeys(LATENTS[5:], 0.4)
NUISANCE_REACH = (0.2, 0.05)
DAMPING, LESS, MORE = 1e-2, 0.2, 5.0
PRIOR_DRAWS = 4096
CONVERGED = 0.02  # gain of a step in ln of the posterior
NEAR = 2.0  # FWHM of the PSF, closer than which galaxies may be in each other's place
SAME = 1.0  # squared distance of two modes that are one, in units of their width
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
    drawn = model.draw_unknown(PRIOR_DRAWS, sky_rms=torch.ones(PRIOR_DRAWS), seed=seed).double()
    fixed = torch.tensor([model.sky_level, model.psf_growth]) == 0
    covariance = torch.cov(drawn.T)
    covariance[-2:, -2:] += torch.diag(torch.where(fixed, KNOWN**2, 0.0))
    mean = drawn.mean(0).expand(len(observed.sky_rms), -1).clone()
    for galaxy in range(model.galaxies):
        mean[:, galaxy * len(LATENTS)] -= observed.sky_rms.double().log()
    return mean, torch.linalg.inv(covariance)


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


def find_mode(model: BlendModel, observed: Observed, start: Tensor, *, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Climb to a mode of the posterior, the prior taken as normal.

    Parameters
    ----------
    model, observed
        The model and its images.
    start
        ``(blend, number)``.
    steps
        Most damped Gauss-Newton steps; a blend has no more once one of them gains little.

    Returns
    -------
    mode, precision, log_density
        ``(blend, number)``; ``(blend, number, number)``, the curvature there; and ``(blend,)``, natural logarithm of
        the posterior up to a constant of the blend.
    """
    mean, prior_precision = prior_moments(model, observed)
    reach = torch.tensor([*[REACH[name] for name in LATENTS] * model.galaxies, *NUISANCE_REACH]).double()
    place = start.double().clone()
    damping = torch.full((len(place), 1), DAMPING).double()
    information, gradient, value = _normal_equations(model, observed, place, mean=mean, precision=prior_precision)
    active = torch.arange(len(place))
    for _ in range(steps):
        curvature = information[active]
        diagonal = torch.diag_embed(damping[active] * curvature.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(curvature + diagonal, gradient[active])
        share = (reach / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
        ahead, some = place[active] + step * share, Observed(*(array[active] for array in observed))
        found = _normal_equations(model, some, ahead, mean=mean[active], precision=prior_precision)
        gain = found[2] - value[active]
        better, taken = gain > 0, active[gain > 0]
        place[taken], information[taken] = ahead[better], found[0][better]
        gradient[taken], value[taken] = found[1][better], found[2][better]
        damping[active] *= torch.where(better, LESS, MORE)[:, None]
        active = active[~better | (gain >= CONVERGED)]
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
    gradient = (rows @ residual[..., None])[..., 0].double() - offset @ precision
    value = noisy.log_prob(observed.image).double() - (offset @ precision * offset).sum(-1) / 2
    return information, gradient, value


class Modes(NamedTuple):
    """Modes of some blends.

    Parameters
    ----------
    place
        Unknowns ``(mode, blend, number)``.
    precision
        The curvature there ``(mode, blend, number, number)``.
    share
        How much to draw about each ``(mode, blend)``: adds up to one, and is zero of what is no mode.
    """

    place: Tensor
    precision: Tensor
    share: Tensor

    @classmethod
    def find(cls, model: BlendModel, observed: Observed, start: Tensor, *, steps: int) -> Modes:
        """Climb from a guess, and once more with the closest two galaxies in each other's place if they are near.

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
            One for each blend, or two.
        """
        place, precision, value = find_mode(model, observed, start, steps=steps)
        exchanged, distance = _exchanged(model, place)
        near = (distance < NEAR * model.instrument.fwhm).nonzero()[:, 0]
        share = torch.stack([torch.ones_like(value), torch.zeros_like(value)])
        if not len(near):
            return cls(place[None], precision[None], share[:1])
        some = Observed(*(array[near] for array in observed))
        other, other_precision, other_value = find_mode(model, some, exchanged[near], steps=steps)
        offset = (other - place[near])[:, None]
        apart = (offset @ precision[near] @ offset.mT)[:, 0, 0] > SAME
        # The square root: a normal prior knows little of where the true one ends.
        second = torch.where(apart, ((other_value - value[near]) / 2).sigmoid(), 0.0)
        second = torch.where(second > LEAST_SHARE, second, 0.0).clamp(max=1 - LEAST_SHARE)
        share[:, near] = torch.stack([1 - second, second])
        places, precisions = torch.stack([place, place]), torch.stack([precision, precision])
        places[1, near], precisions[1, near] = other, other_precision
        return cls(places, precisions, share)

    def alike(self) -> list[NDArray[np.int64]]:
        """Divide blends into those with one mode and those with two.

        Returns
        -------
        list of NDArray
            Numbers of the blends of each kind that there is.
        """
        several = (self.share > 0).sum(0).numpy() > 1
        return [blends for blends in (np.flatnonzero(~several), np.flatnonzero(several)) if len(blends)]

    def select(self, blends: NDArray[np.int64]) -> Modes:
        """Take blends that are alike, without modes that they have not.

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


def _exchanged(model: BlendModel, place: Tensor) -> tuple[Tensor, Tensor]:
    """Put the closest two galaxies in each other's place, and return how far apart they are in pixels."""
    galaxies = place[:, : -len(NUISANCES)].unflatten(-1, (model.galaxies, len(LATENTS)))
    distance = torch.cdist(galaxies[..., POSITION], galaxies[..., POSITION])
    distance = distance + torch.diag_embed(torch.full_like(galaxies[..., 0], math.inf))
    least, pair = distance.flatten(1).min(-1)
    blends, one, other = torch.arange(len(place)), pair // model.galaxies, pair % model.galaxies
    moved = galaxies.clone()
    moved[blends[:, None], one[:, None], POSITION] = galaxies[blends[:, None], other[:, None], POSITION]
    moved[blends[:, None], other[:, None], POSITION] = galaxies[blends[:, None], one[:, None], POSITION]
    return torch.cat([moved.flatten(1), place[:, -len(NUISANCES) :]], -1), least
