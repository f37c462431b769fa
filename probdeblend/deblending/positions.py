"""Positions of sources as users have them: arrays, tables, sky coordinates, segmentation maps, and files of these."""

import contextlib
from collections.abc import Mapping
from os import PathLike

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from .._files import read_table
from ..photometry.images import read_image
from .pixels import numbers

__all__ = ["locate", "read_positions"]

PIXEL_COLUMNS = ("x", "y"), ("x_centroid", "y_centroid"), ("xcentroid", "ycentroid"), ("X_IMAGE", "Y_IMAGE")
SKY_COLUMNS = ("ra", "dec"), ("alpha_j2000", "delta_j2000"), ("raj2000", "dej2000")  # in small or capital letters
LABEL_COLUMNS = ("label", "id", "number", "source_id", "object_id", "objid", "name")  # likewise
CORNERS = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
LARGEST_LABEL = 2**31 - 1  # that a segmentation map holds


def locate(positions: object, shape: tuple[int, int], wcs: WCS | None, notes: list[str]) -> tuple:
    """Return the sources of a list, see `Deblender.forward`; what is outside of the image is left out and noted.

    They are x and y in pixels, labels, and what names the sources where that cannot be a label, or None.
    """
    if isinstance(positions, (str, PathLike)):
        positions = read_positions(positions)
    if isinstance(positions, np.ndarray) and positions.dtype.names:
        positions = Table(positions)
    elif isinstance(positions, Mapping) or (hasattr(positions, "columns") and not isinstance(positions, Table)):
        positions = Table({name: np.asarray(positions[name]) for name in positions})
    name = None
    if isinstance(positions, SkyCoord):
        x, y = _to_pixels(positions, wcs, shape)
    elif isinstance(positions, Table):
        x, y = _from_table(positions, wcs, shape)
        name = _names(positions)
    else:
        values = numbers("positions", positions.data if hasattr(positions, "labels") else positions)
        if values.shape == shape and (values == np.rint(values)).all():
            x, y, name = _centroids(values.filled(0))
        elif values.ndim == 2 and values.shape[1] == 2:
            x, y = _numbers(positions).T
        else:
            form = f"the shape (n, 2) of x and y, or be a segmentation map of the image's shape {shape}"
            raise ValueError(f"positions must have {form}, got {values.shape} of {values.dtype}")
    inside, label = _inside(x, y, shape, notes), np.arange(1, len(x) + 1)
    if name is not None and name.dtype.kind in "iu" and ((name >= 1) & (name <= LARGEST_LABEL)).all():
        label, name = name.astype(np.int64), None
    return x[inside], y[inside], label[inside], None if name is None else name[inside]


def read_positions(path: str | PathLike[str]) -> Table | NDArray:
    """Read a table of sources, or a segmentation map from a FITS image."""
    try:
        return read_table(path)
    except (FileNotFoundError, ValueError):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return read_image(path).data
        raise


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    """Return finite numbers without a unit, which must not be that of an angle; refuse others and masked ones."""
    if (unit := getattr(values, "unit", None)) is not None and unit.is_equivalent(u.deg):
        raise ValueError(f"positions x and y must be in pixels, got {unit}")
    values = np.ma.filled(numbers("positions", getattr(values, "value", values)).astype(np.float64), np.nan)
    if not np.isfinite(values).all():
        raise ValueError("positions must be finite, got NaN")
    return values


def _centroids(data: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return x, y and labels of segments."""
    rows, columns = np.nonzero(data > 0)
    label, owner, area = np.unique(data[rows, columns], return_inverse=True, return_counts=True)
    x, y = (np.bincount(owner, place, minlength=len(label)) / area for place in (columns, rows))
    return x, y, label.astype(np.int64)


def _from_table(table: Table, wcs: WCS | None, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    for names in PIXEL_COLUMNS:
        if set(names) <= set(table.colnames):
            first = int("X_IMAGE" in names)  # number of the first pixel
            return tuple(_numbers(table[name]) - first for name in names)
    known = {name.lower(): table[name] for name in table.colnames}
    for names in SKY_COLUMNS:
        if set(names) <= set(known):
            angles = (_numbers(known[name].value) * (known[name].unit or u.deg) for name in names)
            return _to_pixels(SkyCoord(*angles), wcs, shape)
    raise ValueError(f"positions must have columns x and y, or ra and dec, got {', '.join(table.colnames)}")


def _names(table: Table) -> NDArray | None:
    """Return what names the rows of a table: numbers or text, no two alike and none missing."""
    known = {name.lower(): name for name in reversed(table.colnames)}
    for column in filter(known.__contains__, LABEL_COLUMNS):
        values = np.ma.asarray(table[known[column]])
        values = values if values.dtype.kind in "iuf" else values.astype(str)
        if values.dtype.kind != "f" and values.ndim == 1 and len(np.unique(values.compressed())) == len(table):
            return values.data
        if column == "label":
            raise ValueError("positions must have labels of which no two are alike and none is missing")
    return None


def _to_pixels(sky: SkyCoord, wcs: WCS | None, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Return x and y, infinite where a position is far from the image, for which distortions have no inverse."""
    if wcs is None or not wcs.has_celestial:
        raise ValueError("positions on the sky need world coordinates of the image: wcs must be given")
    sky, plane, size = sky.reshape(-1), wcs.celestial, np.array(shape[::-1])
    middle, corner = (plane.pixel_to_world(*place) for place in ((size - 1) / 2, size[:, None] * CORNERS - 0.5))
    near = ~(sky.separation(middle) > 1.1 * corner.separation(middle).max())
    found = np.full((2, len(sky)), np.inf)
    found[:, near] = plane.world_to_pixel(sky[near])
    return tuple(found)


def _inside(x: NDArray, y: NDArray, shape: tuple[int, int], notes: list[str]) -> NDArray[np.bool_]:
    """Return which positions are inside the image; there must be one, and no two alike."""
    if not len(x):
        raise ValueError("positions must hold at least one source, got none")
    inside = (x >= -0.5) & (y >= -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)
    if not inside.any():
        found = f"got none of {len(x)} there, the first at x, y = {x[0]:.6g}, {y[0]:.6g}"
        raise ValueError(f"positions must be inside the image of {shape[1]} x {shape[0]} pixels, {found}")
    if not inside.all():
        notes.append(f"{np.sum(~inside)} of {len(x)} positions are outside of the image, and not in the catalog")
    unique, counts = np.unique(np.stack([x, y], -1)[inside], axis=0, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0]
        raise ValueError(f"positions must differ, got x, y = {twice[0]:.6g}, {twice[1]:.6g} twice")
    return inside
