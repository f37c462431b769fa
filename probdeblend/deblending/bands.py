"""The bands of an image, whatever form users have them in: arrays with units, uncertainties and masks, and files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch
from astropy.nddata import NDData, NDUncertainty, StdDevUncertainty
from astropy.units import Quantity
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..photometry.extensions import Parts
from ..photometry.headers import stated_gain, stated_zero_point
from ..photometry.images import open_mosaic
from .pixels import numbers

__all__ = ["Band", "Image", "bad_pixels", "bands_of", "plain", "uncertainty"]

Image = ArrayLike | NDData | Quantity | str | PathLike


@dataclass(eq=False)
class Band:
    """Pixels of one band, masked where bad, and what is known of them from the image itself."""

    pixels: NDArray | Parts
    name: str = ""
    unit: str = ""
    wcs: WCS | None = None
    zero_point: float | None = None
    error: NDUncertainty | None = None
    notes: tuple[str, ...] = ()
    noise: Parts | None = None
    gain: float | None = None
    psf: NDArray | None = None


def bands_of(image: Image | Sequence[Image], dq: object, stack: contextlib.ExitStack) -> list[Band]:
    """Open an image, and split it into its bands."""
    single = (str, PathLike, NDData)
    if isinstance(image, (list, tuple)) and all(isinstance(item, single) or np.ndim(item) >= 2 for item in image):
        return [_opened(item, dq, stack) for item in image] or [Band(np.zeros(0))]
    whole = _opened(image, dq, stack)
    if len(whole.pixels.shape) != 3 or not len(whole.pixels):
        return [whole]
    errors = [None] * len(whole.pixels)
    if (error := whole.error) is not None:
        errors = [type(error)(own, unit=error.unit) for own in np.broadcast_to(error.array, whole.pixels.shape)]
    return [replace(whole, pixels=pixels, error=own) for pixels, own in zip(whole.pixels, errors, strict=True)]


def _opened(item: Image, dq: object, stack: contextlib.ExitStack) -> Band:
    if isinstance(item, (str, PathLike)):
        return _stored(item, dq, stack)
    if dq is not None:
        raise ValueError(f"dq must be left out for an image that is not a file, got {dq!r}")
    if isinstance(item, NDData):
        return _described(item)
    values = plain("image", item)
    pixels = numbers("image", values.value if isinstance(values, Quantity) else values)
    return Band(pixels, unit=str(getattr(values, "unit", None) or ""))


def _stored(path: str | PathLike, dq: object, stack: contextlib.ExitStack) -> Band:
    """Open a file, of which parts are read when they are needed."""
    file = stack.enter_context(open_mosaic(path, dq=dq))
    pixels = file.data
    if file.mask is not None:
        pixels = Parts(file.shape, lambda part: np.ma.array(file.data[part], mask=file.mask[part]))
    known = {"notes": file.notes, "noise": file.noise, "gain": file.gain}
    return Band(pixels, re.sub(r"\.fits?(\.\w+)?$", "", file.name), file.unit, file.wcs, file.zero_point, **known)


def _described(item: NDData) -> Band:
    """Take an NDData with its mask, uncertainty, PSF, world coordinates and header."""
    shape, mask, unit, notes = np.shape(item.data), np.ma.nomask, str(item.unit or ""), []
    if item.mask is not None:
        mask = np.broadcast_to(bad_pixels("the mask of image", item.mask, shape, ()), shape)
    if item.uncertainty is not None and np.shape(item.uncertainty.array) not in {shape, ()}:
        wrong = np.shape(item.uncertainty.array)
        raise ValueError(f"the uncertainty of image must have the image's shape {shape}, got {wrong}")
    if not isinstance(wcs := item.wcs, WCS | None):
        notes.append(f"world coordinates are not used, as they are a {type(wcs).__name__}, not an astropy.wcs.WCS")
        wcs = None
    headers = [item.meta] if isinstance(item.meta, Mapping) else []
    known = {"error": item.uncertainty, "psf": item.psf, "gain": stated_gain("image", headers, unit)}
    zero_point = stated_zero_point("image", headers, unit, notes)
    return Band(numbers("image", np.ma.array(item.data, mask=mask)), "", unit, wcs, zero_point, notes=notes, **known)


def plain(name: str, values: object) -> object:
    """Return tensors as arrays, and a list of Quantities as one."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Quantity) for value in values):
        try:
            return type(values[0])(list(values))
        except (TypeError, ValueError):
            units = ", ".join(str(value.unit) for value in values)
            raise ValueError(f"{name} must be in one unit, got {units}") from None
    return values


def bad_pixels(name: str, values: ArrayLike, *shapes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where a mask is not zero; what is masked in it is bad, too."""
    bad = np.ma.filled(numbers(name, plain(name, values), "biuf") != 0, fill_value=True)
    if bad.shape not in shapes:
        raise ValueError(f"{name} must have the image's shape {shapes[0]}, got {bad.shape}")
    return bad


def uncertainty(band: Band) -> NDArray | Parts | None:
    """Sky noise from the uncertainty of an NDData, not positive or not finite where a pixel is bad, or of a file."""
    if band.error is None:
        return band.noise
    name = "the uncertainty of image"
    with np.errstate(all="ignore"):
        try:
            error = band.error.represent_as(StdDevUncertainty)
        except TypeError:
            form = "a standard deviation, a variance or an inverse variance"
            raise TypeError(
                f"{name} must be {form}, got {type(band.error).__name__} of {band.error.array.dtype}"
            ) from None
        rms = numbers(name, error.array if error.unit is None else error.quantity.to_value(band.unit))
    if not (np.isfinite(rms) & (rms > 0)).any():
        raise ValueError(f"{name} must be positive and finite, or sky_rms given")
    return np.broadcast_to(rms, band.pixels.shape)
