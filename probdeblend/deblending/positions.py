"""Positions of sources as users have them: arrays, tables, sky coordinates, segmentation maps."""

from __future__ import annotations

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

__all__ = ["locate"]


def locate(
    positions: object, shape: tuple[int, int], wcs: WCS | None
) -> tuple[tuple[NDArray, NDArray], NDArray | None]:
    """Return x and y of given positions in pixels, and their labels if they have some; see `Deblender.forward`."""
    labels = None
    if hasattr(positions, "labels") and hasattr(positions, "data") and not isinstance(positions, Table):
        labels = np.asarray(positions.labels)
        data = np.asarray(positions.data)
        rows, columns = np.indices(data.shape)
        weight = np.bincount(data.ravel())[labels]
        x, y = (np.bincount(data.ravel(), v.ravel().astype(float))[labels] / weight for v in (columns, rows))
    elif isinstance(positions, SkyCoord):
        x, y = _to_pixels(positions, wcs)
    elif isinstance(positions, Table):
        x, y = _from_table(positions, wcs)
        labels = np.asarray(positions["label"]) if "label" in positions.colnames else None
    else:
        values = np.asarray(positions, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != 2:
            raise ValueError(f"positions must have the shape (n, 2) of x and y, got {values.shape}")
        x, y = values.T
    _check_positions(x, y, shape)
    return (np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)), labels


def _from_table(table: Table, wcs: WCS | None) -> tuple[NDArray, NDArray]:
    for names in (("x", "y"), ("x_centroid", "y_centroid"), ("xcentroid", "ycentroid")):
        if set(names) <= set(table.colnames):
            return tuple(np.asarray(getattr(table[name], "value", table[name]), dtype=np.float64) for name in names)
    if {"ra", "dec"} <= set(table.colnames):
        unit = {} if table["ra"].unit is not None else {"unit": "deg"}
        return _to_pixels(SkyCoord(table["ra"], table["dec"], **unit), wcs)
    raise ValueError(f"positions must have columns x and y, or ra and dec, got {', '.join(table.colnames)}")


def _to_pixels(sky: SkyCoord, wcs: WCS | None) -> tuple[NDArray, NDArray]:
    if wcs is None or not wcs.has_celestial:
        raise ValueError("positions on the sky need world coordinates of the image: wcs must be given")
    return tuple(np.atleast_1d(value) for value in wcs.celestial.world_to_pixel(sky))


def _check_positions(x: NDArray, y: NDArray, shape: tuple[int, int]) -> None:
    if not len(x):
        raise ValueError("positions must hold at least one source, got none")
    if not (np.isfinite(x) & np.isfinite(y)).all():
        raise ValueError("positions must be finite, got NaN")
    outside = (x < -0.5) | (y < -0.5) | (x >= shape[1] - 0.5) | (y >= shape[0] - 0.5)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(
            f"positions must be inside the image of {shape[1]} x {shape[0]} pixels, got x, y = {x[i]:.6g}, {y[i]:.6g}"
        )
    unique, counts = np.unique(np.stack([x, y], -1), axis=0, return_counts=True)
    if (counts > 1).any():
        twice = unique[counts > 1][0]
        raise ValueError(f"positions must differ, got x, y = {twice[0]:.6g}, {twice[1]:.6g} twice")
