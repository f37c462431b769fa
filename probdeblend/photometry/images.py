"""FITS images and PSFs, checked as they are read, and squares cut out of images."""

import contextlib
import gzip
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import SEEK_END, PathLike
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.nddata import NoOverlapError, overlap_slices
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..scene import ALONE, PIXEL_SCALE_TOLERANCE

__all__ = ["FieldImage", "check_psf", "cut_stamps", "flux_unit", "open_mosaic", "read_image", "read_psf", "uncovered"]

ZERO_POINT_CARDS = ("ABMAGZP", "MAGZERO", "MAGZPT", "ZEROPOINT")
PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXSCL", "PIXSCAL")
SIP_CARD = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)")
WCS_CARD = re.compile(r"(WCSAXES|(CRPIX|CRVAL|CDELT|CROTA)\d+|(CD|PC)\d+_\d+)[A-Z]?")
ZERO_POINT_TOLERANCE = 0.02  # mag
MOST_AXES = 9  # of world coordinates; wcslib allocates the square of what a header claims
GZIP = b"\x1f\x8b"
LARGEST_CHECKED = 2**31  # bytes of a file whose checksums are verified, for which astropy loads whole HDUs
NO_COVERAGE = np.ones((5, 5), dtype=bool)  # smallest block of exact zeros that means no exposure


