"""Mode and curvature of the posterior of a blend under the generative model.

Damped Gauss-Newton steps (Levenberg 1944, doi:10.1090/qam/10666) from a guess of all unknowns, with the images'
derivatives by central differences and the population's moments as a normal prior.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .latents import LATENTS
from .likelihood import NoisyImage, expected_periodogram, whitened
from .model import KNOWN, BlendModel, Observed

__all__ = ["find_mode", "linearized", "prior_moments", "sensitivity"]

# Steps of central differences: of each latent but the flux, and of the PSF's width.
STEPS = {"x": 0.02, "y": 0.02, "log_radius": 0.01, "index": 0.03, "stretch_plus": 0.02, "stretch_cross": 0.02}
GROWTH_STEP = 0.005
# Farthest that one step goes, by latent and nuisance.
REACH = {"log_flux": 0.7, "x": 2.0, "y": 2.0, "log_radius": 0.5, "index": 1.0} | dict.fromkeys(LATENTS[5:], 0.4)
NUISANCE_REACH = (0.2, 0.05)
DAMPING, LESS, MORE = 1e-2, 0.2, 5.0
PRIOR_DRAWS = 4096
CONVERGED = 0.02  # gain of a step in ln of the posterior


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


def find_mode(model: BlendModel, observed: Observed, start: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Climb to the mode of the posterior, the prior taken as normal.

    Parameters
    ----------
    model, observed
        The model and its images.
    start
        ``(blend, number)``.
    steps
        Number of damped Gauss-Newton steps.

    Returns
    -------
    mode, precision
        ``(blend, number)`` and ``(blend, number, number)``: the curvature there.
    """
    mean, prior_precision = prior_moments(model, observed)
    reach = torch.tensor([*[REACH[name] for name in LATENTS] * model.galaxies, *NUISANCE_REACH]).double()
    place = start.double()
    damping = torch.full((len(place), 1), DAMPING).double()
    information, gradient, value = _normal_equations(model, observed, place, mean=mean, precision=prior_precision)
    settled = torch.zeros(len(place), dtype=torch.bool)
    for _ in range(steps):
        diagonal = information.diagonal(dim1=-2, dim2=-1)
        step = torch.linalg.solve(information + torch.diag_embed(damping * diagonal), gradient)
        ahead = place + step * (reach / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
        found = _normal_equations(model, observed, ahead, mean=mean, precision=prior_precision)
        better = (found[2] > value) & ~settled
        settled |= better & (found[2] - value < CONVERGED)
        place = torch.where(better[:, None], ahead, place)
        information = torch.where(better[:, None, None], found[0], information)
        gradient = torch.where(better[:, None], found[1], gradient)
        value = torch.where(better, found[2], value)
        damping = damping * torch.where(better, LESS, MORE)[:, None]
        if bool(settled.all()):
            break
    return place, information


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
