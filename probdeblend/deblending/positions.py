"""Positions of sources as users have them: arrays, tables, sky coordinates, segmentation maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from .pixels import numbers

__all__ = ["locate"]

PIXEL_COLUMNS = (("x", "y"), ("x_centroid", "y_centroid"), ("xcentroid", "ycentroid"))


def locate(
    positions: object, shape: tuple[int, int], wcs: WCS | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return x and y of given positions in pixels, and their labels; see `Deblender.forward`."""
    if isinstance(positions, np.ndarray) and positions.dtype.names:
        positions = Table(positions)
    elif isinstance(positions, Mapping) or (hasattr(positions, "columns") and not isinstance(positions, Table)):
        positions = Table({name: np.asarray(positions[name]) for name in positions})
    labels: Sequence[int] | None = None
    if isinstance(positions, SkyCoord):
        x, y = _to_pixels(positions, wcs)
    elif isinstance(positions, Table):
        x, y = _from_table(positions, wcs)
        labels = positions["label"] if "label" in positions.colnames else None
    elif hasattr(positions, "labels") and hasattr(positions, "data"):
        labels = positions.labels
        x, y = _centroids(np.asarray(positions.data), np.asarray(labels), shape)
    else:
        values = _numbers(positions)
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"positions must have the shape (n, 2) of x and y, got {values.shape}")
        x, y = values.T
    _check_positions(x, y, shape)
    given = np.arange(1, len(x) + 1) if labels is None else np.asarray(labels)
    if given.dtype.kind not in "iu" or len(np.unique(given)) < len(given) or given.min() < 1:
        raise ValueError("positions must have labels that are whole numbers from 1 on, no two alike")
    return x, y, given


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    return np.ma.filled(numbers("positions", values).astype(np.float64), np.nan)


def _centroids(data: NDArray, labels: NDArray, shape: tuple[int, int]) -> tuple[NDArray, NDArray]:
    if data.shape != shape:
        raise ValueError(f"positions must be a segmentation map of the image's shape {shape}, got {data.shape}")
    area = np.bincount(data.ravel())[labels]
    rows, columns = np.indices(shape, dtype=np.float64)
    return tuple(np.bincount(data.ravel(), place.ravel())[labels] / area for place in (columns, rows))


def _from_table(table: Table, wcs: WCS | None) -> tuple[NDArray, NDArray]:
    for names in PIXEL_COLUMNS:
        if set(names) <= set(table.colnames):
            return tuple(_numbers(getattr(table[name], "value", table[name])) for name in names)
    if {"ra", "dec"} <= set(table.colnames):
        units = [table[name].unit or "deg" for name in ("ra", "dec")]
        return _to_pixels(SkyCoord(table["ra"], table["dec"], unit=units), wcs)
    raise ValueError(f"positions must have columns x and y, or ra and dec, got {', '.join(table.colnames)}")


def _to_pixels(sky: SkyCoord, wcs: WCS | None) -> tuple[NDArray, NDArray]:
    if wcs is None or not wcs.has_celestial:
        raise ValueError("positions on the sky need world coordinates of the image: wcs must be given")
    return tuple(_numbers(np.atleast_1d(value)) for value in wcs.celestial.world_to_pixel(sky))


def _check_positions(x: NDArray, y: NDArray, shape: tuple[int, int]) -> None:
    if not len(x):
        raise ValueError("positions must hold at least one source, got none")
    if not (np.isfinite(x) & np.isfinite(y)).all():
        raise ValueError("positions must be finite, got NaN")
    outside = (x < -0.5) | (y < -0.5) | (x >= shape[1] - 0.5) | (y >= shape[0] - 0.5)
    if outside.any():
        place = f"{x[outside][0]:.6g}, {y[outside][0]:.6g}"
        raise ValueError(f"positions must be inside the image of {shape[1]} x {shape[0]} pixels, got x, y = {place}")
    unique, counts = np.unique(np.stack([x, y], -1), axis=0, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0]
        raise ValueError(f"positions must differ, got x, y = {twice[0]:.6g}, {twice[1]:.6g} twice")
