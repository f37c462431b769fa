"""The one door for images: whatever form users have them in becomes pixels over sky noise, with all that goes along.

An image may be an array, a masked array, a `Quantity`, an `NDData` or `CCDData`, or a FITS file; several bands are one
array with three axes, or a list. What is not given is taken from the image's own metadata or measured in it, and what
was assumed is kept as sentences. Large files are read in blocks, each with its own sky, when a tile needs them.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
import torch
from astropy import units as u
from astropy.units import Quantity
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area, proj_plane_pixel_scales
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from ..photometry.headers import ZERO_POINT_TOLERANCE, Parts, deviations, flux_unit
from ..photometry.images import FieldImage, read_image
from ..photometry.noise import noise_numbers
from ..photometry.sky import estimate_noise_kernel, middle_of
from ..scene import PIXEL_SCALE_TOLERANCE, correlation_sum, drizzle_kernel
from ..simulation.cameras import Camera
from .bands import Image, bad_pixels, bands_of, plain
from .pixels import CHECKED, LARGEST_MISFIT, SMALLEST_SKY, BandPixels, bridged, numbers
from .psfs import REACH, PsfLike, band_psfs, camera_of, gaussian, smooth, widening

__all__ = ["Image", "Observation", "observe", "widened"]

COUNTS = (u.electron, u.ct, u.photon, u.adu, u.DN, u.one)
COVERED = (
    "more than half of the middle of the image is light: its sky is uncertain, and very large sources are not found"
)
SQUARE = 0.01  # difference of the sides of a pixel that is worth a note
LARGEST_RATIO = 1e7  # times the sky noise; beyond it a pixel is bad, and would drown its tile in rounding errors
TOO_BRIGHT = f"pixels above {LARGEST_RATIO:,.0f} times the sky noise are bad: sources there may be missing"


@dataclass(eq=False)
class Observation:
    """An image as the network and the catalog need it.

    Parameters
    ----------
    shape
        Rows and columns.
    psf
        Effective PSFs ``(band, y, x)``.
    noise_kernel
        Kernels ``(band, y, x)`` that turn white noise into that of the sky.
    photon
        Variance that light of one sky rms in a pixel adds, over that of the sky ``(band,)``.
    wavelength
        In micron ``(band,)``; NaN where unknown.
    window
        Returns pixels over sky noise and good pixels ``(band, y, x)`` of rows and columns.
    smoothing, noise_ratio
        Gaussians ``(band, y, x)`` that bands are smoothed with for the network, if any is, and the sky noise that is
        left of that of the image's pixels ``(band,)``.
    raw
        Returns pixels as they are in the image, for rows and columns of each band, NaN where bad; None if `window`
        returns them, over a number.
    noise_map
        Returns the noise that is given for rows and columns, for each band a number or a map.
    sky_rms
        Returns the sky noise at positions x and y ``(source, band)`` in `unit`.
    bands
        Their names.
    pixel_scale
        In arcsec; 1 where it is not known.
    pixel_flux
        Flux of a pixel whose value in the image is 1.
    unit, zero_point, wcs
        Of fluxes, and world coordinates; an empty unit, NaN and None where they are not known.
    notes
        What was measured or assumed, one sentence each.
    """

    shape: tuple[int, int]
    psf: Tensor
    noise_kernel: Tensor
    photon: Tensor
    wavelength: Tensor
    window: Callable[[slice, slice], tuple[Tensor, Tensor]]
    sky_rms: Callable[[NDArray, NDArray], NDArray[np.float64]]
    bands: tuple[str, ...] = ("",)
    pixel_scale: float = 1.0
    pixel_flux: float = 1.0
    unit: str = ""
    zero_point: tuple[float, ...] = ()
    wcs: WCS | None = None
    notes: list[str] = field(default_factory=list)
    raw: Callable[[slice, slice], list[NDArray[np.float64]]] | None = None
    noise_map: Callable[[slice, slice], list[NDArray[np.float64]]] = lambda *_: []
    smoothing: Tensor | None = None
    noise_ratio: NDArray[np.float32] | float = 1.0

    @property
    def noise(self) -> Tensor:
        """Numbers that describe noise and color to a network ``(band, 5)``."""
        return noise_numbers(self.noise_kernel, self.photon, self.wavelength).float()

    def network_window(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return pixels as the network sees them: interpolated across narrow defects, then smoothed."""
        reach = 0 if self.smoothing is None else REACH
        ratio, good = (v.cpu() for v in self.window(*(slice(s.start - reach, s.stop + reach) for s in (rows, columns))))
        pixels, known = map(torch.from_numpy, bridged(ratio.numpy(), good.numpy() > 0))
        if self.smoothing is None:
            return pixels, known.float()
        means = smooth(known * pixels, self.smoothing) / smooth(known.float(), self.smoothing).clamp(min=1e-6)
        here = (..., slice(reach, -reach), slice(reach, -reach))
        return (known * means)[here] / torch.as_tensor(self.noise_ratio)[:, None, None], known.float()[here]


