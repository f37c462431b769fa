"""FITS images and PSFs, checked as they are read, and squares cut out of images."""

import contextlib
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import NoOverlapError, overlap_slices
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..scene import PIXEL_SCALE_TOLERANCE

__all__ = ["FieldImage", "check_psf", "cut_stamps", "open_mosaic", "read_image", "read_psf", "uncovered"]

ZERO_POINT_CARDS = ("ABMAGZP", "MAGZERO", "MAGZPT", "ZEROPOINT")
PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXSCL", "PIXSCAL")
SIP_CARD = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)")
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
        AB magnitude of unit flux from the header, or None.
    unit
        Unit of a pixel, in astropy's spelling if astropy knows it; may be empty.
    header
        Header of the image's HDU.
    """

    name: str
    data: NDArray | fits.Section
    wcs: WCS | None
    pixel_scale: float | None
    zero_point: float | None
    unit: str
    header: fits.Header

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
    shift positions by arcseconds to arcminutes. The zero point comes from one of the cards ABMAGZP, MAGZERO, MAGZPT and
    ZEROPOINT, or from HST's PHOTFLAM and PHOTPLAM if pixels are in electrons or counts per second.

    Parameters
    ----------
    path
        FITS file, possibly compressed.
    hdu
        Number or name of the HDU; None takes the only one that holds an image.

    Returns
    -------
    FieldImage
        The image.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or not FITS; if it holds no image, or several and none is chosen; or if the image is not
        two-dimensional or has no finite, nonzero pixel.
    """
    with open_mosaic(path, hdu=hdu) as image, _readable(path):
        try:
            data = image.data[:, :]
        except Exception as error:  # what astropy raises here depends on the damage and on the compression
            raise ValueError(f"{path}: its pixels cannot be read ({error})") from error
    if not data[np.isfinite(data)].any():
        raise ValueError(f"{path}: the image has no finite pixel other than zero")
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
    scale = next((image.header[card] for card in PIXEL_SCALE_CARDS if card in image.header), image.pixel_scale)
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
    with contextlib.ExitStack() as stack:
        with _readable(path):
            # Not mapped, as astropy refuses to map integers that are to be scaled.
            file = stack.enter_context(Path(path).open("rb"))
            hdus = stack.enter_context(fits.open(file, memmap=False, lazy_load_hdus=False))
            chosen = _choose(path, hdus, hdu)
            if max(chosen.shape[:-2], default=1) > 1:
                raise ValueError(f"{path}: the image must have two dimensions (y, x), got shape {chosen.shape}")
            pixels = chosen.section if len(chosen.shape) == 2 else chosen.data.reshape(chosen.shape[-2:])
            mosaic = _described(Path(path).name, hdus, chosen, pixels)
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


@contextlib.contextmanager
def _readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever astropy raises while it reads a FITS file into one sentence."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", r"(?s).*(truncated|[Mm]issing END card)", AstropyUserWarning)
        try:
            yield
        except AstropyUserWarning as error:
            raise ValueError(f"{path}: the file is truncated") from error
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a FITS file, or damaged") from error


def _choose(path: str | PathLike[str], hdus: fits.HDUList, hdu: int | str | None) -> fits.ImageHDU:
    """Return the HDU with that number or name, or the only one that holds an image."""
    images = {n: item for n, item in enumerate(hdus) if item.is_image and item.header.get("NAXIS", 0) >= 2}
    if not images:
        raise ValueError(f"{path}: no HDU holds an image")
    chosen = [n for n, item in images.items() if hdu is None or str(hdu).upper() in (str(n), item.name.upper())]
    if len(chosen) == 1 or (chosen and hdu is not None):
        return images[chosen[0]]
    sizes = [(n, item.name, " x ".join(map(str, item.shape[::-1]))) for n, item in images.items()]
    described = ", ".join(f"{n} {name} ({size})".replace("  ", " ") for n, name, size in sizes)
    if hdu is None:
        raise ValueError(f"{path}: hdu must be given where several HDUs hold images, choose one of {described}")
    raise ValueError(f"{path}: HDU {hdu} holds no image, these do: {described}")


def _described(name: str, hdus: fits.HDUList, chosen: fits.ImageHDU, data: NDArray | fits.Section) -> FieldImage:
    wcs, unit = _celestial(chosen.header, hdus), _unit(chosen.header.get("BUNIT"))
    scale = None if wcs is None else 3600 * float(np.sqrt(proj_plane_pixel_area(wcs)))
    zero_point = _zero_point(chosen.header, unit) or _zero_point(hdus[0].header, unit)
    return FieldImage(name, data, wcs, scale, zero_point, unit, chosen.header)


def _celestial(header: fits.Header, hdus: fits.HDUList) -> WCS | None:
    header = header.copy()
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


def _zero_point(header: fits.Header, unit: str) -> float | None:
    numbers = {name: value for name, value in header.items() if isinstance(value, int | float) and value > 0}
    if stated := [numbers[name] for name in ZERO_POINT_CARDS if name in numbers]:
        return float(stated[0])
    if unit in ("electron / s", "ct / s") and {"PHOTFLAM", "PHOTPLAM"} <= numbers.keys():
        return float(-2.5 * np.log10(numbers["PHOTFLAM"]) - 5 * np.log10(numbers["PHOTPLAM"]) - 2.408)
    return None
