"""What users give as stamps and noise, as plain arrays of one shape."""

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

__all__ = ["filled", "noise_pixels", "stamp_pixels"]


def stamp_pixels(image: ArrayLike) -> tuple[NDArray[np.float64], str]:
    """Return stamps as plain numbers, NaN for bad pixels, and their unit.

    Parameters
    ----------
    image
        Stamps ``(y, x)``, ``(blend, y, x)`` or ``(blend, 1, y, x)``: an array or tensor of any type and byte order,
        a masked array, a Quantity or an NDData.

    Returns
    -------
    tuple
        Pixels ``(blend, 1, y, x)`` and the unit's name, empty where there is none.

    Raises
    ------
    ValueError
        If the shape is another one.
    TypeError
        If the image does not hold numbers.
    """
    unit = getattr(image, "unit", None)
    if isinstance(image, NDData):
        image = np.ma.array(image.data, mask=False if image.mask is None else image.mask)
    elif isinstance(image, Quantity):
        image = image.value
    elif isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    mask = np.ma.getmaskarray(image) if isinstance(image, np.ma.MaskedArray) else None
    pixels = np.asarray(image)
    if pixels.dtype.kind not in "iufb":
        raise TypeError(f"image must be an array of numbers, got {pixels.dtype}")
    pixels = pixels.astype(np.float64)
    if mask is not None:
        pixels[mask] = np.nan
    if pixels.ndim not in (2, 3, 4) or pixels.shape[-2:] != (STAMP_SIZE, STAMP_SIZE):
        raise ValueError(f"image must hold stamps of {STAMP_SIZE} x {STAMP_SIZE} pixels, got shape {pixels.shape}")
    if pixels.ndim == 4 and pixels.shape[1] != 1:
        raise ValueError(f"image must have the one band that the weights were trained for, got {pixels.shape[1]}")
    return pixels.reshape(-1, 1, STAMP_SIZE, STAMP_SIZE), "" if unit is None else str(unit)


def noise_pixels(sky_rms: ArrayLike, pixels: NDArray, *, unit: str = "") -> NDArray[np.float64]:
    """Return the sky noise in a shape that broadcasts against stamps, NaN where it is unknown.

    Parameters
    ----------
    sky_rms
        A number, one a blend, or a map ``(y, x)`` or ``(blend, y, x)``.
    pixels
        Stamps ``(blend, 1, y, x)``.
    unit
        Unit of the stamps, to which a Quantity is converted.

    Returns
    -------
    numpy.ndarray
        Four axes.

    Raises
    ------
    ValueError
        If the shape does not fit or a value is not positive.
    """
    if isinstance(sky_rms, Quantity):
        sky_rms = sky_rms.to_value(unit) if unit else sky_rms.value
    noise = np.asarray(sky_rms.detach().cpu() if isinstance(sky_rms, Tensor) else sky_rms, dtype=np.float64)
    blends, size = len(pixels), (STAMP_SIZE, STAMP_SIZE)
    shapes = {
        (): (1, 1, 1, 1),
        (blends,): (blends, 1, 1, 1),
        size: (1, 1, *size),
        (blends, *size): (blends, 1, *size),
    }
    if noise.shape not in shapes:
        raise ValueError(
            f"sky_rms must be a number, one for each of the {blends} blends, or a map {size}, got shape {noise.shape}"
        )
    wrong = ~(noise > 0) if noise.ndim < 2 else noise <= 0
    if wrong.any() or not np.isfinite(noise).any():
        value = noise[wrong].flat[0] if wrong.any() else float("nan")
        raise ValueError(f"sky_rms must be positive and finite, got {value:g}")
    return noise.reshape(shapes[noise.shape])


def filled(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return stamps whose bad pixels are interpolated from their neighbors, or 0 (sky) where none is near.

    Parameters
    ----------
    pixels
        Stamps ``(..., y, x)``, not finite where they are bad.

    Returns
    -------
    numpy.ndarray
        A finite copy.
    """
    pixels = np.where(np.isfinite(pixels), pixels, np.nan)
    kernel = Gaussian2DKernel(1.5)
    for stamp in pixels.reshape(-1, *pixels.shape[-2:]):
        if np.isnan(stamp).any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AstropyUserWarning)  # of holes larger than the kernel
                stamp[...] = np.nan_to_num(interpolate_replace_nans(stamp, kernel), nan=0.0)
    return pixels
