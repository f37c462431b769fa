"""How well the images of galaxies are reconstructed: pure functions of arrays, a number an image.

The Blending ToolKit (Mendoza et al. 2025, arXiv:2409.06986) gives some of these names to other quantities. Its
``mse`` takes a root, and its ``psnr`` first divides each image by its own maximum, so that a reconstruction with half
of the flux is perfect. What compares with its numbers is here under names that begin with ``toolkit``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["mse", "psnr", "rmse", "toolkit_mse", "toolkit_psnr"]


def mse(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the mean squared error of each image.

    Parameters
    ----------
    estimate, truth
        Images ``(..., y, x)``.

    Returns
    -------
    NDArray
        In the squared unit of the images ``(...)``; NaN for an image with NaN in it.

    Raises
    ------
    ValueError
        If shapes differ or these are no images.
    """
    estimate, truth = _images(estimate, truth)
    return ((estimate - truth) ** 2).mean((-2, -1))


def rmse(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the root of the mean squared error of each image.

    Parameters
    ----------
    estimate, truth
        Images ``(..., y, x)``.

    Returns
    -------
    NDArray
        In the unit of the images ``(...)``.

    Raises
    ------
    ValueError
        As by `mse`.
    """
    return np.sqrt(mse(estimate, truth))


def psnr(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the ratio of peak signal to noise; the peak of both images is the maximum of the true one.

    Parameters
    ----------
    estimate, truth
        Images ``(..., y, x)``.

    Returns
    -------
    NDArray
        ``10 log10(max(truth)^2 / mse)`` in decibels ``(...)``: infinite where they agree, NaN for a true image without
        light.

    Raises
    ------
    ValueError
        As by `mse`.
    """
    error = mse(estimate, truth)
    with np.errstate(divide="ignore"):
        return 20 * np.log10(_peak(truth)[..., 0, 0]) - 10 * np.log10(error)


def toolkit_mse(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return what the Blending ToolKit calls the mean squared error: its root, which is `rmse`.

    The ``msr`` of its older ``reconstruction_metrics`` was a mean square, over all bands together.

    Parameters
    ----------
    estimate, truth
        Images ``(..., y, x)``.

    Returns
    -------
    NDArray
        In the unit of the images ``(...)``.

    Raises
    ------
    ValueError
        As by `mse`.
    """
    return rmse(estimate, truth)


def toolkit_psnr(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the ratio of peak signal to noise of the Blending ToolKit, which cannot see an error of the flux.

    Each image is divided by its own maximum first; `psnr` divides both by that of the true one. The older
    ``reconstruction_metrics`` of the ToolKit did as `psnr` does, over all bands together.

    Parameters
    ----------
    estimate, truth
        Images ``(..., y, x)`` without negative pixels, which the ToolKit refuses.

    Returns
    -------
    NDArray
        Decibels ``(...)``: infinite where the images are proportional, NaN where one of them has no light.

    Raises
    ------
    ValueError
        As by `mse`, or if a pixel is negative.
    """
    estimate, truth = _images(estimate, truth)
    for name, image in (("estimate", estimate), ("truth", truth)):
        if (image < 0).any():
            raise ValueError(f"{name} must not be negative, got {image[image < 0][0]}")
    return psnr(estimate / _peak(estimate), truth / _peak(truth))


def _images(estimate: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate must have the shape of truth {truth.shape}, got {estimate.shape}")
    if truth.ndim < 2:
        raise ValueError(f"truth must have the axes (..., y, x), got shape {truth.shape}")
    return estimate, truth


def _peak(image: ArrayLike) -> NDArray[np.float64]:
    peak = np.asarray(image, dtype=np.float64).max((-2, -1), keepdims=True)
    return np.where(peak > 0, peak, np.nan)
