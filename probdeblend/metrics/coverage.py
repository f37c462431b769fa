"""Coverage of intervals, with bands for the number of independent sources: for all, and in bins of properties."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .arrays import ONE_SIGMA, paired_arrays
from .ranks import pit
from .scores import interval_score

__all__ = ["THIN", "binned_table", "bootstrap", "diagnose", "in_bins"]

LEAST = 10  # values to judge by
LEVELS = (0.5, 0.68, 0.9, 0.95)
THIN = 100  # sources: with fewer, the coverage of a bin is uncertain by 5 % and more
SIGMAS = (1, 2, 3)


def diagnose(
    draws: ArrayLike,
    truth: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    band: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Measure the calibration of one quantity.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``, of log-fluxes if errors are relative.
    truth
        True values ``(...)``.
    cluster
        What ties values together ``(...)``: the group of each source, as errors within a group are correlated, or the
        identity of galaxies that repeat. All values are independent if None.
    band
        Probability of the bands of the fractions covered.
    seed
        Seed of ranks and of the bootstrap over clusters.

    Returns
    -------
    dict
        ``count`` and ``clusters`` with draws; for the levels 50, 68, 90 and 95 % ``coverage_68`` (a fraction) with the
        ends of its band, ``coverage_68_low`` and ``coverage_68_high`` (binomial around the level if values are
        independent; else the bootstrap over clusters around the fraction); ``pull_mean``, ``pull_sd``; ``within_1``,
        ``within_2`` and ``within_3``, the fractions of errors within so many standard deviations (as in the Euclid
        Morphology Challenge, Bretonniere et al. 2023, arXiv:2209.12907); ``interval_score`` (mean, 68 %), ``width``
        (median half-width of the 68 % interval) and ``rank_p``, the p-value of a Kolmogorov-Smirnov test of
        the ranks (NaN with clusters).

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than ten values with draws.
    """
    draws, truth = paired_arrays(draws, truth)
    flat, true = draws.reshape(len(draws), -1), truth.ravel()
    known = np.isfinite(flat).all(0)
    flat, true = flat[:, known], true[known]
    if len(true) < LEAST:
        raise ValueError(f"at least {LEAST} values with draws are needed, got {len(true)}")
    if cluster is not None and np.shape(cluster) != truth.shape:
        raise ValueError(f"cluster must have the shape of truth {truth.shape}, got {np.shape(cluster)}")
    owner = None if cluster is None else np.ravel(cluster)[known]
    ranks = pit(flat, true, seed=seed)
    row: dict[str, float] = {"count": len(true), "clusters": len(true) if owner is None else len(np.unique(owner))}
    for level in LEVELS:
        inside, name = np.abs(2 * ranks - 1) <= level, f"coverage_{100 * level:g}"
        if owner is None:
            low, high = np.array(stats.binom.interval(band, len(true), level)) / len(true)
        else:
            low, high = bootstrap(lambda rows, v=inside: v[rows].mean(), owner, level=band, seed=seed)
        row |= {name: inside.mean(), f"{name}_low": low, f"{name}_high": high}
    pull = (flat.mean(0) - true) / flat.std(0, ddof=1)
    low, _, high = np.quantile(flat, ONE_SIGMA, axis=0)
    row |= {"pull_mean": pull.mean(), "pull_sd": pull.std()}
    row |= {f"within_{sigma}": (np.abs(pull) <= sigma).mean() for sigma in SIGMAS}
    row |= {"interval_score": interval_score(flat, true).mean(), "width": np.median(high - low) / 2}
    row["rank_p"] = stats.kstest(ranks, "uniform").pvalue if owner is None else np.nan
    return {name: value if isinstance(value, int) else float(value) for name, value in row.items()}


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    cluster: ArrayLike,
    *,
    level: float = 0.68,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the central interval of a statistic of row numbers, by resampling the clusters that the rows belong to.

    Rows of one cluster are not independent (Efron & Tibshirani 1993, doi:10.1201/9780429246593; Field & Welsh 2007,
    doi:10.1111/j.1467-9868.2007.00593.x).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    names, owner = np.unique(np.asarray(cluster), return_inverse=True)
    if not len(names):
        raise ValueError("cluster must name at least one row, got none")
    order = np.argsort(owner, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(names), size=(resamples, len(names)))
    values = np.array([statistic(np.concatenate([rows_of[number] for number in pick])) for pick in picks])
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
        What bins are made of ``(...)``: *estimated* signal-to-noise ratio, contested light, size over FWHM. In
        bins of a property of the truth itself, an exact posterior need not be calibrated.
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
        If a bin holds fewer than 100 values.
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
                f"bin {low:g} to {high:g} of {name} holds {number} values, fewer than {THIN}: it is uncertain",
                stacklevel=2,
            )
        if number >= LEAST:
            rows.append({"low": low, "high": high} | diagnose(np.where(inside, draws, np.nan), truth))
    return Table(rows)


def in_bins(values: ArrayLike, edges: ArrayLike) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Return lower edge, upper edge and the values inside, for each bin between ascending edges.

    A value on an edge is in the bin above it, and the last edge is in the last bin. NaN is in no bin.
    """
    values, edges = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[1:] > edges[:-1]).all():
        raise ValueError(f"edges must ascend, got {edges.tolist()}")
    number = np.searchsorted(edges, values, side="right") - (values == edges[-1])
    return [(float(low), float(high), number == index) for index, (low, high) in enumerate(pairwise(edges), start=1)]
