"""FITS images and PSFs, checked as they are read, and squares cut out of images."""

import contextlib
import gzip
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from os import SEEK_END, PathLike
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.nddata import NoOverlapError, overlap_slices
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .._files import GZIP, check_file, readable
from ..scene import ALONE, PIXEL_SCALE_TOLERANCE
from .headers import Parts, choose, companions, described, number_of

__all__ = ["FieldImage", "check_psf", "cut_stamps", "open_mosaic", "read_image", "read_psf", "uncovered"]

PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXSCL", "PIXSCAL")
LARGEST_PACKED = 2**31  # bytes that a compressed file may hold, as they are held in memory
LARGEST_CHECKED = 2**31  # bytes of a file whose checksums are verified, for which astropy loads whole HDUs
LARGEST_SIDE = 2**18  # pixels; longer rows could not be read in blocks
OFF_CENTER = 0.3  # largest distance of a PSF's peak from the middle, over 1 / sqrt(sum of squares): coma moves it
NO_COVERAGE = np.ones((5, 5), dtype=bool)  # smallest block of exact zeros that means no exposure


@dataclass(frozen=True, eq=False)
class FieldImage:
    """An image, and what its file or container says of it.

    Parameters
    ----------
    name
        Name of the file.
    data
        Pixels ``(y, x)`` as native 32- or 64-bit floats; of a mosaic, parts of it, masked where the data
        quality is bad, which are read when they are needed.
    wcs
        Celestial world coordinates, or None if the header has none.
    pixel_scale
        Size of a pixel in arcsec from `wcs`, or None.
    zero_point
        AB magnitude of a source whose pixels add up to one, from the unit or the header, or None.
    unit
        Unit of a pixel, in astropy's spelling if astropy knows it; may be empty.
    header
        Header of the image's HDU, or None.
    notes
        What was taken from the file, and what was left out and why, one sentence each.
    noise
        Standard deviation of the sky in the image's unit, also in parts, or None.
    gain
        Counts per unit of the image that cards of the header state, or None.
    psf
        Effective PSF, or None.
    """

    name: str
    data: NDArray | Parts
    wcs: WCS | None = None
    pixel_scale: float | None = None
    zero_point: float | None = None
    unit: str = ""
    header: fits.Header | None = None
    notes: tuple[str, ...] = ()
    noise: NDArray | Parts | None = None
    gain: float | None = None
    psf: NDArray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of pixels along each axis."""
        return self.data.shape


def read_image(path: str | PathLike[str], *, hdu: int | str | None = None, kind: str = "SCI") -> FieldImage:
    """Read a two-dimensional image, without its noise; pixels of bad quality are NaN.

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
        Number or name of the HDU, or name and version ("SCI,2"); None takes the only one that holds an image, or that
        is named as `kind` is.
    kind
        "SCI" for an image, "ERR" for its noise, or "DQ" for its data quality.

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
    with open_mosaic(path, hdu=hdu, kind=kind) as image:
        data = image.data[:, :]
    data = data.astype(np.result_type(data.dtype.newbyteorder("="), np.float32))
    return replace(image, data=np.ma.filled(data, np.nan), noise=None)


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
        As for `read_image`, and if the PSF is not square, not finite, without a positive sum, clearly off its center,
        or sampled at another scale.
    """
    image = read_image(path)
    psf = image.data.astype(float)
    check_psf(f"{path}: the PSF", psf)
    stated = (number_of(path, image.header, card) for card in PIXEL_SCALE_CARDS)
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
    most = max(1.0, OFF_CENTER * psf.sum() / np.square(psf, dtype=float).sum() ** 0.5)
    if off > most:
        raise ValueError(f"{name} must have its brightest pixel within {most:.1f} of the middle, got {off:g} off")


@contextlib.contextmanager
def open_mosaic(
    path: str | PathLike[str], *, hdu: int | str | None = None, kind: str = "SCI", dq: object = None
) -> Iterator[FieldImage]:
    """Open a two-dimensional image to read windows from it; nothing else is loaded.

    An extension ERR (or RMS, VAR, IVAR, UNCERT) of the image's version and shape is its noise, and DQ (or MASK) tells
    which pixels are bad.

    Parameters
    ----------
    path, hdu, kind
        As for `read_image`.
    dq
        Bits of the data quality that make a pixel bad, as `astropy.nddata.bitmask.interpret_bit_flags` reads them:
        numbers, or names of JWST, WFC3 and ACS. None takes DO_NOT_USE and NON_SCIENCE of JWST, all but those of hot and
        warm pixels and of blobs for WFC3 and ACS, and any bit of others.

    Yields
    ------
    FieldImage
        The image, of whose data a slice reads a part.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_image`, but for the values of the pixels.
    """
    named = re.fullmatch(r"(.+)\[([^\[\]]+)\]", str(path))  # such as field.fits[SCI,2]
    if named and hdu is None and not Path(path).exists():
        path, hdu = named.groups()
    with contextlib.ExitStack() as stack:
        with _readable(path):
            # Not mapped, as astropy refuses to map integers that are to be scaled.
            file = stack.enter_context(Path(path).open("rb"))
            if file.read(len(GZIP)) == GZIP:
                with gzip.open(path) as packed:
                    file = io.BytesIO(packed.read(LARGEST_PACKED))
                    if packed.read(1):  # behind the last byte, its checksum is verified
                        raise ValueError(f"{path}: must be unpacked first, as it holds more than 2 GiB")
            check = file.seek(0, SEEK_END) < LARGEST_CHECKED
            file.seek(0)
            hdus = stack.enter_context(fits.open(file, memmap=False, lazy_load_hdus=False, checksum=check))
            chosen = choose(path, hdus, hdu, kind)
            if max(chosen.shape[:-2], default=1) > 1:
                raise ValueError(f"{path}: the image must have two dimensions (y, x), got shape {chosen.shape}")
            if not all(0 < side <= LARGEST_SIDE for side in chosen.shape):
                raise ValueError(f"{path}: the image must have sides of 1 to {LARGEST_SIDE}, got shape {chosen.shape}")
            notes = []
            if hdu is None and (number := sum(item.is_image and len(item.shape) > 1 for item in hdus)) > 1:
                notes.append(f"{path}: the image is {chosen.name},{chosen.ver}, one of {number}")
            if not check and any("DATASUM" in item.header for item in hdus):
                notes.append(f"{path}: checksums are not verified, as the file has more than 2 GiB")
            parts = partial(_parts, path)
            known = companions(path, hdus, chosen, parts, dq, notes) if kind == "SCI" else {"data": parts(chosen)}
            known |= described(path, hdus, chosen, notes)
            mosaic = FieldImage(Path(path).name, header=chosen.header, notes=tuple(notes), **known)
        yield mosaic


def cut_stamps(image: NDArray | Parts, first_pixels: ArrayLike, size: int) -> NDArray[np.floating]:
    """Cut squares ``(square, y, x)`` of `size` pixels out of an image, NaN beyond its edges.

    `first_pixels` holds the x and y of each square's first pixel ``(square, 2)``. Of a mosaic, only the pixels of the
    squares are read.
    """
    corners = np.asarray(first_pixels).reshape(-1, 2)
    kind = np.result_type(image.dtype.newbyteorder("="), np.float32)
    stamps = np.full((len(corners), size, size), np.nan, dtype=kind)
    for stamp, corner in zip(stamps, corners, strict=True):
        with contextlib.suppress(NoOverlapError):
            there, here = overlap_slices(image.shape, stamp.shape, corner[::-1] + (size - 1) / 2, mode="partial")
            stamp[here] = np.ma.filled(np.ma.asarray(image[there]).astype(kind), np.nan)
    return stamps


def uncovered(pixels: NDArray) -> NDArray[np.bool_]:
    """Return which pixels ``(y, x)`` no exposure covers: blocks of at least 5 x 5 exact zeros."""
    zero = pixels == 0
    return ndimage.binary_opening(zero, NO_COVERAGE) if zero.any() and not zero.all() else zero


@contextlib.contextmanager
def _readable(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever astropy raises while it reads a FITS file into one sentence."""
    check_file(path)
    with ALONE, warnings.catch_warnings(action="ignore"):
        fatal = r"(?s).*(truncated|[Mm]issing END card|sum verification failed)"
        warnings.filterwarnings("error", fatal, AstropyUserWarning)
        with readable(path, "not a FITS file, or damaged", "dq must"):
            yield


def _parts(path: str | PathLike[str], hdu: fits.ImageHDU) -> Parts:
    """Return the pixels ``(y, x)`` of an HDU, whose other axes are of one pixel each."""

    def read(part: tuple[slice, ...]) -> NDArray:
        with _readable(path):
            return hdu.section[(*(0,) * (len(hdu.shape) - 2), *part)]

    return Parts(hdu.shape[-2:], read, f"{hdu.name},{hdu.ver} of {path}", read((slice(0, 0), slice(None))).dtype)
