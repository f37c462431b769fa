"""Positions of sources as users have them: arrays, tables, sky coordinates, segmentation maps, and files of these."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from .._files import read_table
from ..photometry.images import read_image
from .pixels import numbers

__all__ = ["Listed", "locate", "read_positions"]

PIXEL_COLUMNS = {  # with the number of the first pixel
    ("x", "y"): 0,
    ("x_centroid", "y_centroid"): 0,
    ("xcentroid", "ycentroid"): 0,
    ("X_IMAGE", "Y_IMAGE"): 1,
}
SKY_COLUMNS = (("ra", "dec"), ("alpha_j2000", "delta_j2000"))  # in small or capital letters
LABEL_COLUMNS = ("label", "id", "number", "source_id", "object_id", "objid", "name")  # likewise
LARGEST_LABEL = 2**31 - 1  # that a segmentation map holds
SAME_PLACE = 0.1  # pixels


class Listed(NamedTuple):
    """The sources of a list that are inside an image: x and y in pixels, labels, and names where labels are not those.

    Labels are unique numbers from 1 on: the user's own, or those of the rows of the list.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    label: NDArray[np.int64]
    name: NDArray | None


def locate(positions: object, shape: tuple[int, int], wcs: WCS | None, notes: list[str]) -> Listed:
    """Return the sources of a list, see `Deblender.forward`; what is outside of the image is left out and noted."""
    if isinstance(positions, (str, PathLike)):
        positions = read_positions(positions)
    if isinstance(positions, np.ndarray) and positions.dtype.names:
        positions = Table(positions)
    elif isinstance(positions, Mapping) or (hasattr(positions, "columns") and not isinstance(positions, Table)):
        positions = Table({name: np.asarray(positions[name]) for name in positions})
    label = name = None
    if isinstance(positions, SkyCoord):
        x, y = _to_pixels(positions, wcs, shape)
    elif isinstance(positions, Table):
        x, y = _from_table(positions, wcs, shape)
        label, name = _labels(positions)
    else:
        values = numbers("positions", positions.data if hasattr(positions, "labels") else positions)
        if values.shape == shape and values.dtype.kind in "iu":
            x, y, label, name = _centroids(values.filled(0))
        elif values.ndim == 2 and values.shape[1] == 2:
            x, y = _filled(values).T
        else:
            form = f"the shape (n, 2) of x and y, or be a segmentation map of the image's shape {shape}"
            raise ValueError(f"positions must have {form}, got {values.shape} of {values.dtype}")
    label = np.arange(1, len(x) + 1) if label is None else label
    inside = _inside(x, y, shape, notes)
    return Listed(x[inside], y[inside], label[inside], None if name is None else name[inside])


def read_positions(path: str | PathLike[str]) -> Table | NDArray[np.int64]:
    """Read a table of sources, or a segmentation map from a FITS image."""
    try:
        return read_table(path)
    except (FileNotFoundError, ValueError):
        with contextlib.suppress(FileNotFoundError, ValueError):
            data = read_image(path).data
            if (data == np.rint(data)).all():
                return data.astype(np.int64)
        raise


def _filled(values: ArrayLike) -> NDArray[np.float64]:
    """Return finite numbers, and refuse others and masked ones."""
    values = np.ma.filled(numbers("positions", values).astype(np.float64), np.nan)
    if not np.isfinite(values).all():
        raise ValueError("positions must be finite, got NaN")
    return values


def _centroids(data: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray | None]:
    """Return x, y, labels and names of segments."""
    rows, columns = np.nonzero(data > 0)
    values, owner, area = np.unique(data[rows, columns], return_inverse=True, return_counts=True)
    x, y = (np.bincount(owner, place, minlength=len(values)) / area for place in (columns, rows))
    return x, y, *_as_labels(values)