@contextlib.contextmanager
def observe(  # noqa: PLR0913
    image: Image | Sequence[Image],
    *,
    psf: PsfLike | None = None,
    sky_rms: ArrayLike | None = None,
    wcs: WCS | None = None,
    zero_point: float | Sequence[float] | None = None,
    gain: float | Sequence[float] | None = None,
    mask: ArrayLike | None = None,
    dq: str | int | Sequence[str | int] | None = None,
    wavelength: float | Sequence[float] | None = None,
) -> Iterator[Observation]:
    """Open an image for deblending; the arguments are those of `probdeblend.deblend`."""
    with contextlib.ExitStack() as stack:
        opened = bands_of(image, dq, stack)
        shape = _common("shape", [tuple(band.shape) for band in opened])
        unit = _common("unit", [band.unit for band in opened])
        if len(shape) != 2 or not min(shape):
            raise ValueError(f"image must have the axes (y, x) or (band, y, x), got shape {shape}")
        wcs = wcs if wcs is not None else next((band.wcs for band in opened if band.wcs is not None), None)
        if not isinstance(wcs, WCS | None):
            raise TypeError(f"wcs must be an astropy.wcs.WCS, got {type(wcs).__name__}")
        notes = [note for band in opened for note in band.notes]
        noise, masks = _noise_of(sky_rms, opened, shape, unit, notes), _masks(mask, len(opened), shape)
        bands = [_checked(BandPixels(one.data, *how), notes) for one, *how in zip(opened, masks, noise, strict=True)]
        notes += [_not_subtracted(band) for band in bands if not band.background]
        notes += [COVERED for band in bands if band.covered]
        own = [band.psf for band in opened]
        if psf is None and all(array is not None for array in own):
            psf = own
            notes.append("the PSF is that of the image itself")
        camera = camera_of(psf)
        scale = _pixel_scale(wcs, camera, notes)
        flux, factor, zero_points = _fluxes(unit, scale, zero_point, [band.zero_point for band in opened], notes)
        kernels = [_kernel(band, camera, notes) for band in bands]
        gains = _gains(gain, opened, unit, notes if camera is None else [])
        photon = [_photon(*band, camera) for band in zip(bands, kernels, gains, strict=True)]
        usual = math.nan if camera is None else float(camera.wavelength[0])
        waves = _per_band("wavelength", wavelength, [usual] * len(bands), u.micron)
        yield Observation(
            shape=shape,
            psf=band_psfs(psf, bands, scale or 1.0, notes),
            noise_kernel=torch.stack(kernels),
            photon=torch.tensor(photon, dtype=torch.float32),
            wavelength=torch.tensor(waves, dtype=torch.float32),
            window=lambda rows, columns: _window(bands, rows, columns, notes),
            raw=lambda *part: [band.raw(part) for band in bands],
            noise_map=lambda *part: [band.given_noise(part) for band in bands],
            sky_rms=lambda x, y: factor * np.stack([band.noise_at(x, y) for band in bands], -1),
            bands=_names([band.name for band in opened]),
            pixel_scale=scale or 1.0,
            pixel_flux=factor,
            unit=flux,
            zero_point=tuple(math.nan if value is None else float(value) for value in zero_points),
            wcs=wcs,
            notes=notes,
        )


def _common(name: str, values: list) -> object:
    if len(set(values)) > 1:
        raise ValueError(f"bands must have one {name}, got {', '.join(sorted(map(repr, set(values))))}")
    return values[0]


def _names(given: list[str]) -> tuple[str, ...]:
    """Names of the bands, numbers where files do not tell them apart."""
    given = [re.sub(r"\.fits?(\.\w+)?$", "", name) for name in given]
    if len(given) == 1:
        return ("",)
    return tuple(given) if all(given) and len(set(given)) == len(given) else tuple(map(str, range(len(given))))


def _array(name: str, given: object, *units: u.UnitBase) -> np.ma.MaskedArray:
    """Return numbers as an array, those of a Quantity in the first unit that it can be converted to."""
    if not isinstance(given := plain(name, given), Quantity):
        return numbers(name, given).astype(np.float64)
    for unit in units:
        with contextlib.suppress(ValueError):  # a unit that astropy does not know raises no UnitsError
            return numbers(name, given.to_value(unit, u.spectral())).astype(np.float64)
    raise ValueError(f"{name} must be in {' or '.join(filter(None, map(str, units))) or 'no unit'}, got {given.unit}")


