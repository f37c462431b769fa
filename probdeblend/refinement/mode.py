"""Modes of the posterior of a scene under the generative model, its curvature there, and how well it fits.

Damped Gauss-Newton steps (Levenberg 1944, doi:10.1090/qam/10666) climb from a guess of all unknowns, with the image's
derivatives by central differences and the population's moments as a normal prior. The damping is Nielsen's (1999, IMM-
REP-1999-05, Technical University of Denmark): it decreases when the gain of a step matches the predicted one, and
increases faster with each consecutive failure.

The light of sources closer than 1.5 FWHM of the PSF can often be divided in several ways. Climbs then start from
several guesses, and once more with the positions of the two closest sources exchanged.

Goodness of fit is judged by the residual smoothed by the PSF. Light that a model cannot describe (knots, arms, another
source) comes in patches no smaller than the PSF. A residual smoothed by the PSF's core keeps these and loses most of
the noise, so that its mean square inside the sources' footprints is far more sensitive than that of the pixels. What it
is under a right model follows from the correlation of the noise, and from how much of the noise the fit has absorbed.
"""

import math

import numpy as np
import torch
from astropy.stats import gaussian_fwhm_to_sigma
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ..scene import MASK_THRESHOLD
from .likelihood import NoisyImage, whitened
from .unknowns import Unknowns

__all__ = ["expected", "find_mode", "find_modes", "fwhm_of", "linearized", "misfit"]

LEAST_LEFT = 0.05  # of the degrees of freedom, where a fit absorbs nearly all
DAMPING, MORE = 1e-2, 2.0
MOST_STEPS = 40  # of a climb
CONVERGED = 0.02  # gain in ln of the posterior that an undamped step predicts
NEAR = 1.5  # FWHM of the PSF, closer than which the light of two sources may be divided in several ways
SAME = 1.0  # squared distance between climbs that ended at one mode, in units of its width
LEAST_SHARE = 0.01  # of a mode, to be drawn from


def fwhm_of(psf: Tensor) -> Tensor:
    """Return the FWHM in pixels of the Gaussian with the noise-equivalent area of a PSF ``(..., y, x)``."""
    return math.sqrt(2 * math.log(2) / math.pi) * psf.square().sum((-2, -1)).rsqrt()


def expected(unknowns: Unknowns, vector: Tensor) -> tuple[Tensor, NoisyImage, Tensor]:
    """Return the light of each source, the distribution of the image, and its derivatives in standard deviations."""
    (light, derivatives), listed = unknowns.sensitivity(vector), unknowns.listed
    sky_level = vector[None, -2 * unknowns.bands : -unknowns.bands]
    noisy = NoisyImage(light.sum(0)[None], sky_level, photon=listed.photon, power=listed.power, good=listed.good)
    return light, noisy, listed.good * derivatives / noisy.standard_deviation


def linearized(unknowns: Unknowns, vector: Tensor) -> tuple[NoisyImage, Tensor]:
    """Return the distribution of the image, and its whitened derivatives ``(number, value)``.

    Products of the derivatives are the Fisher information, neglecting the dependence of the noise variance on the
    light.
    """
    _, noisy, derivatives = expected(unknowns, vector.float())
    return noisy, whitened(derivatives, unknowns.listed.power).flatten(1)


