"""Coverage of intervals, with bands for the number of independent sources, and their score."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .arrays import ONE_SIGMA, over_finite, paired_arrays
from .ranks import pit

__all__ = ["bootstrap", "diagnose", "in_bins", "interval_score"]

LEAST = 10  # clusters, to tell how much a fraction scatters
LEVELS = (0.5, 0.68, 0.9, 0.95)
SIGMAS = (1, 2, 3)


def diagnose(
    draws: ArrayLike, truth: ArrayLike, *, cluster: ArrayLike | None = None, band: float = 0.95, seed: int = 0
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
        independent; else the bootstrap over clusters around the fraction; NaN with fewer than ten clusters);
        ``pull_mean`` and ``pull_sd``; ``within_1``, ``within_2`` and ``within_3``, the fractions of errors within so
        many standard deviations (as in the Euclid Morphology Challenge, Bretonniere et al. 2023, arXiv:2209.12907);
        ``interval_score`` (mean, 68 %), ``width`` (median half-width of the 68 % interval) and ``rank_p``, the p-value
        of a Kolmogorov-Smirnov test of the ranks (NaN with clusters). All are NaN without draws.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, or a truth is not finite.
    """
    draws, truth = paired_arrays(draws, truth)
    if cluster is not None and np.shape(cluster) != truth.shape:
        raise ValueError(f"cluster must have the shape of truth {truth.shape}, got {np.shape(cluster)}")
    flat, true = draws.reshape(len(draws), -1), truth.ravel()
    known = np.isfinite(flat).all(0)
    flat, true = flat[:, known], true[known]
    owner = np.arange(len(true)) if cluster is None else np.ravel(cluster)[known]
    ranks, clusters = pit(flat, true, seed=seed), len(np.unique(owner))
    inside, ends = np.abs(2 * ranks - 1) <= np.array(LEVELS)[:, None], np.full((2, len(LEVELS)), np.nan)
    if clusters >= LEAST and cluster is None:
        ends = np.array(stats.binom.interval(band, clusters, LEVELS)) / clusters
    elif clusters >= LEAST:
        ends = bootstrap(lambda rows: inside[:, rows].mean(1), owner, level=band, seed=seed)
    row: dict[str, float] = {"count": len(true), "clusters": clusters}
    for level, covered, low, high in zip(LEVELS, inside, *ends, strict=True):
        name = f"coverage_{100 * level:g}"
        row |= {name: over_finite(np.mean, covered), f"{name}_low": float(low), f"{name}_high": float(high)}
    error, spread = flat.mean(0) - true, flat.std(0, ddof=1)
    pull = np.divide(error, spread, out=np.full(len(true), np.inf), where=spread > 0)
    row |= {"pull_mean": over_finite(np.mean, pull), "pull_sd": over_finite(np.std, pull)}
    row |= {f"within_{sigma}": over_finite(np.mean, np.abs(pull) <= sigma) for sigma in SIGMAS}
    low, _, high = np.quantile(flat, ONE_SIGMA, axis=0)
    row |= {"interval_score": over_finite(np.mean, interval_score(flat, true))}
    row |= {"width": over_finite(np.median, (high - low) / 2)}
    tested = cluster is None and clusters > 0
    return row | {"rank_p": float(stats.kstest(ranks, "uniform").pvalue) if tested else float("nan")}


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], ArrayLike],
    cluster: ArrayLike,
    *,
    level: float = 0.68,
    resamples: int = 200,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the ends ``(2, ...)`` of the central interval of a statistic of rows, by resampling the rows' clusters.

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
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)


def in_bins(values: ArrayLike, edges: ArrayLike) -> list[tuple[float, float, NDArray[np.bool_]]]:
    """Return lower edge, upper edge and the values inside, for each bin between ascending edges.

    A value on an edge is in the bin above it, and the last edge is in the last bin. NaN is in no bin.
    """
    values, edges = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[1:] > edges[:-1]).all():
        raise ValueError(f"edges must ascend, got {edges.tolist()}")
    number = np.searchsorted(edges, values, side="right") - (values == edges[-1])
    return [(float(low), float(high), number == index) for index, (low, high) in enumerate(pairwise(edges), start=1)]


def interval_score(draws: ArrayLike, truth: ArrayLike, *, level: float = 0.68) -> NDArray[np.float64]:
    """Return the score of the central interval: its width, plus a penalty for missing the truth; lower is better.

    Coverage alone does not distinguish a sharp posterior from a broad one; a proper score does.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    level
        Probability of the interval.

    Returns
    -------
    NDArray
        ``width + 2 / (1 - level) * distance of the truth from the interval`` ``(...)``, NaN for non-detections.

    Raises
    ------
    ValueError
        If shapes disagree or the level is not between 0 and 1.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437, section 6.2.
    """
    draws, truth = paired_arrays(draws, truth)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    miss = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return high - low + 2 / (1 - level) * miss
