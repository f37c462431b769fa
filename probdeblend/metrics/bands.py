"""How far from uniform ranks may stray: coverage at any level, and bands around whole distributions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["LEVELS", "ecdf_band", "expected_coverage", "rank_p_value"]

LEVELS = (0.5, 0.68, 0.9, 0.95)
_SIMULATIONS = 4000


def expected_coverage(
    values: ArrayLike,
    *,
    levels: Sequence[float] = LEVELS,
    central: bool = True,
    band: float = 0.95,
    independent: int | None = None,
) -> NDArray[np.float64]:
    """How often intervals hold the truth, at several levels, with binomial bands.

    Parameters
    ----------
    values
        What `pit` returns, for central intervals; or, with `central` unset, what `joint_pit` or `tarp` do.
    levels
        Probabilities of the intervals.
    central
        Whether intervals lie around the median; else they reach from 0 up.
    band
        Probability of each band.
    independent
        How many of the values are independent; all if None.

    Returns
    -------
    NDArray
        A row a level: the level, the fraction covered, and the ends of the band in which the fraction of an exact
        posterior lies ``(level, 4)``.

    Raises
    ------
    ValueError
        If there are no values or a level is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("values must hold at least one, got none")
    wanted = np.asarray(levels, dtype=np.float64)
    if ((wanted <= 0) | (wanted >= 1)).any():
        raise ValueError(f"levels must be between 0 and 1, got {tuple(levels)}")
    depth = np.abs(2 * values - 1) if central else values
    covered = (depth[:, None] <= wanted).mean(0)
    count = values.size if independent is None else independent
    low, high = stats.binom.interval(band, count, wanted)
    return np.column_stack([wanted, covered, low / count, high / count])


@lru_cache(maxsize=64)
def _simultaneous(count: int, level: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Points, lower and upper ends of the band, and sorted least pointwise p-values of simulated uniform samples."""
    points = np.arange(1, min(count, 200) + 1) / (min(count, 200) + 1)
    rng = np.random.default_rng(20220101)
    between = rng.multinomial(count, np.diff(points, prepend=0.0, append=1.0), size=_SIMULATIONS)
    least = _least_p_value(between[:, :-1].cumsum(1), count, points)
    gamma = np.quantile(least, 1 - level)
    low, high = (stats.binom.ppf(probability, count, points) / count for probability in (gamma / 2, 1 - gamma / 2))
    return points, low, high, np.sort(least)


def _least_p_value(below: NDArray[np.int64], count: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least pointwise p-value of the numbers of values below each point ``(..., point)``."""
    lower = stats.binom.cdf(below, count, points)
    upper = stats.binom.sf(below - 1, count, points)
    return 2 * np.minimum(lower, upper).min(-1)


def ecdf_band(count: int, *, level: float = 0.95) -> tuple[NDArray[np.float64], ...]:
    """Return the band in which the whole empirical distribution of uniform values lies with a given probability.

    Parameters
    ----------
    count
        Number of values.
    level
        Probability of the band, at all points together; it is found by simulation.

    Returns
    -------
    points, low, high
        Where the distribution is looked at, and the ends of the band there.

    Raises
    ------
    ValueError
        If there are fewer than ten values or the level is not between 0 and 1.

    References
    ----------
    Säilynoja et al. (2022), doi:10.1007/s11222-022-10090-6.
    """
    if count < 10:
        raise ValueError(f"at least 10 values are needed, got {count}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return _simultaneous(count, level)[:3]


def rank_p_value(values: ArrayLike) -> float:
    """Return the probability that ranks of an exact posterior stray from uniform as far as these do.

    Parameters
    ----------
    values
        What `pit`, `joint_pit`, `covariance_pit` or `tarp` return.

    Returns
    -------
    float
        The p-value of the simultaneous test that `ecdf_band` draws; values below 1/4000 are returned as that.

    Raises
    ------
    ValueError
        If there are fewer than ten values.
    """
    values = np.ravel(np.asarray(values, dtype=np.float64))
    if len(values) < 10:
        raise ValueError(f"at least 10 values are needed, got {len(values)}")
    points, _, _, least = _simultaneous(len(values), 0.95)
    below = np.searchsorted(np.sort(values), points, side="right")
    rank = np.searchsorted(least, _least_p_value(below, len(values), points), side="right")
    return float(max(rank, 1) / _SIMULATIONS)
