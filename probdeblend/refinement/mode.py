"""Modes of the posterior of a blend under the generative model, and its curvature there.

Damped Gauss-Newton steps (Levenberg 1944, doi:10.1090/qam/10666) climb from a guess of all unknowns, with the images'
derivatives by central differences and the population's moments as a normal prior. The damping is Nielsen's (1999,
IMM-REP-1999-05, Technical University of Denmark): it decreases when the gain of a step matches the predicted one, and
increases faster with each consecutive failure.

For close pairs the image may not determine which galaxy is the compact one, or may constrain only the total flux. The
posterior then has several modes, or is a long bent valley that no single normal distribution
fills. `find_modes` therefore climbs from both sides, and once in each section of the valley.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .latents import LATENTS, POSITION
from .likelihood import NoisyImage, expected_periodogram, whitened
from .model import KNOWN, NUISANCES, BlendModel, Observed, in_all_orders

__all__ = ["find_mode", "find_modes", "linearized", "prior_moments", "sensitivity"]

# Steps of central differences: of each latent but the flux, in their order, and of the PSF's width.
STEPS = (0.02, 0.02, 0.01, 0.03, 0.02, 0.02)
GROWTH_STEP = 0.005
# The largest change in one step, of each latent and of the nuisances.
REACH = (0.7, 2.0, 2.0, 0.5, 1.0, 0.4, 0.4)
NUISANCE_REACH = (0.2, 0.05)
DAMPING, MORE = 1e-2, 2.0
MOST_STEPS = 40  # of a climb
PRIOR_DRAWS = 4096
CONVERGED = 0.02  # gain in ln of the posterior that an undamped step predicts
NEAR = 1.5  # FWHM of the PSF, closer than which the light of two galaxies may be divided in several ways
SAME = 1.0  # squared distance between climbs that ended at one mode, in units of its width
RATIOS, HOLD = (-1.8, -0.9, 0.0, 0.9, 1.8), 0.6  # ln flux ratios that climbs are held near, and how tightly
LEAST_SHARE = 0.01  # of a mode, to be drawn from


def prior_moments(model: BlendModel, observed: Observed) -> tuple[Tensor, Tensor]:
    """Return mean ``(blend, number)`` and precision ``(number, number)`` of the unknowns under the prior."""
    mean, precision = _moments_at_unit_noise(model)
    mean = mean.expand(len(observed.sky_rms), -1).clone()
    mean[:, : -len(NUISANCES) : len(LATENTS)] -= observed.sky_rms.double().log()[:, None]
    return mean, precision


@lru_cache(maxsize=8)
def _moments_at_unit_noise(model: BlendModel) -> tuple[Tensor, Tensor]:
    """Return mean ``(number,)`` and precision; cached, as each model takes a second."""
    drawn = model.draw_unknown(PRIOR_DRAWS, sky_rms=torch.ones(PRIOR_DRAWS)).double()
    fixed = torch.tensor([model.sky_level, model.psf_growth]) == 0
    covariance = torch.cov(drawn.T)
    covariance[-2:, -2:] += torch.diag(torch.where(fixed, KNOWN**2, 0.0))
    return drawn.mean(0), torch.linalg.inv(covariance)


def sensitivity(model: BlendModel, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Return each galaxy's expected light ``(blend, galaxy, y, x)``, and derivatives ``(blend, number, y, x)``.

    Derivatives of the total light, over the sky noise, are central differences but for fluxes and the sky level.
    """
    latents, _, growth = model.split(unknown)
    light = model.light(latents, growth)
    columns = [light]
    for number, step in enumerate(STEPS, 1):
        moved = torch.zeros(len(LATENTS)).to(latents)
        moved[number] = step
        columns.append((model.light(latents + moved, growth) - model.light(latents - moved, growth)) / (2 * step))
    wider, narrower = (model.light(latents, growth + sign * GROWTH_STEP).sum(1) for sign in (1, -1))
    nuisances = torch.stack([torch.ones_like(wider), (wider - narrower) / (2 * GROWTH_STEP)], 1)
    return light, torch.cat([torch.stack(columns, 2).flatten(1, 2), nuisances], 1)


def linearized(model: BlendModel, observed: Observed, unknown: Tensor) -> tuple[NoisyImage, Tensor, Tensor]:
    """Return the distribution of images, its expected periodogram, and whitened derivatives ``(blend, number, value)``.

    Products of the derivatives are the Fisher information, neglecting the dependence of the noise variance on the
    light.
    """
    light, derivatives = sensitivity(model, unknown.float())
    noisy = model.noisy(light.sum(1), unknown[:, -2].float(), observed)
    power = expected_periodogram(model.instrument.noise_kernel, model.size)
    return noisy, power, whitened(derivatives / noisy.standard_deviation[:, None], power).flatten(2)


