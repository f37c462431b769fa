"""Coverage of intervals, with bands for the number of galaxies: for all, and in bins of their properties."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .arrays import ONE_SIGMA, paired_arrays
from .ranks import pit
from .scores import interval_score

__all__ = [
    "THIN",
    "binned_table",
    "bootstrap",
    "coverage_row",
    "diagnose",
    "ecdf_band",
    "expected_coverage",
    "in_bins",
    "quantile_edges",
    "rank_p_value",
]

LEVELS = (0.5, 0.68, 0.9, 0.95)
THIN = 100  # galaxies: with fewer, the coverage of a bin is uncertain by 5 % and more
LEAST = 10  # values
SIGMAS = (1, 2, 3)
SIMULATIONS = 4000  # of uniform samples, for bands and p-values


def expected_coverage(
    values: ArrayLike,
    *,
    levels: Sequence[float] = LEVELS,
    central: bool = True,
    band: float = 0.95,
    independent: int | None = None,
) -> NDArray[np.float64]:
    """Return the fraction of truths inside intervals of several levels, with binomial bands.

    Parameters
    ----------
    values
        Ranks from `pit` for central intervals or, with ``central=False``, from `joint_pit` or `tarp`.
    levels
        Probabilities of the intervals.
    central
        Whether intervals are centered on the median; else they begin at rank 0.
    band
        Probability of each band.
    independent
        Number of independent values; all if None.

    Returns
    -------
    NDArray
        One row per level: the level, the fraction covered, and the ends of the band for the fraction of an exact
        posterior ``(level, 4)``.

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


def ecdf_band(count: int, *, level: float = 0.95) -> tuple[NDArray[np.float64], ...]:
    """Return the simultaneous band of the empirical distribution function of uniform values.

    Parameters
    ----------
    count
        Number of values.
    level
        Probability that the whole curve lies inside the band; the band is found by simulation.

    Returns
    -------
    points, low, high
        Where the distribution function is evaluated, and the ends of the band there.

    Raises
    ------
    ValueError
        If there are fewer than ten values or the level is not between 0 and 1.

    References
    ----------
    Säilynoja et al. (2022), doi:10.1007/s11222-022-10090-6.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    points, least = _uniform_samples(count)
    gamma = np.quantile(least, 1 - level)
    low, high = (stats.binom.ppf(probability, count, points) / count for probability in (gamma / 2, 1 - gamma / 2))
    return points, low, high


def rank_p_value(values: ArrayLike) -> float:
    """Return the p-value of ranks under uniformity, which holds for an exact posterior.

    Parameters
    ----------
    values
        Ranks from `pit`, `joint_pit`, `covariance_pit` or `tarp`.

    Returns
    -------
    float
        The p-value of the simultaneous test whose band is `ecdf_band`; at least 1/4000.

    Raises
    ------
    ValueError
        If there are fewer than ten values.
    """
    values = np.ravel(np.asarray(values, dtype=np.float64))
    points, least = _uniform_samples(len(values))
    below = np.searchsorted(np.sort(values), points, side="right")[None]
    rank = np.searchsorted(least, _least_p_value(below, len(values), points)[0], side="right")
    return float(max(rank, 1) / SIMULATIONS)


@lru_cache(maxsize=64)
def _uniform_samples(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return evaluation points, and the sorted least pointwise p-values of simulated uniform samples."""
    if count < LEAST:
        raise ValueError(f"at least {LEAST} values are needed, got {count}")
    points = np.arange(1, min(count, 200) + 1) / (min(count, 200) + 1)
    rng = np.random.default_rng(20220101)
    between = rng.multinomial(count, np.diff(points, prepend=0.0, append=1.0), size=SIMULATIONS)
    return points, np.sort(_least_p_value(between[:, :-1].cumsum(1), count, points))


