"""The bands of an image, whatever form users have them in: arrays with units, uncertainties and masks, and files."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

import numpy as np
import torch
from astropy.nddata import NDData, StdDevUncertainty
from astropy.units import Quantity
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..photometry.headers import gain, zero_point
from ..photometry.images import FieldImage, open_mosaic
from .pixels import numbers

__all__ = ["Image", "bad_pixels", "bands_of", "plain"]

Image = ArrayLike | NDData | Quantity | str | PathLike


def bands_of(image: Image | Sequence[Image], dq: object, stack: contextlib.ExitStack) -> list[FieldImage]:
    """Open an image, and split it into its bands, whose pixels are masked where they are bad."""
    single = (str, PathLike, NDData)
    if isinstance(image, (list, tuple)) and all(isinstance(item, single) or np.ndim(item) >= 2 for item in image):
        return [_opened(item, dq, stack) for item in image] or [FieldImage("", np.zeros(0))]
    whole = _opened(image, dq, stack)
    if len(whole.shape) != 3 or not len(whole.data):
        return [whole]
    noise = [None] * len(whole.data) if whole.noise is None else whole.noise
    return [replace(whole, data=data, noise=own) for data, own in zip(whole.data, noise, strict=True)]


def _opened(item: Image, dq: object, stack: contextlib.ExitStack) -> FieldImage:
    if isinstance(item, (str, PathLike)):
        return stack.enter_context(open_mosaic(item, dq=dq))
    if dq is not None:
        raise ValueError(f"dq must be left out for an image that is not a file, got {dq!r}")
    if isinstance(item, NDData):
        return _described(item)
    values = plain("image", item)
    pixels = numbers("image", values.value if isinstance(values, Quantity) else values)
    return FieldImage("", pixels, unit=str(getattr(values, "unit", None) or ""))


def _described(item: NDData) -> FieldImage:
    """Take an NDData with its mask, uncertainty, PSF, world coordinates and header."""
    shape, mask, unit, notes = np.shape(item.data), np.ma.nomask, str(item.unit or ""), []
    if item.mask is not None:
        mask = np.broadcast_to(bad_pixels("the mask of image", item.mask, shape, ()), shape)
    if not isinstance(wcs := item.wcs, WCS | None):
        notes.append(f"world coordinates are not used, as they are a {type(wcs).__name__}, not an astropy.wcs.WCS")
        wcs = None
    known = {"wcs": wcs, "noise": _deviation(item, notes), "psf": item.psf, "gain": gain([item.meta], unit)}
    known |= {"zero_point": zero_point("image", item.meta, unit, notes), "unit": unit}
    return FieldImage("", numbers("image", np.ma.array(item.data, mask=mask)), notes=tuple(notes), **known)


def _deviation(item: NDData, notes: list[str]) -> NDArray | None:
    """Return the uncertainty of an NDData as a standard deviation, not positive or not finite where a pixel is bad."""
    if (error := item.uncertainty) is None:
        return None
    shape = np.shape(item.data)
    if np.shape(error.array) not in {shape, ()}:
        raise ValueError(f"the uncertainty of image must have the image's shape {shape}, got {np.shape(error.array)}")
    with contextlib.suppress(TypeError), np.errstate(all="ignore"):
        error = error.represent_as(StdDevUncertainty)
        rms = error.array if error.unit is None else error.quantity.to_value(item.unit)
        if (np.isfinite(rms) & (rms > 0)).any():
            return np.broadcast_to(rms, shape)
    notes.append("the uncertainty of image is not used, as its kind is not known or it is nowhere positive and finite")
    return None


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
