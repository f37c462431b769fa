"""Goodness of fit: whether the PSF-smoothed residual is larger than noise alone would leave.

Light that a model cannot describe (knots, arms, another source) comes in patches no smaller than the PSF. A residual
smoothed by the PSF's core keeps these and loses most of the noise, so that its mean square inside the sources'
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
from .mode import expected, fwhm_of
from .unknowns import Unknowns

__all__ = ["misfit"]

LEAST_LEFT = 0.05  # of the degrees of freedom, where a fit absorbs nearly all


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
        residual = _smoothed(noisy.residual(listed.image)[0], window)
        moved = _smoothed(derivatives, window)
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


def _smoothed(images: Tensor, window: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(images) * window).real
