"""Checks and sums of draws and truths that all diagnostics share."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ONE_SIGMA", "group_total", "members_by_size", "over_finite", "paired_arrays"]

ONE_SIGMA = (0.16, 0.5, 0.84)
"""Quantiles of the lower end, the median and the upper end of the central 68 % interval."""


def paired_arrays(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws ``(draw, ...)``, NaN for a non-detection, and finite truths ``(...)`` as arrays of floats."""
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if draws.ndim == 0 or draws.shape[1:] != truth.shape:
        raise ValueError(f"draws must have the shape (draw, *{truth.shape}), got {draws.shape}")
    if len(draws) < 2:
        raise ValueError(f"draws must be at least 2, got {len(draws)}")
    if not np.isfinite(truth).all():
        raise ValueError(f"truth must be finite, got {int((~np.isfinite(truth)).sum())} non-finite values")
    return draws, truth


def over_finite(statistic: Callable[[NDArray], float], values: NDArray) -> float:
    """Return a statistic of the finite values; NaN without any."""
    values = values[np.isfinite(values)]
    return float(statistic(values)) if values.size else float("nan")


def group_total(values: ArrayLike, group: ArrayLike) -> NDArray[np.float64]:
    """Return the sums ``(..., group, band)`` over groups of values ``(..., source, band)``, in the groups' order."""
    values, group = np.asarray(values, dtype=np.float64), np.asarray(group)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=group.min(initial=0) - 1))
    return np.add.reduceat(values[..., order, :], starts, axis=-2) if len(starts) else values


def members_by_size(group: NDArray, *, least: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the groups of each size, numbered in order, with their sources ``(group, member)``."""
    _, owner, size = np.unique(group, return_inverse=True, return_counts=True)
    order, start = np.argsort(owner, kind="stable"), np.cumsum(size) - size
    for number in np.unique(size[size >= least]):
        own = np.flatnonzero(size == number)
        yield own, order[start[own][:, None] + np.arange(number)]
