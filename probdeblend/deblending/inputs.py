"""Stamps and sky noise as users have them, turned into plain arrays of one shape."""

from __future__ import annotations

import warnings

import numpy as np
from astropy.convolution import Gaussian2DKernel, interpolate_replace_nans
from astropy.nddata import NDData
from astropy.units import Quantity
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..scene import STAMP_SIZE

__all__ = ["filled", "noise_pixels", "scaled_stamps", "stamp_pixels"]


def scaled_stamps(image: ArrayLike, sky_rms: ArrayLike) -> tuple[NDArray[np.float32], NDArray, NDArray[np.bool_], str]:
    """Return stamps over their sky noise with bad pixels filled, the noise, which pixels are bad, and the unit."""
    pixels, unit = stamp_pixels(image)
    noise = noise_pixels(sky_rms, pixels, unit=unit)
    bad = ~np.isfinite(pixels / noise)
    if (empty := bad.all((1, 2, 3))).any():
        raise ValueError(f"image must have good pixels, got none in stamp {int(empty.argmax())}")
    return filled(pixels / noise).astype(np.float32), noise, bad, unit


def stamp_pixels(image: ArrayLike) -> tuple[NDArray[np.float64], str]:
    """Return stamps, in any form that `Deblender.forward` takes, as plain numbers and the name of their unit.

    Pixels are ``(blend, 1, y, x)``, NaN for bad ones; the name is empty if there is no unit.
    """
    unit = getattr(image, "unit", None)
    if isinstance(image, NDData):
        image = np.ma.array(image.data, mask=False if image.mask is None else image.mask)
    elif isinstance(image, Quantity):
        image = image.value
    elif isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    pixels = np.ma.asarray(image)
    if pixels.dtype.kind not in "iufb":
        raise TypeError(f"image must be an array of numbers, got {pixels.dtype}")
    pixels = pixels.astype(np.float64).filled(np.nan)
    if pixels.ndim not in (2, 3, 4) or pixels.shape[-2:] != (STAMP_SIZE, STAMP_SIZE):
        raise ValueError(f"image must hold stamps of {STAMP_SIZE} x {STAMP_SIZE} pixels, got shape {pixels.shape}")
    if pixels.ndim == 4 and pixels.shape[1] != 1:
        raise ValueError(f"image must have the one band that the weights were trained for, got {pixels.shape[1]}")
    return pixels.reshape(-1, 1, STAMP_SIZE, STAMP_SIZE), "" if unit is None else str(unit)


def noise_pixels(sky_rms: ArrayLike, pixels: NDArray, *, unit: str = "") -> NDArray[np.float64]:
    """Return sky noise, in any form that `Deblender.forward` takes, with four axes that broadcast against stamps.

    It is NaN where it is unknown. A Quantity is converted to the unit of the stamps.
    """
    if isinstance(sky_rms, Quantity):
        sky_rms = sky_rms.to_value(unit) if unit else sky_rms.value
    noise = np.asarray(sky_rms.detach().cpu() if isinstance(sky_rms, Tensor) else sky_rms, dtype=np.float64)
    blends, size = len(pixels), (STAMP_SIZE, STAMP_SIZE)
    if noise.shape not in {(), (blends,), size, (blends, *size)}:
        given = f"one for each of the {blends} blends, or a map {size}, got shape {noise.shape}"
        raise ValueError(f"sky_rms must be a number, {given}")
    wrong = ~(noise > 0) if noise.ndim < 2 else noise <= 0
    if wrong.any() or not np.isfinite(noise).any():
        value = noise[wrong].flat[0] if wrong.any() else float("nan")
        raise ValueError(f"sky_rms must be positive and finite, got {value:g}")
    return noise.reshape(-1, 1, *(size if noise.ndim > 1 else (1, 1)))


def filled(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return stamps whose bad pixels are interpolated from their neighbors, or 0 (sky) if none is near."""
    pixels = np.where(np.isfinite(pixels), pixels, np.nan)
    kernel = Gaussian2DKernel(1.5)
    for stamp in pixels.reshape(-1, *pixels.shape[-2:]):
        if np.isnan(stamp).any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AstropyUserWarning)  # of holes larger than the kernel
                stamp[...] = np.nan_to_num(interpolate_replace_nans(stamp, kernel), nan=0.0)
    return pixels
