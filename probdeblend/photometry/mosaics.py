"""Mosaics that are read window by window, and source catalogs with any column names."""

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
from numpy.typing import NDArray

from .images import NO_COVERAGE, choose_hdu, cut_stamps, image_properties, readable, uncovered

__all__ = ["Mosaic", "open_mosaic", "read_columns"]


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A large image on disk, of which windows are read; fields as those of `FieldImage`, `name` is the file's."""

    name: str
    hdu: fits.PrimaryHDU | fits.ImageHDU
    wcs: WCS | None
    pixel_scale: float | None
    zero_point: float | None
    unit: str

    @property
    def shape(self) -> tuple[int, int]:
        """Number of pixels ``(y, x)``."""
        return self.hdu.shape

    def window(self, x0: int, y0: int, size: int) -> NDArray[np.float64]:
        """Read the square of `size` pixels ``(y, x)`` that begins at pixel x0, y0, and may reach over the edge.

        Pixels are NaN beyond the mosaic and where blocks of exact zeros mean that there is no coverage.
        """
        # With a margin, so that blocks of zeros are recognized wherever a window ends.
        margin = len(NO_COVERAGE) - 1
        (wide,) = cut_stamps(self.hdu.section, (x0 - margin, y0 - margin), size + 2 * margin).astype(np.float64)
        wide[uncovered(wide) | ~np.isfinite(wide)] = np.nan
        return wide[margin:-margin, margin:-margin]


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
        The image: ``window(x0, y0, size)`` reads a part of it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or not FITS; if it holds no image, or several and none is chosen; or if the image is not
        two-dimensional.
    """
    with contextlib.ExitStack() as stack:
        with readable(path):
            hdus = stack.enter_context(fits.open(path, memmap=True, lazy_load_hdus=False))
            chosen = choose_hdu(path, hdus, hdu)
            if len(chosen.shape) != 2:
                raise ValueError(f"{path}: the mosaic must have two dimensions (y, x), got shape {chosen.shape}")
            properties = image_properties(hdus, chosen)
        yield Mosaic(name=Path(path).name, hdu=chosen, **properties)


def read_columns(path: str | PathLike[str], columns: Mapping[str, str], *, required: tuple[str, ...] = ()) -> Table:
    """Read the columns of a catalog (FITS, ECSV, CSV) under this package's names; `columns` maps ours to theirs."""
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