def _from_table(table: Table, wcs: WCS | None, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    for names, first in PIXEL_COLUMNS.items():
        if set(names) <= set(table.colnames):
            return tuple(_filled(getattr(table[name], "value", table[name])) - first for name in names)
    known = {name.lower(): table[name] for name in table.colnames}
    for names in SKY_COLUMNS:
        if set(names) <= set(known):
            angles = (_angle(known[name], unit) for name, unit in zip(names, (u.hourangle, u.deg), strict=True))
            return _to_pixels(SkyCoord(*angles), wcs, shape)
    raise ValueError(f"positions must have columns x and y, or ra and dec, got {', '.join(table.colnames)}")


def _angle(column: ArrayLike, sexagesimal: u.Unit) -> Angle:
    """Return angles of a column of numbers, in degrees unless it has a unit, or of sexagesimal text."""
    if column.dtype.kind in "SU":
        return Angle(np.asarray(column, dtype=str), sexagesimal)
    return Angle(_filled(getattr(column, "value", column)), column.unit or u.deg)


def _labels(table: Table) -> tuple[NDArray[np.int64], NDArray | None]:
    """Return the labels of the rows of a table, and their names."""
    known = {name.lower(): name for name in reversed(table.colnames)}
    for column in filter(known.__contains__, LABEL_COLUMNS):
        values = np.ma.asarray(table[known[column]])
        if values.ndim > 1 or np.ma.is_masked(values) or len(np.unique(values)) < len(table):
            if column == "label":
                raise ValueError("positions must have labels of which no two are alike and none is missing")
            continue
        return _as_labels(values.data)
    return np.arange(1, len(table) + 1), None


def _as_labels(values: NDArray) -> tuple[NDArray[np.int64], NDArray | None]:
    """Return unique identifiers as labels, or, where they are not whole numbers from 1 on, as names of labels."""
    if values.dtype.kind == "f" and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind in "iu" and ((values >= 1) & (values <= LARGEST_LABEL)).all():
        return values.astype(np.int64), None
    return np.arange(1, len(values) + 1), values if values.dtype.kind in "iu" else values.astype(str)


def _to_pixels(sky: SkyCoord, wcs: WCS | None, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    """Return x and y, infinite where a position is not near the image, for which distortions have no inverse."""
    if wcs is None or not wcs.has_celestial:
        raise ValueError("positions on the sky need world coordinates of the image: wcs must be given")
    sky, plane = sky.reshape(-1), wcs.celestial
    edges = np.array([[0, 0, 1, 1], [0, 1, 0, 1]]) * np.reshape(shape[::-1], (2, 1)) - 0.5
    middle = plane.pixel_to_world(*(np.subtract(shape[::-1], 1) / 2))
    radius = plane.pixel_to_world(*edges).separation(middle).max()
    near = np.flatnonzero(~(sky.separation(middle) > 2 * radius))
    found = np.full((2, len(sky)), np.inf)
    found[:, near] = plane.world_to_pixel(sky[near])
    wrong = plane.pixel_to_world(*found[:, near]).separation(sky[near]) > SAME_PLACE * 2 * radius / np.hypot(*shape)
    found[:, near[wrong]] = np.inf
    return tuple(found)


def _inside(x: NDArray, y: NDArray, shape: tuple[int, int], notes: list[str]) -> NDArray[np.bool_]:
    """Return which positions are inside the image; there must be one, and no two alike."""
    if not len(x):
        raise ValueError("positions must hold at least one source, got none")
    inside = (x >= -0.5) & (y >= -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)
    if not inside.any():
        image = f"the image of {shape[1]} x {shape[0]} pixels"
        first = f"the first at x, y = {x[0]:.6g}, {y[0]:.6g}"
        raise ValueError(f"positions must be inside {image}, got none of {len(x)} there, {first}")
    if not inside.all():
        notes.append(f"{np.sum(~inside)} of {len(x)} positions are outside of the image, and not in the catalog")
    unique, counts = np.unique(np.stack([x, y], -1)[inside], axis=0, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0]
        raise ValueError(f"positions must differ, got x, y = {twice[0]:.6g}, {twice[1]:.6g} twice")
    return inside