def find_mode(unknowns: Unknowns, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from a guess ``(number,)`` to a mode; also return the curvature there, and ln of the posterior."""
    place = unknowns.clipped(start.double())
    damping, worse = DAMPING, MORE
    information, gradient, value = _normal_equations(unknowns, place)
    for _ in range(MOST_STEPS):
        damped = information + damping * torch.diag(information.diagonal())
        step = torch.linalg.solve(damped, gradient)
        step = step * (unknowns.reach / step.abs().clamp(min=1e-12)).min().clamp(max=1.0)
        ahead = unknowns.clipped(place + step)
        step = ahead - place
        found = _normal_equations(unknowns, ahead)
        gain = float(found[2] - value)
        predicted = float(step @ (gradient - information @ step / 2))
        if gain > 0:
            place, (information, gradient, value) = ahead, found
            damping, worse = damping * max(1 / 3, 1 - (2 * gain / max(predicted, 1e-12) - 1) ** 3), MORE
        else:
            damping, worse = damping * worse, MORE * worse
        if float(torch.linalg.solve(information, gradient) @ gradient) / 2 < CONVERGED or damping > 1e8:
            break
    return place, information, value


def _normal_equations(unknowns: Unknowns, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the information, the gradient and ln of the posterior under a normal prior."""
    noisy, rows = linearized(unknowns, vector)
    mean, precision = unknowns.prior
    image = unknowns.listed.image
    residual = whitened(noisy.residual(image), unknowns.listed.power).flatten()
    pull = precision @ (vector - mean)
    value = noisy.log_prob(image)[0].double() - pull @ (vector - mean) / 2
    return (rows @ rows.T).double() + precision, (rows @ residual).double() - pull, value


def find_modes(unknowns: Unknowns, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from the first guess ``(guess, number)``, and from all of them if two sources are near each other.

    Climbs that end at the same place count once; those far below the highest one do not count. Returned are the modes
    ``(mode, number)``, the curvature there ``(mode, number, number)``, and the share of draws ``(mode,)``.
    """
    ends = [find_mode(unknowns, starts[0])]
    if (exchanged := _exchanged(unknowns, ends[0][0])) is not None:
        ends += [find_mode(unknowns, start) for start in [exchanged, *starts[1:]]]
    ends.sort(key=lambda end: -float(end[2].nan_to_num(nan=-math.inf)))
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, curvature, value in ends:
        apart = [float((place - other) @ metric @ (place - other)) for other, metric, _ in kept]
        # The square root: a normal prior is a poor description of the limits of the true one.
        if not kept or (min(apart) > SAME and float(value - kept[0][2]) / 2 > math.log(LEAST_SHARE)):
            kept.append((place, curvature, value))
    places, curvatures, values = (torch.stack(parts) for parts in zip(*kept, strict=True))
    return places, curvatures, (values / 2).softmax(0)


def _exchanged(unknowns: Unknowns, place: Tensor) -> Tensor | None:
    """Exchange the positions of the two closest sources; None if they are not near each other."""
    listed = unknowns.listed
    if unknowns.sources < 2:
        return None
    values = unknowns.sites(place[None])
    offset = values["position"][0]
    center = torch.stack([listed.x[0], listed.y[0]], -1) + offset
    distance = torch.cdist(center, center) + torch.diag(torch.full((unknowns.sources,), math.inf))
    least, pair = distance.flatten().min(0)
    if float(least) > NEAR * float(fwhm_of(listed.psf).min()):
        return None
    one, other = int(pair) // unknowns.sources, int(pair) % unknowns.sources
    moved = offset.clone()
    moved[[one, other]] += center[[other, one]] - center[[one, other]]
    return unknowns.vector(values["log_flux"][:, 0, ..., 1], moved[None], values["shape"])[0]


def misfit(unknowns: Unknowns, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Return the probability that a right model leaves as much light behind.

    The residual at the posterior's mean is smoothed by a Gaussian of the PSF's width in each band. Its square, summed
    over the pixels where a source is brighter than three times the sky noise, is taken as a scaled chi-square variable
    with the mean and variance that it has, less what the fit absorbs (Satterthwaite 1946, doi:10.2307/3002019).

    Parameters
    ----------
    unknowns
        The scene and its model.
    mean, covariance
        Moments of the posterior of the vector ``(number,)`` and ``(number, number)``.

    Returns
    -------
    float
        A p-value; 1 where no pixel is that bright.
    """
    listed, vector = unknowns.listed, torch.from_numpy(mean).float()
    power = listed.power[0]
    height, width = (2 * math.pi * torch.fft.fftfreq(size) for size in power.shape[-2:])
    sigma = fwhm_of(listed.psf[0])[:, None, None] * gaussian_fwhm_to_sigma
    window = torch.exp(-(height[:, None].square() + width.square()) * sigma.square() / 2)
    window = window / (power * window.square()).mean((-2, -1), keepdim=True).sqrt()  # leaves noise of unit variance
    correlation = torch.fft.ifft2(power * window.square()).real
    with torch.no_grad():
        light, noisy, derivatives = expected(unknowns, vector)
        residual = _filtered(noisy.residual(listed.image)[0], window)
        moved = _filtered(derivatives, window)
    inside = ((light > MASK_THRESHOLD).any(0) & (listed.good[0] > 0)).float()
    pixels = float(inside.sum())
    if not pixels:
        return 1.0
    moved = (moved * inside).flatten(1).double()
    absorbed = float((moved @ moved.T * torch.from_numpy(covariance)).sum())
    overlap = torch.fft.irfft2(torch.fft.rfft2(inside).abs().square(), s=inside.shape[-2:])
    variance = float(2 * (overlap * correlation.square()).sum())
    share = min(max(1 - absorbed / pixels, LEAST_LEFT), 1.0)
    degrees = 2 * pixels**2 / variance * share
    left = float((residual.square() * inside).sum())
    return float(stats.chi2.sf(degrees * left / (pixels * share), degrees))


def _filtered(images: Tensor, window: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(images) * window).real
