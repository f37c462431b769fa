"""The one door for images: whatever form users have them in becomes pixels over sky noise, with all that goes with them.

An image may be an array, a masked array, a `Quantity`, an `NDData` or `CCDData`, or a FITS file; several bands are one
array with three axes, or a list. What is not given is taken from the image's own metadata or measured in it, and what
was assumed is kept as sentences. Large files are read in blocks, each with its own sky, when a tile needs them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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

from ..photometry.detection import HOT, detect
from ..photometry.images import FieldImage, open_mosaic, read_map, uncovered
from ..photometry.noise import correlation_sum, noise_numbers
from ..photometry.sky import estimate_noise_kernel, sky_scatter, subtract_sky
from ..photometry.stars import measure_psf
from ..scene import Instrument

__all__ = ["Image", "Observation", "PsfLike", "observe"]

BLOCK = 2048  # pixels on a side with one sky
BLOCK_MARGIN = 128  # pixels around a block that its sky is measured in as well
SMALLEST_SKY = 192  # pixels on a side of the smallest image whose sky is measured
PSF_SIZE = 41  # pixels on a side of the PSFs that networks are trained with
CAMERAS = {"candels_f160w": Instrument.candels_f160w}
LARGEST_RATIO = 1e30  # times the sky noise; beyond it a pixel is bad

Image = ArrayLike | NDData | Quantity | str | PathLike
PsfLike = ArrayLike | str | PathLike | object


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
    sources: list[_Band]
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


@dataclass(eq=False)
class _Band:
    """The pixels of one band, whose sky is measured block by block."""

    pixels: NDArray | fits.Section
    mask: NDArray[np.bool_] | None
    rms: float | NDArray | None
    background: bool

    def __post_init__(self) -> None:
        self.shape = tuple(self.pixels.shape)
        self.block = lru_cache(maxsize=4)(self._block)

    def raw(self, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Pixels of a part of the image, NaN where bad."""
        values = np.ma.filled(np.ma.asarray(self.pixels[rows, columns]).astype(np.float64), np.nan)
        bad = uncovered(values) | ~np.isfinite(values)
        if self.mask is not None:
            bad |= np.asarray(self.mask[rows, columns], dtype=bool)
        return np.where(bad, np.nan, values)

    def _block(self, i: int, j: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pixels over sky noise, and the noise, of a block."""
        inner, outer = [], []
        for number, size in ((i, self.shape[0]), (j, self.shape[1])):
            start, stop = number * BLOCK, min((number + 1) * BLOCK, size)
            low, high = max(start - BLOCK_MARGIN, 0), min(stop + BLOCK_MARGIN, size)
            outer.append(slice(low, high))
            inner.append(slice(start - low, stop - low))
        pixels = self.raw(*outer)
        noise = self._given_noise(outer)
        if not np.isfinite(pixels).any():
            blank = np.full_like(pixels, np.nan)[tuple(inner)].astype(np.float32)
            return blank, np.ones_like(blank)
        if self.background or noise is None:
            subtracted, scatter = _sky(pixels)
            pixels = subtracted if self.background else pixels
            noise = _measured_noise(pixels, scatter) if noise is None else noise
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = pixels / noise
        inner = tuple(inner)
        return ratio[inner].astype(np.float32), np.broadcast_to(noise, pixels.shape)[inner].astype(np.float64)

    def _given_noise(self, part: list[slice]) -> NDArray | None:
        if self.rms is None:
            return None
        if np.ndim(self.rms) == 0:
            return np.asarray(self.rms, dtype=np.float64)
        noise = np.asarray(self.rms[part[0], part[1]], dtype=np.float64)
        return np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)

    def window(self, rows: slice, columns: slice) -> tuple[NDArray[np.float32], NDArray]:
        """Pixels over sky noise and the noise of a part of the image, NaN beyond its edge."""
        ratio = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, dtype=np.float32)
        noise = np.full(ratio.shape, np.nan)
        for i in range(rows.start // BLOCK, (min(rows.stop, self.shape[0]) - 1) // BLOCK + 1):
            for j in range(columns.start // BLOCK, (min(columns.stop, self.shape[1]) - 1) // BLOCK + 1):
                block = self.block(i, j)
                here, there = [], []
                for number, side, size in ((i, rows, block[0].shape[0]), (j, columns, block[0].shape[1])):
                    start = number * BLOCK
                    low, high = max(side.start, start), min(side.stop, start + size)
                    here.append(slice(low - side.start, high - side.start))
                    there.append(slice(low - start, high - start))
                ratio[tuple(here)], noise[tuple(here)] = block[0][tuple(there)], block[1][tuple(there)]
        return ratio, noise

    def noise_at(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Sky noise at positions; where it is not known, that of the nearest good pixels' median."""
        if self.rms is not None and np.ndim(self.rms) == 0:
            return np.full(len(x), float(self.rms))
        column = np.clip(np.floor(x + 0.5).astype(int), 0, self.shape[1] - 1)
        row = np.clip(np.floor(y + 0.5).astype(int), 0, self.shape[0] - 1)
        values = np.empty(len(x))
        blocks = np.stack([row // BLOCK, column // BLOCK], -1)
        for i, j in np.unique(blocks, axis=0) if len(x) else []:
            here = (blocks == (i, j)).all(1)
            noise = self.block(int(i), int(j))[1]
            found = noise[row[here] - i * BLOCK, column[here] - j * BLOCK]
            values[here] = np.where(np.isfinite(found), found, np.nanmedian(noise))
        return values


def _sky(pixels: NDArray) -> tuple[NDArray, NDArray]:
    try:
        return subtract_sky(pixels)
    except ValueError as error:
        raise ValueError(f"sky_rms must be given where the sky cannot be measured: {error}") from None


def _measured_noise(pixels: NDArray, scatter: NDArray) -> NDArray:
    """Scale the local scatter of the sky to that of blank pixels, once the sources are known."""
    if not (scatter > 0).all():
        raise ValueError("sky_rms must be given where the sky has no scatter, got None")
    found = detect(pixels, scatter, **HOT).segmentation
    with contextlib.suppress(ValueError):
        factor = sky_scatter(pixels / scatter, found)
        return scatter * factor if factor > 0 else scatter
    return scatter


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
            _Band(band.data, _joined(bad, band.mask), rms, background) for band, rms in zip(opened, noise, strict=True)
        ]
        scale = _pixel_scale(wcs, psf, notes)
        camera = CAMERAS[psf]() if isinstance(psf, str) and psf in CAMERAS else None
        kernels = _kernels(bands, camera, notes)
        psfs = _psfs(psf, bands, scale, notes)
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


def _sample(band: _Band) -> NDArray[np.float64]:
    """Pixels over sky noise of the middle of an image, at most one block."""
    sides = []
    for size in band.shape:
        start = max((size - BLOCK) // 2, 0)
        sides.append(slice(start, min(start + BLOCK, size)))
    return band.window(*sides)[0].astype(np.float64)


def _kernels(bands: list[_Band], camera: Instrument | None, notes: list[str]) -> list[Tensor | None]:
    if camera is not None:
        return [camera.noise_kernel] * len(bands)
    kernels = []
    for band in bands:
        try:
            kernels.append(torch.as_tensor(estimate_noise_kernel(_sample(band))).float())
        except ValueError:
            notes.append("the noise is taken as white, as there is too little blank sky to measure its correlation")
            kernels.append(None)
    return kernels


def _describe(
    bands: list[_Band], kernels: list[Tensor | None], exposures: list[float | None], waves: list[float | None]
) -> Tensor:
    rows = []
    for band, kernel, exposure, wave in zip(bands, kernels, exposures, waves, strict=True):
        photon = 0.0
        if exposure is not None and math.isfinite(exposure):
            rms = float(np.nanmedian(band.noise_at(np.array([band.shape[1] / 2]), np.array([band.shape[0] / 2]))))
            photon = 1 / (exposure * rms * correlation_sum(kernel))
        kernel = None if kernel is None else kernel[None, None]
        wave = math.nan if wave is None else float(wave)
        rows.append(noise_numbers(kernel, torch.tensor([[photon]]), torch.tensor([[wave]]))[0, 0])
    return torch.stack(rows)


def _psfs(psf: PsfLike | None, bands: list[_Band], pixel_scale: float, notes: list[str]) -> Tensor:
    if psf is None:
        measured = []
        for band in bands:
            try:
                measured.append(measure_psf(_sample(band), 1.0))
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
        from ..photometry.images import read_psf

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
