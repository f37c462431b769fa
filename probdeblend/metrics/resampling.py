"""Bands by resampling: where galaxies repeat, they are drawn, not blends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap"]


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    galaxies: ArrayLike,
    *,
    level: float = 0.68,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Band of a statistic by resampling galaxies: where one occurs in many blends, blends are not independent.

    Parameters
    ----------
    statistic
        Called with the numbers of the rows of a resample.
    galaxies
        Which galaxy each row belongs to.
    level
        Probability of the band.
    resamples
        Number of resamples.
    seed
        Same seed, same band.

    Returns
    -------
    low, high
        Central interval of the statistic over the resamples.

    Raises
    ------
    ValueError
        If `level` is not between 0 and 1, or there are no rows.

    References
    ----------
    Efron & Tibshirani (1993), doi:10.1201/9780429246593; Field & Welsh (2007), doi:10.1111/j.1467-9868.2007.00593.x.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    names, owner = np.unique(np.asarray(galaxies), return_inverse=True)
    if not len(names):
        raise ValueError("galaxies must name at least one row, got none")
    order = np.argsort(owner, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(names), size=(resamples, len(names)))
    values = np.array([statistic(np.concatenate([rows_of[galaxy] for galaxy in pick])) for pick in picks])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
