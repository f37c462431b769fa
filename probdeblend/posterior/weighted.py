"""Weighted draws to draws without weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["systematic"]


def systematic(weights: NDArray[np.float64], count: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose draws as often as their weights say.

    Systematic resampling (Kitagawa 1996, doi:10.1080/10618600.1996.10474692).

    Parameters
    ----------
    weights
        Weights ``(blend, draw)``, of any scale; rows that have none, or NaN, take the first draw.
    count
        How many to choose of each blend.
    rng
        Source of the one place and of the order that all blends share, so that a blend's draws do not depend on others.

    Returns
    -------
    NDArray
        Numbers of draws ``(blend, count)``, in random order.
    """
    place, order = (np.arange(count) + rng.random()) / count, rng.permutation(count)
    index = np.zeros((len(weights), count), dtype=np.int64)
    for row, total in zip(index, np.cumsum(weights, axis=1), strict=True):
        if total[-1] > 0:
            row[:] = np.searchsorted(total / total[-1], place[order], side="right")
    return np.minimum(index, weights.shape[1] - 1)
