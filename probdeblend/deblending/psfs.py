"""Effective PSFs as users have them, as stamps of one size."""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..photometry.images import read_psf
from ..photometry.stars import measure_psf
from ..scene import Instrument
from .pixels import BandPixels

__all__ = ["CAMERAS", "PsfLike", "band_psfs"]

PSF_SIZE = 41  # pixels on a side of the PSFs that networks are trained with
CAMERAS = {"candels_f160w": Instrument.candels_f160w}

PsfLike = ArrayLike | str | PathLike | object


def band_psfs(psf: PsfLike | None, bands: list[BandPixels], pixel_scale: float, notes: list[str]) -> Tensor:
    """Return the effective PSF of each band ``(band, y, x)``, measured from stars where none is given."""
    if psf is None:
        measured = []
        for band in bands:
            try:
                measured.append(measure_psf(band.middle(), 1.0))
            except ValueError as error:
                raise ValueError(
                    f"psf must be given, as an array, a FITS file or the name of a camera ({', '.join(CAMERAS)}), "
                    f"where it cannot be measured from stars: {error}"
                ) from None
        notes.append("the PSF was measured from stars of the image")
        return torch.stack([_stamp(p) for p in measured])
    if isinstance(psf, (list, tuple)) and not np.isscalar(psf[0]) and np.ndim(psf[0]) != 1:
        if len(psf) != len(bands):
            raise ValueError(f"psf must be one or one for each of {len(bands)} bands, got {len(psf)}")
        return torch.stack([_stamp(_psf_array(p, pixel_scale)) for p in psf])
    arrays = _psf_array(psf, pixel_scale)
    arrays = arrays[None] if arrays.ndim == 2 else arrays
    if len(arrays) not in (1, len(bands)):
        raise ValueError(f"psf must be one or one for each of {len(bands)} bands, got {len(arrays)}")
    return torch.stack([_stamp(p) for p in np.broadcast_to(arrays, (len(bands), *arrays.shape[1:]))])


def _psf_array(psf: PsfLike, pixel_scale: float) -> NDArray[np.float64]:
    """Effective PSF ``(y, x)``, or one per band, from whatever users have."""
    if isinstance(psf, (str, PathLike)):
        if psf in CAMERAS:
            return CAMERAS[psf]().psf.double().numpy()
        return read_psf(psf, pixel_scale=pixel_scale if pixel_scale != 1.0 else None)
    if hasattr(psf, "drawImage"):
        import galsim

        drawn = galsim.Convolve(psf, galsim.Pixel(pixel_scale))
        return drawn.drawImage(nx=PSF_SIZE, ny=PSF_SIZE, scale=pixel_scale, method="no_pixel", dtype=float).array
    if callable(psf):
        half = PSF_SIZE // 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        center = [float(getattr(psf, name).value) if hasattr(psf, name) else 0.0 for name in ("x_0", "y_0")]
        return np.asarray(psf(x + center[0], y + center[1]), dtype=np.float64)
    return np.asarray(psf.detach().cpu() if isinstance(psf, Tensor) else psf, dtype=np.float64)


def _stamp(psf: NDArray) -> Tensor:
    """Bring an effective PSF to the size that networks know, with unit sum."""
    if psf.ndim != 2 or psf.shape[0] != psf.shape[1] or psf.shape[0] % 2 == 0:
        raise ValueError(f"psf must be square with an odd number of pixels on a side, got shape {psf.shape}")
    if not np.isfinite(psf).all() or not psf.sum() > 0:
        raise ValueError("psf must be finite with a positive sum")
    side = psf.shape[0]
    if np.abs(np.array(np.unravel_index(psf.argmax(), psf.shape)) - side // 2).max() > 1:
        raise ValueError("psf must be centered, its brightest pixel within one of the middle")
    size = min(side, PSF_SIZE)
    cut = slice((side - size) // 2, (side + size) // 2)
    stamp = np.pad(psf[cut, cut], (PSF_SIZE - size) // 2)
    return torch.from_numpy(stamp / stamp.sum()).float()