@dataclass(frozen=True, eq=False)
class FieldImage:
    """An image in a FITS file.

    Parameters
    ----------
    name
        Name of the file.
    data
        Pixels ``(y, x)`` as native 32- or 64-bit floats; for a mosaic the section of its HDU, which reads pixels when
        they are needed.
    wcs
        Celestial world coordinates, or None if the header has none.
    pixel_scale
        Size of a pixel in arcsec from `wcs`, or None.
    zero_point
        AB magnitude of a source whose pixels add up to one, from the unit or the header, or None.
    unit
        Unit of a pixel, in astropy's spelling if astropy knows it; may be empty.
    header
        Header of the image's HDU.
    notes
        What was left out of the header and why, one sentence each.
    """

    name: str
    data: NDArray | fits.Section
    wcs: WCS | None
    pixel_scale: float | None
    zero_point: float | None
    unit: str
    header: fits.Header
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of pixels along each axis."""
        return self.data.shape

    def window(self, x0: int, y0: int, size: int) -> NDArray[np.float64]:
        """Read the square of `size` pixels ``(y, x)`` that begins at pixel x0, y0, and may reach over the edge.

        Pixels are NaN beyond the image and where blocks of exact zeros mean that there is no coverage.

        Parameters
        ----------
        x0
            First column.
        y0
            First row.
        size
            Pixels per side.

        Returns
        -------
        ndarray
            The pixels.
        """
        # With a margin, so that blocks of zeros are recognized wherever a window ends.
        margin = len(NO_COVERAGE) - 1
        (wide,) = cut_stamps(self.data, (x0 - margin, y0 - margin), size + 2 * margin).astype(np.float64)
        wide[uncovered(wide) | ~np.isfinite(wide)] = np.nan
        return wide[margin:-margin, margin:-margin]


def read_image(path: str | PathLike[str], *, hdu: int | str | None = None) -> FieldImage:
    """Read a two-dimensional image.

    SIP terms are dropped unless CTYPE announces them: some mosaics keep those of their input exposures, which would
    shift positions by arcseconds to arcminutes. The zero point is that of the unit, if it is one of flux density (nJy,
    nanomaggies, MJy/sr with world coordinates); else it comes from one of the cards ABMAGZP, MAGZERO, MAGZPT and
    ZEROPOINT, or from HST's PHOTFLAM and PHOTPLAM if pixels are in electrons or counts per second. Such a card that
    holds no positive number is left out and noted.

    Parameters
    ----------
    path
        FITS file, possibly compressed; ``field.fits[SCI,2]`` chooses an HDU as `hdu` does.
    hdu
        Number or name of the HDU, or name and version ("SCI,2"); None takes the only one that holds an image.

    Returns
    -------
    FieldImage
        The image.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, disagrees with its checksums or is not FITS; if it holds no image, or several and none
        is chosen; if the image is not two-dimensional; or if a card of its world coordinates is not a number.
    """
    with open_mosaic(path, hdu=hdu) as image, _readable(_split(path, hdu)[0]):
        data = image.data[:, :]
    return replace(image, data=data.astype(np.result_type(data.dtype.newbyteorder("="), np.float32)))


def read_psf(path: str | PathLike[str], *, pixel_scale: float | None = None) -> np.ndarray:
    """Read an effective PSF (pixel included) and normalize it.

    A PSF with an even number of pixels per side is trimmed to the odd square around its brightest pixel.

    Parameters
    ----------
    path
        FITS file with one image.
    pixel_scale
        Pixel size in arcsec at which the PSF must be sampled; checked if the header gives one.

    Returns
    -------
    numpy.ndarray
        The PSF ``(y, x)`` with an odd number of pixels per side and unit sum.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_image`, and if the PSF is not square, not finite, without a positive sum, more than a pixel off its
        center, or sampled at another scale.
    """
    image = read_image(path)
    psf = image.data.astype(float)
    check_psf(f"{path}: the PSF", psf)
    stated = (_number(path, image.header, card) for card in PIXEL_SCALE_CARDS)
    scale = next(filter(None, stated), image.pixel_scale)
    if pixel_scale and scale and abs(scale / pixel_scale - 1) > PIXEL_SCALE_TOLERANCE:
        raise ValueError(f'{path}: the PSF must be sampled at {pixel_scale:.4g}" per pixel, got {scale:.4g}"')
    if (side := len(psf)) % 2 == 0:
        start_y, start_x = np.array(np.unravel_index(psf.argmax(), psf.shape)) - (side // 2 - 1)
        psf = psf[start_y : start_y + side - 1, start_x : start_x + side - 1]
    return psf / psf.sum()


def check_psf(name: str, psf: NDArray) -> None:
    """Refuse a PSF ``(y, x)`` that is not square, finite and centered, or has no positive sum."""
    side = max(psf.shape, default=0)
    if psf.shape != (side, side):
        raise ValueError(f"{name} must be square, got shape {psf.shape}")
    if not np.isfinite(psf).all() or not psf.sum() > 0:
        raise ValueError(f"{name} must be finite with a positive sum, got {psf.sum():g}")
    off = np.abs(np.array(np.unravel_index(psf.argmax(), psf.shape)) - (side - 1) / 2).max()
    if off > 1:
        raise ValueError(f"{name} must have its brightest pixel within one of the middle, got {off:g} off")


@contextlib.contextmanager
def open_mosaic(path: str | PathLike[str], *, hdu: int | str | None = None) -> Iterator[FieldImage]:
    """Open a two-dimensional image to read windows from it; of an uncompressed file nothing else is loaded.

    Parameters
    ----------
    path, hdu
        As for `read_image`.

    Yields
    ------
    FieldImage
        The image, of which `FieldImage.window` reads a part.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_image`, but for the values of the pixels.
    """
    path, hdu = _split(path, hdu)
    with contextlib.ExitStack() as stack:
        with _readable(path):
            # Not mapped, as astropy refuses to map integers that are to be scaled.
            file = stack.enter_context(Path(path).open("rb"))
            if file.read(len(GZIP)) == GZIP:
                with gzip.open(path) as packed:
                    packed.seek(0, SEEK_END)  # where its checksum is
            file.seek(0)
            check = Path(path).stat().st_size < LARGEST_CHECKED
            hdus = stack.enter_context(fits.open(file, memmap=False, lazy_load_hdus=False, checksum=check))
            chosen = _choose(path, hdus, hdu)
            if max(chosen.shape[:-2], default=1) > 1:
                raise ValueError(f"{path}: the image must have two dimensions (y, x), got shape {chosen.shape}")
            pixels = chosen.section if len(chosen.shape) == 2 else chosen.data.reshape(chosen.shape[-2:])
            mosaic = _described(path, hdus, chosen, pixels)
        yield mosaic


def cut_stamps(image: NDArray | fits.Section, first_pixels: ArrayLike, size: int) -> NDArray[np.floating]:
    """Cut squares ``(square, y, x)`` of `size` pixels out of an image, NaN beyond its edges.

    `first_pixels` holds the x and y of each square's first pixel ``(square, 2)``. Of an HDU's ``section``, only the
    pixels of the squares are read.
    """
    corners = np.asarray(first_pixels).reshape(-1, 2)
    kind = np.result_type(image.dtype.newbyteorder("="), np.float32)
    stamps = np.full((len(corners), size, size), np.nan, dtype=kind)
    for stamp, corner in zip(stamps, corners, strict=True):
        with contextlib.suppress(NoOverlapError):
            there, here = overlap_slices(image.shape, stamp.shape, corner[::-1] + (size - 1) / 2, mode="partial")
            stamp[here] = image[there]
    return stamps


def uncovered(pixels: NDArray) -> NDArray[np.bool_]:
    """Return which pixels ``(y, x)`` no exposure covers: blocks of at least 5 x 5 exact zeros."""
    return ndimage.binary_opening(pixels == 0, NO_COVERAGE)


def flux_unit(unit: str, pixel_scale: float) -> tuple[str, float, float | None]:
    """Return the unit of fluxes in an image, the factor from sums of pixels to it, and its AB magnitude or None.

    Surface brightness is multiplied by the solid angle of a pixel of `pixel_scale` arcsec. The factor is NaN where
    that is NaN, and for units that are not linear in flux or are per beam.
    """
    flux, factor = u.Unit(unit, parse_strict="silent"), 1.0
    bases = getattr(flux, "function_unit", flux).decompose().bases
    if u.dex in bases or u.beam in bases:
        return unit, math.nan, None
    if u.rad in bases:
        brightness = flux
        flux = min((flux * angle for angle in (u.sr, u.arcsec**2, u.deg**2)), key=lambda one: len(one.bases))
        flux = u.uJy if flux.is_equivalent(u.Jy) else flux
        unit, factor = flux.to_string(), (brightness * u.arcsec**2).to(flux) * pixel_scale**2
    if not flux.is_equivalent(u.AB, maggies := u.zero_point_flux(1 * u.AB)):
        return unit, factor, None
    return unit, factor, -2.5 * math.log10(flux.to(u.AB, equivalencies=maggies))


def _split(path: str | PathLike[str], hdu: int | str | None) -> tuple[str | PathLike[str], int | str | None]:
    """Take the HDU from a path such as ``field.fits[SCI,2]``."""
    match = re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(path))
    return (match[1], match[2]) if match and hdu is None and not Path(path).exists() else (path, hdu)


@contextlib.contextmanager
def _readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever astropy raises while it reads a FITS file into one sentence."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fatal = r"(?s).*(truncated|[Mm]issing END card|sum verification failed)"
        warnings.filterwarnings("error", fatal, AstropyUserWarning)
        try:
            yield
        except Exception as error:  # what astropy raises here depends on the damage
            if str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path}: not a FITS file, or damaged ({' '.join(str(error).split())})") from error


def _choose(path: str | PathLike[str], hdus: fits.HDUList, hdu: int | str | None) -> fits.ImageHDU:
    """Return the HDU with that number or name, or the only one that holds an image."""
    images = {n: item for n, item in enumerate(hdus) if item.is_image and item.header.get("NAXIS", 0) >= 2}
    if not images:
        raise ValueError(f"{path}: no HDU holds an image")
    name, _, version = str(hdu).upper().replace(" ", "").partition(",")
    named = [n for n, item in images.items() if name == item.name.upper() and version in ("", str(item.ver))]
    chosen = list(images) if hdu is None else [int(name)] if name.isdecimal() and int(name) in images else named
    if len(chosen) == 1:
        return images[chosen[0]]
    sizes = ((n, item, " x ".join(map(str, item.shape[::-1]))) for n, item in images.items())
    described = "; ".join(f"{n} or {item.name},{item.ver} ({size})" for n, item, size in sizes)
    raise ValueError(f"{path}: hdu must be one of {described}, got {hdu}")


def _described(path: str | PathLike[str], hdus: fits.HDUList, chosen: fits.ImageHDU, data: NDArray) -> FieldImage:
    notes: list[str] = []
    wcs, unit = _celestial(path, chosen.header, hdus), _unit(chosen.header.get("BUNIT"))
    scale = None if wcs is None else 3600 * float(np.sqrt(proj_plane_pixel_area(wcs)))
    stated = (_zero_point(path, hdu.header, unit, notes) for hdu in hdus if hdu in (chosen, hdus[0]))
    zero_point = next(filter(None, stated), None)
    _, factor, fixed = flux_unit(unit, scale or math.nan)
    if fixed is not None and not math.isnan(factor):
        fixed += -2.5 * math.log10(factor)
        if zero_point is not None and abs(zero_point - fixed) > ZERO_POINT_TOLERANCE:
            notes.append(f"{path}: the zero point {zero_point:g} is not used, as the unit {unit} has {fixed:.4g}")
        zero_point = fixed
    return FieldImage(Path(path).name, data, wcs, scale, zero_point, unit, chosen.header, tuple(notes))


def _number(path: str | PathLike[str], header: fits.Header, card: str, notes: list[str] | None = None) -> float | None:
    """Return the number that a card holds, or None without the card; refuse or note what is none."""
    if card not in header:
        return None
    try:
        value = header[card]
    except VerifyError:
        value = header.cards[card].image.partition("=")[2].strip(" '")
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if known and (value > 0 or WCS_CARD.fullmatch(card)):
        return float(value)
    wrong = f"{path}: {card} must be a {'' if WCS_CARD.fullmatch(card) else 'positive '}number, got {value!r}"
    if notes is None:
        raise ValueError(wrong)
    notes.append(f"{wrong}, so it is not used")
    return None


def _celestial(path: str | PathLike[str], header: fits.Header, hdus: fits.HDUList) -> WCS | None:
    header = header.copy()
    for card in filter(WCS_CARD.fullmatch, header):
        value = _number(path, header, card)
        axes = f"{value:.0f}" if card.startswith("WCSAXES") else card
        if max(map(int, re.findall(r"\d+", axes))) > MOST_AXES:
            raise ValueError(f"{path}: {card} must be of at most {MOST_AXES} axes, got {value:g}")
    if not str(header.get("CTYPE1", "")).strip().endswith("-SIP"):
        for card in [name for name in header if SIP_CARD.fullmatch(name)]:
            del header[card]
    try:
        wcs = WCS(header, fobj=hdus, naxis=2)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return wcs if wcs.has_celestial else None


def _unit(text: object) -> str:
    raw = str(text or "").strip()
    spelled = re.sub(r"\be-", "electron", re.sub(r"\b(electron|count)s\b", r"\1", raw.lower()))
    for candidate in (raw, spelled):
        unit = u.Unit(candidate, parse_strict="silent")
        if not isinstance(unit, u.UnrecognizedUnit):
            return unit.to_string()
    return raw


def _zero_point(path: str | PathLike[str], header: fits.Header, unit: str, notes: list[str]) -> float | None:
    cards = (*ZERO_POINT_CARDS, "PHOTFLAM", "PHOTPLAM")
    *stated, flam, plam = (_number(path, header, card, notes) for card in cards)
    if unit in ("electron / s", "ct / s") and flam and plam:
        stated.append(-2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408)
    return next(filter(None, stated), None)