def find_mode(
    model: BlendModel, observed: Observed, start: Tensor, *, prior: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb to modes ``(blend, number)`` of the posterior.

    The prior is normal, with a mean ``(blend, number)`` and a precision: `prior_moments` unless they are given. Also
    returned are the curvature there ``(blend, number, number)``, and ln of the posterior up to a constant ``(blend,)``.
    """
    mean, prior_precision = prior_moments(model, observed) if prior is None else prior
    prior_precision = prior_precision.expand(len(start), -1, -1)
    reach = torch.tensor([*REACH * model.galaxies, *NUISANCE_REACH]).double()
    place = start.double().clone()
    damping, worse = torch.full((len(place),), DAMPING).double(), torch.full((len(place),), MORE).double()
    information, gradient, value = _normal_equations(model, observed, place, mean=mean, precision=prior_precision)
    active = torch.arange(len(place))
    for _ in range(MOST_STEPS):
        curvature = information[active]
        scale = curvature.diagonal(dim1=-2, dim2=-1)
        step = torch.linalg.solve(curvature + torch.diag_embed(damping[active, None] * scale), gradient[active])
        step = step * (reach / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
        ahead, some = place[active] + step, observed.select(active)
        found = _normal_equations(model, some, ahead, mean=mean[active], precision=prior_precision[active])
        gain = found[2] - value[active]
        predicted = (step * (gradient[active] - (curvature @ step[..., None])[..., 0] / 2)).sum(-1)
        better, taken = gain > 0, active[gain > 0]
        place[taken], information[taken] = ahead[better], found[0][better]
        gradient[taken], value[taken] = found[1][better], found[2][better]
        kept = (1 - (2 * gain / predicted.clamp(min=1e-12) - 1) ** 3).clamp(min=1 / 3)
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
    """Return the information, the gradient and ln of the posterior under a normal prior."""
    noisy, power, rows = linearized(model, observed, unknown)
    residual = whitened(noisy.residual(observed.image), power).flatten(1)
    information = (rows @ rows.mT).double() + precision
    offset = unknown - mean
    pull = (precision @ offset[..., None])[..., 0]
    gradient = (rows @ residual[..., None])[..., 0].double() - pull
    value = noisy.log_prob(observed.image).double() - (pull * offset).sum(-1) / 2
    return information, gradient, value


def find_modes(model: BlendModel, observed: Observed, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from a guess ``(blend, number)``, and on in several ways if two galaxies are near each other.

    Their positions are exchanged, and ln of their flux ratio is held near one value after the other, which divides a
    valley into sections. Climbs that end at the same place, whatever the order of the galaxies, count once; those far
    below the highest one do not count. Returned are the modes ``(mode, blend, number)``, the curvature there
    ``(mode, blend, number, number)``, and the share of draws ``(mode, blend)``, falling, zero beyond a blend's modes.
    """
    place, precision, value = find_mode(model, observed, start)
    pair, distance = _closest(model, place)
    near = (distance < NEAR * model.instrument.fwhm).nonzero()[:, 0]
    if not len(near):
        return place[None], precision[None], torch.ones_like(value)[None]
    some, first, pair = observed.select(near), (place[near], precision[near], value[near]), pair[near]
    ends = [first, find_mode(model, some, _exchanged(model, place[near], pair))]
    ends += [_held(model, some, place[near], pair=pair, ratio=ratio) for ratio in RATIOS]
    several = _distinct(*(torch.stack(array) for array in zip(*ends, strict=True)))
    share = torch.eye(len(ends), 1).double().expand(-1, len(place)).clone()
    modes = (*(array.expand(len(ends), *array.shape).clone() for array in (place, precision)), share)
    for array, values in zip(modes, several, strict=True):
        array[:, near] = values
    return modes


def _closest(model: BlendModel, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return which two galaxies are closest ``(blend, 2)``, and their distance in pixels."""
    positions = model.split(place)[0][..., POSITION]
    distance = torch.cdist(positions, positions)
    distance = distance + torch.diag_embed(torch.full_like(positions[..., 0], math.inf))
    least, pair = distance.flatten(1).min(-1)
    return torch.stack([pair // model.galaxies, pair % model.galaxies], -1), least


def _exchanged(model: BlendModel, place: Tensor, pair: Tensor) -> Tensor:
    """Exchange the positions of two galaxies ``(blend, 2)``."""
    moved, blends = place.clone(), torch.arange(len(place))[:, None]
    model.split(moved)[0][blends, pair, 1:3] = model.split(place)[0][blends, pair.flip(-1), 1:3]
    return moved


def _held(
    model: BlendModel, observed: Observed, place: Tensor, *, pair: Tensor, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb with ln of two galaxies' flux ratio held near a value; the density is that of the posterior."""
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
    end, curvature, _ = find_mode(model, observed, start, prior=(middle, held))
    return end, curvature, _normal_equations(model, observed, end, mean=mean, precision=precision)[2]


def _distinct(place: Tensor, precision: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give each end of a climb a share, unless it is low or near a higher one; the largest shares first."""
    value = value.nan_to_num(nan=-math.inf)
    place, precision, value = _ordered(value, place, precision, value)
    orders = in_all_orders(place)
    # The square root: a normal prior is a poor description of the limits of the true one.
    log_share = (value - value[0]) / 2
    log_share = torch.where(log_share > math.log(LEAST_SHARE), log_share, -math.inf)
    log_share[0] = 0.0
    for number in range(1, len(place)):
        offset = orders[:, number, None] - place[:number]
        distance = torch.einsum("okbn,kbnm,okbm->okb", offset, precision[:number], offset).amin(0)
        known = ((distance < SAME) & torch.isfinite(log_share[:number])).any(0)
        log_share[number] = torch.where(known, -math.inf, log_share[number])
    share = log_share.softmax(0)
    place, precision, share = _ordered(share, place, precision, share)
    alive = share > 0  # entries with zero share are placeholders, set to the heaviest mode
    return (
        torch.where(alive[..., None], place, place[0]),
        torch.where(alive[..., None, None], precision, precision[0]),
        share,
    )


def _ordered(value: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
    """Sort arrays ``(end, blend, ...)`` along the first axis by falling values ``(end, blend)``."""
    order, blends = value.argsort(dim=0, descending=True, stable=True), torch.arange(value.shape[1])
    return tuple(array[order, blends] for array in arrays)
