"""Mosaics that are read window by window, and catalogs of any columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import NDArray
from scipy import ndimage

from .images import _celestial, _choose, _readable, _unit, _zero_point

__all__ = ["Mosaic", "open_mosaic", "read_columns", "uncovered"]

NO_COVERAGE = np.ones((5, 5), dtype=bool)


def uncovered(pixels: NDArray) -> NDArray[np.bool_]:
    """Say which pixels no exposure covers: patches of 5 x 5 and more exact zeros.

    Parameters
    ----------
    pixels
        Image ``(y, x)``.

    Returns
    -------
    NDArray
        Booleans ``(y, x)``.
    """
    return ndimage.binary_opening(pixels == 0, NO_COVERAGE)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A large image on disk, of which windows are read.

    Parameters
    ----------
    name
        The file's name.
    shape
        Number of pixels ``(y, x)``.
    wcs
        Celestial world coordinates, or None.
    pixel_scale
        Size of a pixel in arcsec, or None.
    zero_point
        AB magnitude of unit flux, or None.
    unit
        Unit of a pixel; may be empty.
    hdu
        The image's HDU, whose pixels are read when they are asked for.
    """

    name: str
    shape: tuple[int, int]
    wcs: WCS | None
    pixel_scale: float | None
    zero_point: float | None
    unit: str
    hdu: fits.PrimaryHDU | fits.ImageHDU

    def window(self, x0: int, y0: int, width: int, height: int) -> NDArray[np.float64]:
        """Read a window, which may reach over the edge.

        Parameters
        ----------
        x0, y0
            Its first pixel.
        width, height
            Its size in pixels.

        Returns
        -------
        NDArray
            Pixels ``(height, width)``, NaN beyond the mosaic and where 5 x 5 and more exact zeros say that there is
            no coverage.
        """
        # A margin, so that blocks of zeros are seen as such wherever a window ends.
        margin = len(NO_COVERAGE) - 1
        wide = self._read(x0 - margin, y0 - margin, width + 2 * margin, height + 2 * margin)
        wide[uncovered(wide)] = np.nan
        return wide[margin : margin + height, margin : margin + width]

    def _read(self, x0: int, y0: int, width: int, height: int) -> NDArray[np.float64]:
        window = np.full((height, width), np.nan)
        low_y, high_y = max(y0, 0), min(y0 + height, self.shape[0])
        low_x, high_x = max(x0, 0), min(x0 + width, self.shape[1])
        if low_y < high_y and low_x < high_x:
            read = self.hdu.section[low_y:high_y, low_x:high_x]
            window[low_y - y0 : high_y - y0, low_x - x0 : high_x - x0] = read
        return np.where(np.isfinite(window), window, np.nan)


@contextlib.contextmanager
def open_mosaic(path: str | PathLike[str], *, hdu: int | str | None = None) -> Iterator[Mosaic]:
    """Open a two-dimensional image to read windows from it; an uncompressed file is mapped, not loaded.

    Parameters
    ----------
    path
        FITS file.
    hdu
        Number or name of the HDU; None takes the only one that holds an image.

    Yields
    ------
    Mosaic
        The image.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or not FITS, holds no image or several with none chosen, or the image is not
        two-dimensional.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            hdus = stack.enter_context(fits.open(path, memmap=True, lazy_load_hdus=False))
            chosen = _choose(path, hdus, hdu)
            if len(chosen.shape) != 2:
                raise ValueError(f"{path}: the mosaic must have two dimensions (y, x), got shape {chosen.shape}")
            wcs, unit = _celestial(chosen.header, hdus), _unit(chosen.header.get("BUNIT"))
            zero_point = _zero_point(chosen.header, unit) or _zero_point(hdus[0].header, unit)
        scale = None if wcs is None else 3600 * float(np.sqrt(proj_plane_pixel_area(wcs)))
        yield Mosaic(Path(path).name, chosen.shape, wcs, scale, zero_point, unit, chosen)


def read_columns(path: str | PathLike[str], columns: Mapping[str, str], *, required: tuple[str, ...] = ()) -> Table:
    """Read the columns of a catalog (FITS, ECSV, CSV) under the names that this package has for them.

    Parameters
    ----------
    path
        The catalog.
    columns
        The catalog's name of a column by ours.
    required
        Our names of columns that must be there.

    Returns
    -------
    Table
        The columns that the mapping names, and those that have our names already.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read as a table, or a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        table = Table.read(path)
    except Exception as error:  # each reader raises what it likes
        raise ValueError(f"{path}: not a catalog in FITS, ECSV or CSV ({' '.join(str(error).split())[:80]})") from error
    names = {name: columns.get(name, name) for name in {*columns, *required, *table.colnames}}
    missing = sorted(name for name in {*columns, *required} if names[name] not in table.colnames)
    if missing:
        there = ", ".join(table.colnames)
        wanted = ", ".join(f"{names[name]!r} (for {name})" if names[name] != name else repr(name) for name in missing)
        raise ValueError(f"{path}: the columns {wanted} are missing, there are {there}")
    return Table({name: table[column] for name, column in names.items() if column in table.colnames})