def _per_band(name: str, given: object, otherwise: list, *units: u.UnitBase) -> list:
    """One value per band: what is given, or what is known otherwise."""
    if given is None:
        return otherwise
    values = _array(name, given, *units)
    if values.shape not in {(), (1,), (len(otherwise),)}:
        raise ValueError(f"{name} must be one number or one for each of {len(otherwise)} bands, got {given}")
    if not np.isfinite(values).all() or (name != "zero_point" and not (values > 0).all()):
        raise ValueError(f"{name} must be {'finite' if name == 'zero_point' else 'positive'}, got {given}")
    return np.broadcast_to(values, len(otherwise)).tolist()


def _noise_of(sky_rms: object, opened: list[FieldImage], shape: tuple[int, int], unit: str, notes: list[str]) -> list:
    """Sky noise of each band: a number, a map, or None where it is to be measured."""
    if sky_rms is None:
        return [band.noise for band in opened]
    if isinstance(sky_rms, (str, PathLike)):
        file = read_image(sky_rms, kind="ERR")
        sky_rms = deviations("sky_rms", file.header, unit, notes)(file.data)
    noise = _array("sky_rms", sky_rms, u.Unit(unit, parse_strict="silent")).filled(np.nan)
    if noise.shape not in {(), (len(opened),), shape, (len(opened), *shape)}:
        form = f"a number, one for each of {len(opened)} bands, or a map of the image's shape {shape}"
        raise ValueError(f"sky_rms must be {form}, got shape {noise.shape}")
    good = np.isfinite(noise) & (noise > 0)
    if not (good.all() if noise.ndim < 2 else good.any()):
        raise ValueError(f"sky_rms must be positive and finite, got {noise[~good][0]:g}")
    return list(np.broadcast_to(noise, (len(opened), *(shape if noise.ndim > 1 else ()))))


def _masks(given: ArrayLike | None, bands: int, shape: tuple[int, int]) -> Sequence[NDArray[np.bool_] | None]:
    """Return the mask that is given for each band."""
    if given is None:
        return [None] * bands
    given = read_image(given, kind="DQ").data if isinstance(given, (str, PathLike)) else given
    return np.broadcast_to(bad_pixels("mask", given, shape, (bands, *shape)), (bands, *shape))


def _checked(band: BandPixels, notes: list[str]) -> BandPixels:
    """Refuse noise that is not the scatter of blank sky; scale that of the image's own file to it, or leave it out.

    Such a map may be corrected for the correlation between pixels, which leaves its level off.
    """
    if not isinstance(noise := band.rms, Parts):
        band.check_noise(notes)
        return band
    factor, known = band.scatter()[0], np.isfinite(band.given_noise(middle_of(band.shape, CHECKED))).any()
    factor = 1.0 if known and np.isnan(factor) else factor  # there is too little blank sky to tell
    if not 1 / LARGEST_MISFIT < factor < LARGEST_MISFIT:
        notes.append(f"the sky noise is measured, as {noise.name} is far from the scatter of blank sky")
        return replace(band, rms=None)
    notes.append(f"the sky noise is {noise.name}, times {factor:.2f} to be the scatter of blank sky")
    return replace(band, rms=replace(noise, read=lambda part: factor * noise[part]))


def _gains(given: object, opened: list[FieldImage], unit: str, notes: list[str]) -> list[float | None]:
    """Return the counts per unit of the image for each band; None where they are not known."""
    if given is None:
        stated = [f"{band.gain:.6g}" for band in opened if band.gain]
        cards = f" (EXPTIME and GAIN would make it {', '.join(stated)})" if stated else ""
        notes.append(f"photon noise is taken as zero without gain, which is not read from headers{cards}")
    if isinstance(given := plain("gain", given), Quantity):
        pixel = u.Unit(unit, parse_strict="silent")
        if isinstance(pixel, u.UnrecognizedUnit):
            raise ValueError(f"gain must be a number for an image in {unit}, got {given}")
        given = _array("gain times image", given * pixel, *COUNTS)
    return _per_band("gain", given, [None] * len(opened))


def _fluxes(unit: str, scale: float | None, given: object, own: list, notes: list[str]) -> tuple[str, float, list]:
    """Return the unit of fluxes, the factor from sums of pixels to it, and the zero point of each band."""
    flux, factor, fixed = flux_unit(unit, scale or math.nan)
    if math.isnan(factor):
        kind = "of flux, or of surface brightness if the size of a pixel is known"
        raise ValueError(f"the unit of image must be {kind}, got {unit}")
    if flux != unit:
        notes.append(f"pixels in {unit} are multiplied by their area, so fluxes are in {flux}")
    if isinstance(u.Unit(unit, parse_strict="silent"), u.UnrecognizedUnit):
        notes.append(f"astropy does not know the unit {unit}, so fluxes are sums of pixels in it")
    points = _per_band("zero_point", given, own if fixed is None else [fixed] * len(own), u.ABmag, u.mag)
    if fixed is not None and any(abs(point - fixed) > ZERO_POINT_TOLERANCE for point in points):
        raise ValueError(f"zero_point must be {fixed:.4g}, that of {flux}, got {given}")
    return flux, factor, points