def _least_p_value(below: NDArray[np.int64], count: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least pointwise p-value of samples with `below` values below each point ``(sample, point)``."""
    fewest = below.min(0)
    possible = fewest + np.arange(np.ptp(below, axis=0).max() + 1)[:, None]  # few values: each is computed once
    lower, upper = stats.binom.cdf(possible, count, points), stats.binom.sf(possible - 1, count, points)
    p_value = 2 * np.minimum(lower, upper)
    return p_value[below - fewest, np.arange(len(points))].min(-1)


def diagnose(
    draws: ArrayLike,
    truth: ArrayLike,
    *,
    galaxies: ArrayLike | None = None,
    band: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Measure the calibration of one quantity.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``, of log-fluxes if errors are relative.
    truth
        True values ``(blend,)``, or ``(blend, galaxy)``: as the errors of the galaxies of a blend are correlated, bands
        are those of as many values as there are blends, and ranks are tested for each galaxy separately.
    galaxies
        Identity of the galaxy of each value ``(...)``, if galaxies repeat; all are distinct if None.
    band
        Probability of the bands of the fractions covered.
    seed
        Seed of ranks and of the bootstrap over galaxies.

    Returns
    -------
    dict
        ``count`` and ``galaxies`` with draws; for the levels 50, 68, 90 and 95 % ``coverage_68`` (a fraction) with the
        ends of its band, ``coverage_68_low`` and ``coverage_68_high`` (binomial around the level if galaxies are
        distinct; else the bootstrap over galaxies around the fraction); ``pull_mean``, ``pull_sd``, and ``within_1``,
        ``within_2``, ``within_3``: the fractions of errors within so many standard deviations (as in the Euclid
        Morphology Challenge, Bretonniere et al. 2023, arXiv:2209.12907); ``interval_score`` (mean, 68 %), ``width``
        (median half-width of the 68 % interval) and ``rank_p``, the p-value of the ranks (the least over the galaxies
        of a blend, times their number; NaN if galaxies repeat).

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than ten values with draws.
    """
    draws, truth = paired_arrays(draws, truth)
    part = np.arange(truth.size) % (truth.shape[-1] if truth.ndim > 1 else 1)
    flat, true = draws.reshape(len(draws), -1), truth.ravel()
    known = np.isfinite(flat).all(0)
    flat, true, part = flat[:, known], true[known], part[known]
    if len(true) < LEAST:
        raise ValueError(f"at least {LEAST} values with draws are needed, got {len(true)}")
    if galaxies is not None and np.shape(galaxies) != truth.shape:
        raise ValueError(f"galaxies must have the shape of truth {truth.shape}, got {np.shape(galaxies)}")
    owner = None if galaxies is None else np.ravel(galaxies)[known]
    ranks = pit(flat, true, seed=seed)
    row: dict[str, float] = {"count": len(true), "galaxies": len(true) if owner is None else len(np.unique(owner))}
    row |= coverage_row(ranks, owner, band=band, independent=int(np.bincount(part).max()), seed=seed)
    pull = (flat.mean(0) - true) / flat.std(0, ddof=1)
    low, _, high = np.quantile(flat, ONE_SIGMA, axis=0)
    row |= {"pull_mean": pull.mean(), "pull_sd": pull.std()}
    row |= {f"within_{sigma}": (np.abs(pull) <= sigma).mean() for sigma in SIGMAS}
    row |= {"interval_score": interval_score(flat, true).mean(), "width": np.median(high - low) / 2}
    each = [ranks[part == number] for number in np.unique(part)] if owner is None else []
    tested = [rank_p_value(values) for values in each if len(values) >= LEAST]
    row["rank_p"] = min(1.0, len(tested) * min(tested)) if tested else np.nan
    return {name: value if isinstance(value, int) else float(value) for name, value in row.items()}


def coverage_row(
    ranks: NDArray[np.float64],
    owner: NDArray | None,
    *,
    central: bool = True,
    band: float = 0.95,
    independent: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return coverage with bands in the columns of `diagnose`; `owner` is the galaxy of each rank, if they repeat."""
    depth, row = np.abs(2 * ranks - 1) if central else ranks, {}
    for level, covered, *ends in expected_coverage(ranks, central=central, band=band, independent=independent):
        inside, settings = depth <= level, {"level": band, "seed": seed}
        low, high = ends if owner is None else bootstrap(lambda rows, v=inside: v[rows].mean(), owner, **settings)
        name = f"coverage_{100 * level:g}"
        row |= {name: covered, f"{name}_low": low, f"{name}_high": high}
    return row


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    galaxies: ArrayLike,
    *,
    level: float = 0.68,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the central interval of a statistic of row numbers, by resampling the galaxies that the rows belong to.

    Rows of the same galaxy are not independent (Efron & Tibshirani 1993, doi:10.1201/9780429246593; Field & Welsh 2007,
    doi:10.1111/j.1467-9868.2007.00593.x).
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


def binned_table(
    draws: ArrayLike, truth: ArrayLike, feature: ArrayLike, edges: ArrayLike, *, name: str = "feature"
) -> Table:
    """Measure the calibration of one quantity in bins of another.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    feature
        What bins are made of ``(...)``: *estimated* signal-to-noise ratio, separation over FWHM, flux ratio,
        blendedness. In bins of a property of the truth itself, an exact posterior need not be calibrated.
    edges
        Ascending edges; a value on an edge is in the bin above it, and the last edge is in the last bin.
    name
        Name of the feature in warnings.

    Returns
    -------
    Table
        One row per bin with at least ten values: ``low``, ``high``, and the columns of `diagnose`.

    Raises
    ------
    ValueError
        If shapes disagree or edges do not ascend.

    Warns
    -----
    UserWarning
        If a bin holds fewer than 100 galaxies.
    """
    draws, truth = paired_arrays(draws, truth)
    feature = np.asarray(feature, dtype=np.float64)
    if feature.shape != truth.shape:
        raise ValueError(f"{name} must have the shape of truth {truth.shape}, got {feature.shape}")
    known = np.isfinite(draws).all(0)
    rows = []
    for low, high, there in in_bins(feature, edges):
        inside = known & there
        if (number := int(inside.sum())) < THIN:
            warnings.warn(
                f"bin {low:g} to {high:g} of {name} holds {number} galaxies, fewer than {THIN}: it is uncertain",
                stacklevel=2,
            )
        if number >= LEAST:
            rows.append({"low": low, "high": high} | diagnose(np.where(inside, draws, np.nan), truth))
    return Table(rows)


def quantile_edges(values: ArrayLike, bins: int = 5) -> NDArray[np.float64]:
    """Return edges of bins that hold equal numbers of values.

    Parameters
    ----------
    values
        Numbers; non-finite ones are left out.
    bins
        Number of bins.

    Returns
    -------
    NDArray
        At most ``bins + 1`` ascending edges; equal ones are merged.

    Raises
    ------
    ValueError
        If there are no values or no bins.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size or bins < 1:
        raise ValueError(f"values and bins must be at least one, got {values.size} and {bins}")
    return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))


def in_bins(values: ArrayLike, edges: ArrayLike) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Return lower edge, upper edge and the values inside, for each bin between ascending edges.

    A value on an edge is in the bin above it, and the last edge is in the last bin. NaN is in no bin.
    """
    values, edges = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[1:] > edges[:-1]).all():
        raise ValueError(f"edges must ascend, got {edges.tolist()}")
    number = np.searchsorted(edges, values, side="right") - (values == edges[-1])
    return [(float(low), float(high), number == index) for index, (low, high) in enumerate(pairwise(edges), start=1)]
