"""The one door for images: whatever form users have them in becomes pixels over sky noise, with all that goes along.

An image may be an array, a masked array, a `Quantity`, an `NDData` or `CCDData`, or a FITS file; several bands are one
array with three axes, or a list. What is not given is taken from the image's own metadata or measured in it, and what
was assumed is kept as sentences. Large files are read in blocks, each with its own sky, when a tile needs them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
import torch
from astropy.io import fits
from astropy.nddata import NDData, StdDevUncertainty
from astropy.units import Quantity
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..photometry.images import FieldImage, open_mosaic, read_map
from ..photometry.noise import correlation_sum, noise_numbers
from ..photometry.sky import estimate_noise_kernel
from ..scene import Instrument
from .pixels import BandPixels
from .psfs import CAMERAS, PsfLike, band_psfs

__all__ = ["Image", "Observation", "observe"]

SMALLEST_SKY = 192  # pixels on a side of the smallest image whose sky is measured
LARGEST_RATIO = 1e30  # times the sky noise; beyond it a pixel is bad

Image = ArrayLike | NDData | Quantity | str | PathLike


@dataclass(eq=False)
class Observation:
    """An image as the network and the catalog need it.

    Parameters
    ----------
    bands
        Names of the bands.
    shape
        Rows and columns.
    psf
        Effective PSFs ``(band, y, x)``.
    noise
        Numbers that describe noise and color ``(band, 5)``.
    pixel_scale
        In arcsec; NaN where it is not known.
    unit, zero_point
        Of the pixels; an empty unit and NaN where they are not known.
    wcs
        World coordinates, or None.
    notes
        What was measured or assumed, one sentence each.
    """

    bands: tuple[str, ...]
    shape: tuple[int, int]
    psf: Tensor
    noise: Tensor
    pixel_scale: float
    unit: str
    zero_point: tuple[float, ...]
    wcs: WCS | None
    sources: list[BandPixels]
    notes: list[str] = field(default_factory=list)

    def window(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return pixels over sky noise, and which are good ``(band, y, x)``; none are beyond the edge."""
        ratios = [band.window(rows, columns)[0] for band in self.sources]
        ratio = torch.from_numpy(np.stack(ratios)).float()
        good = torch.isfinite(ratio) & (ratio.abs() < LARGEST_RATIO)
        return ratio.where(good, 0.0), good.float()

    def sky_rms(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Return the sky noise at positions ``(source, band)`` in image units."""
        return np.stack([band.noise_at(x, y) for band in self.sources], -1).reshape(len(x), len(self.sources))


@contextlib.contextmanager
def observe(
    image: Image | Sequence[Image],
    *,
    psf: PsfLike | None = None,
    sky_rms: ArrayLike | None = None,
    wcs: WCS | None = None,
    zero_point: float | Sequence[float] | None = None,
    gain: float | Sequence[float] | None = None,
    mask: ArrayLike | None = None,
    wavelength: float | Sequence[float] | None = None,
) -> Iterator[Observation]:
    """Open an image for deblending; the arguments are those of `probdeblend.deblend`."""
    with contextlib.ExitStack() as stack:
        opened = [_opened(item, stack) for item in _bands_of(image)]
        shapes = {tuple(band.data.shape) for band in opened}
        if len(shapes) > 1:
            raise ValueError(f"bands must have one shape, got {', '.join(map(str, sorted(shapes)))}")
        shape = shapes.pop()
        units = {band.unit for band in opened}
        if len(units) > 1:
            raise ValueError(f"bands must have one unit, got {', '.join(sorted(map(repr, units)))}")
        notes: list[str] = []
        wcs = wcs if wcs is not None else next((band.wcs for band in opened if band.wcs is not None), None)
        unit = units.pop()
        count = len(opened)
        zero_points = _per_band("zero_point", zero_point, [band.zero_point for band in opened])
        noise = _noise_of(sky_rms, opened, count, shape, unit)
        bad = _mask_of(mask, shape)
        background = min(shape) >= SMALLEST_SKY
        if not background:
            notes.append(f"an image of less than {SMALLEST_SKY} pixels on a side is taken as sky-subtracted")
        bands = [
            BandPixels(band.data, _joined(bad, band.mask), rms, background)
            for band, rms in zip(opened, noise, strict=True)
        ]
        scale = _pixel_scale(wcs, psf, notes)
        camera = CAMERAS[psf]() if isinstance(psf, str) and psf in CAMERAS else None
        kernels = _kernels(bands, camera, notes)
        psfs = band_psfs(psf, bands, scale, notes)
        exposures = _per_band("gain", gain, [camera.exposure if camera else None] * count)
        waves = _per_band("wavelength", wavelength, [None] * count)
        numbers = _describe(bands, kernels, exposures, waves)
        yield Observation(
            bands=tuple(band.name for band in opened) if count > 1 else ("",),
            shape=shape,
            psf=psfs,
            noise=numbers,
            pixel_scale=scale,
            unit=unit,
            zero_point=tuple(math.nan if value is None else float(value) for value in zero_points),
            wcs=wcs,
            sources=bands,
            notes=notes,
        )


@dataclass(eq=False)
class _Opened:
    """Pixels of one band and what is known of them from the image itself."""

    data: NDArray | fits.Section
    name: str = ""
    unit: str = ""
    wcs: WCS | None = None
    zero_point: float | None = None
    mask: NDArray[np.bool_] | None = None
    rms: NDArray | None = None


def _bands_of(image: Image | Sequence[Image]) -> list[Image]:
    """Split an image into its bands."""
    if isinstance(image, (list, tuple)) and image and not np.isscalar(image[0]):
        items = list(image)
        if all(isinstance(item, (str, PathLike, NDData)) or np.ndim(item) == 2 for item in items):
            return items
    if isinstance(image, (str, PathLike)):
        return [image]
    if isinstance(image, NDData) and image.data.ndim == 3:
        return [image[i] for i in range(len(image.data))]
    shape = image.data.shape if isinstance(image, NDData) else np.shape(image)
    if len(shape) == 2:
        return [image]
    if len(shape) == 3 and shape[0]:
        return [image[i] for i in range(shape[0])]
    raise ValueError(f"image must have the axes (y, x) or (band, y, x), got shape {shape}")


def _opened(item: Image, stack: contextlib.ExitStack) -> _Opened:
    if isinstance(item, (str, PathLike)):
        field_image: FieldImage = stack.enter_context(open_mosaic(item))
        return _Opened(field_image.data, field_image.name, field_image.unit, field_image.wcs, field_image.zero_point)
    unit = str(getattr(item, "unit", None) or "")
    if isinstance(item, NDData):
        rms = None
        if isinstance(item.uncertainty, StdDevUncertainty):
            rms = np.asarray(item.uncertainty.array, dtype=np.float64)
        mask = None if item.mask is None else np.broadcast_to(np.asarray(item.mask, dtype=bool), item.data.shape)
        return _Opened(_numbers(item.data), "", unit, item.wcs if isinstance(item.wcs, WCS) else None, None, mask, rms)
    if isinstance(item, Quantity):
        item = item.value
    elif isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    return _Opened(_numbers(item), "", unit)


def _numbers(values: ArrayLike) -> NDArray:
    pixels = np.ma.asarray(values)
    if pixels.dtype.kind not in "iufb":
        raise TypeError(f"image must be an array of numbers, got {pixels.dtype}")
    return pixels


def _per_band(name: str, given: object, otherwise: list) -> list:
    """One value per band: what is given, or what is known otherwise."""
    if given is None:
        return otherwise
    values = np.atleast_1d(np.asarray(given, dtype=np.float64))
    if len(values) not in (1, len(otherwise)):
        raise ValueError(f"{name} must be one number or one for each of {len(otherwise)} bands, got {len(values)}")
    if name == "gain" and not (values > 0).all():
        raise ValueError(f"gain must be positive, got {values.min():g}")
    return np.broadcast_to(values, len(otherwise)).tolist()


def _noise_of(
    sky_rms: ArrayLike | None, opened: list[_Opened], bands: int, shape: tuple[int, int], unit: str
) -> list[float | NDArray | None]:
    if sky_rms is None:
        return [band.rms for band in opened]
    if isinstance(sky_rms, (str, PathLike)):
        sky_rms = read_map(sky_rms, shape)
    if isinstance(sky_rms, Quantity):
        sky_rms = sky_rms.to_value(unit) if unit else sky_rms.value
    noise = np.ma.filled(
        np.ma.asarray(sky_rms.cpu() if isinstance(sky_rms, Tensor) else sky_rms).astype(np.float64), np.nan
    )
    if noise.shape not in {(), (bands,), shape, (bands, *shape)}:
        raise ValueError(
            f"sky_rms must be a number, one per band, or a map of the image's shape {shape}, got shape {noise.shape}"
        )
    if not (np.isfinite(noise) & (noise > 0)).any() or (noise.ndim < 2 and not (noise > 0).all()):
        raise ValueError(f"sky_rms must be positive and finite, got {noise.flat[0]:g}")
    if noise.ndim < 2:
        return np.broadcast_to(noise, bands).tolist()
    return list(np.broadcast_to(noise, (bands, *shape)))


def _mask_of(mask: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    bad = np.asarray(mask)
    if bad.shape != shape:
        raise ValueError(f"mask must have the image's shape {shape}, got {bad.shape}")
    return bad != 0


def _joined(first: NDArray | None, second: NDArray | None) -> NDArray | None:
    return first if second is None else second if first is None else first | second


def _pixel_scale(wcs: WCS | None, psf: object, notes: list[str]) -> float:
    if isinstance(psf, str) and psf in CAMERAS:
        return CAMERAS[psf]().pixel_scale
    if wcs is not None and wcs.has_celestial:
        return 3600 * float(np.sqrt(proj_plane_pixel_area(wcs.celestial)))
    notes.append("without world coordinates, sizes are in pixels")
    return 1.0


def _kernels(bands: list[BandPixels], camera: Instrument | None, notes: list[str]) -> list[Tensor | None]:
    if camera is not None:
        return [camera.noise_kernel] * len(bands)
    kernels = []
    for band in bands:
        try:
            kernels.append(torch.as_tensor(estimate_noise_kernel(band.middle())).float())
        except ValueError:
            notes.append("the noise is taken as white, as there is too little blank sky to measure its correlation")
            kernels.append(None)
    return kernels


def _describe(
    bands: list[BandPixels], kernels: list[Tensor | None], exposures: list[float | None], waves: list[float | None]
) -> Tensor:
    rows = []
    for band, kernel, exposure, wave in zip(bands, kernels, exposures, waves, strict=True):
        photon = 0.0
        if exposure is not None and math.isfinite(exposure):
            rms = float(np.nanmedian(band.noise_at(np.array([band.shape[1] / 2]), np.array([band.shape[0] / 2]))))
            photon = 1 / (exposure * rms * correlation_sum(kernel))
        shaped = None if kernel is None else kernel[None, None]
        known = math.nan if wave is None else float(wave)
        rows.append(noise_numbers(shaped, torch.tensor([[photon]]), torch.tensor([[known]]))[0, 0])
    return torch.stack(rows)