def _pixel_scale(wcs: WCS | None, camera: Camera | None, notes: list[str]) -> float | None:
    scale = None
    if wcs is not None and wcs.has_celestial:
        sides = 3600 * proj_plane_pixel_scales(wcs.celestial)
        scale = 3600 * float(np.sqrt(proj_plane_pixel_area(wcs.celestial)))
        if max(sides) > (1 + SQUARE) * min(sides):
            notes.append(f"pixels of {sides[0]:.4g} x {sides[1]:.4g} arcsec are taken as squares of their area")
    if camera is not None:
        if scale and abs(scale / camera.pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
            pixels = f"pixels of {camera.pixel_scale:.4g} arcsec for an image of {scale:.4g}"
            raise ValueError(f"psf must be that of the image, got a camera with {pixels}")
        size = "" if scale else f"pixels of {camera.pixel_scale:g} arcsec, "
        notes.append(
            f"{size}the correlation of the noise and, without a gain, photon noise are those of the PSF's camera"
        )
        return camera.pixel_scale
    if scale is None:
        notes.append("without world coordinates, sizes are in pixels")
    return scale


def _not_subtracted(band: BandPixels) -> str:
    """Say that the sky of a band is not subtracted, but for its level."""
    note = f"an image with fewer than {SMALLEST_SKY} x {SMALLEST_SKY} good pixels is taken as sky-subtracted"
    if band.level:
        level = "cannot be measured" if math.isnan(band.level) else f"is {band.level:.3g}, which is subtracted"
        note += f"; the level of its blank sky {level}"
    return note


def _kernel(band: BandPixels, camera: Camera | None, notes: list[str]) -> Tensor:
    if camera is not None:
        return camera.noise_kernel[0]
    try:
        return estimate_noise_kernel(band.middle()).float()
    except ValueError:
        notes.append("the noise is taken as white, as there is too little blank sky to measure its correlation")
        return drizzle_kernel(0.0)


def _photon(band: BandPixels, kernel: Tensor, gain: float | None, camera: Camera | None) -> float:
    """Variance that light of one sky rms in a pixel adds, over that of the sky; 0 where the gain is not known."""
    if gain is None and camera is not None:  # as usual for the camera, whatever the unit of the image
        return float(camera.photon[0])
    rms = float(band.noise_at(np.array([band.shape[1] / 2]), np.array([band.shape[0] / 2]))[0])
    counts = math.inf if gain is None or math.isnan(rms) else gain * rms
    return 1 / (counts * float(correlation_sum(kernel)))


def _window(bands: list[BandPixels], rows: slice, columns: slice, notes: list[str]) -> tuple[Tensor, Tensor]:
    ratio = torch.from_numpy(np.stack([band.window(rows, columns) for band in bands])).float()
    good = ratio.abs() < LARGEST_RATIO
    if TOO_BRIGHT not in notes and bool((ratio.abs() >= LARGEST_RATIO).any()):
        notes.append(TOO_BRIGHT)
    return ratio.where(good, 0.0), good.float()


def widened(seen: Observation, fwhm: tuple[float, float]) -> Observation:
    """Let a network see bands smoothed whose PSFs are narrower than its range of widths, and note it.

    Pixels and sky noise stay those of the image. Raises a ValueError for a PSF that smoothing cannot bring into the
    range.
    """
    sigma = [widening(psf, fwhm, band) for psf, band in zip(seen.psf.cpu(), seen.bands, strict=True)]
    if not any(sigma):
        return seen
    gaussians = torch.stack([gaussian(width) for width in sigma]).to(seen.psf)
    kernel = smooth(functional.pad(seen.noise_kernel, (REACH,) * 4), gaussians)
    ratio = (kernel.square().sum((1, 2)) / seen.noise_kernel.square().sum((1, 2))).sqrt()
    widths = ", ".join(f"{2.3548 * width:.2f}" for width in sigma)
    seen.notes.append(f"the PSF is narrow, so the network saw bands smoothed with Gaussians of {widths} pixels (FWHM)")

    changed = {"psf": smooth(seen.psf, gaussians), "noise_kernel": kernel, "photon": seen.photon * ratio}
    return replace(seen, smoothing=gaussians.cpu(), noise_ratio=ratio.cpu().numpy(), **changed)
