"""Goodness of fit: whether the PSF-smoothed residual is larger than noise alone would leave.

Light that a model cannot describe (knots, arms, a third galaxy) comes in patches no smaller than the PSF. A residual
smoothed by the PSF's core keeps these and loses most of the noise, so that its mean square inside the galaxies'
footprints is far more sensitive than that of the pixels. What it is under a right model follows from the correlation of
the noise, and from how much of the noise the fit has absorbed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from astropy.stats import gaussian_fwhm_to_sigma
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ..scene import MASK_THRESHOLD
from .likelihood import expected_periodogram
from .mode import sensitivity
from .model import BlendModel, Observed

__all__ = ["misfit"]

CHUNK = 16
LEAST_LEFT = 0.05  # of the degrees of freedom, where a fit absorbs nearly all


def misfit(
    model: BlendModel, observed: Observed, mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the probability that a right model leaves as much light behind.

    The residual at the posterior's mean is smoothed by a Gaussian of the PSF's width. Its square, summed over the
    pixels where a galaxy is brighter than three times the sky noise, is taken as a scaled chi-square variable with the
    mean and variance that it has, less what the fit absorbs (Satterthwaite 1946, doi:10.2307/3002019).

    Parameters
    ----------
    model
        The generative model.
    observed
        The images.
    mean, covariance
        Moments of the posterior of the unknowns ``(blend, number)`` and ``(blend, number, number)``.

    Returns
    -------
    NDArray
        A p-value for each blend ``(blend,)``; 1 where no pixel is that bright.
    """
    power = expected_periodogram(model.instrument.noise_kernel, model.size).float()
    frequency = 2 * math.pi * torch.fft.fftfreq(model.size)
    sigma = model.instrument.fwhm * gaussian_fwhm_to_sigma
    window = torch.exp(-(frequency[:, None].square() + frequency.square()) * sigma**2 / 2)
    window = window / (power * window.square()).mean().sqrt()  # leaves noise of unit variance
    correlation = torch.fft.ifft2(power * window.square()).real
    parts = []
    for first in range(0, len(mean), CHUNK):
        rows = slice(first, first + CHUNK)
        unknown, spread = (torch.from_numpy(array[rows]).float() for array in (mean, covariance))
        with torch.no_grad():
            parts.append(_misfit(model, observed.select(rows), unknown, spread, window=window, correlation=correlation))
    return np.concatenate(parts)


def _misfit(
    model: BlendModel, observed: Observed, unknown: Tensor, spread: Tensor, *, window: Tensor, correlation: Tensor
) -> NDArray[np.float64]:
    light, derivatives = sensitivity(model, unknown)
    noisy = model.noisy(light.sum(1), unknown[:, -2], observed)
    residual = _smoothed(noisy.residual(observed.image), window)
    moved = _smoothed(derivatives / noisy.standard_deviation[:, None], window)
    inside = (light > MASK_THRESHOLD).any(1).float()
    pixels = inside.sum((-2, -1)).double()
    left = (residual.square() * inside).sum((-2, -1)).double()
    absorbed = torch.einsum("bnyx,bnm,bmyx,byx->b", moved, spread, moved, inside).double()
    overlap = torch.fft.irfft2(torch.fft.rfft2(inside).abs().square(), s=inside.shape[-2:])
    variance = 2 * (overlap * correlation.square()).sum((-2, -1)).double()
    share = (1 - absorbed / pixels).clamp(LEAST_LEFT, 1.0)
    degrees = 2 * pixels.square() / variance * share
    probability = stats.chi2.sf((degrees * left / (pixels * share)).numpy(), degrees.numpy())
    return np.where(pixels.numpy() > 0, probability, 1.0)


def _smoothed(images: Tensor, window: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(images) * window).real
