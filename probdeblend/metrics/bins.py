"""The calibration of one quantity in a row of numbers, for all galaxies and in bins of what they are like."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .arrays import ONE_SIGMA, paired_arrays
from .bands import LEVELS, expected_coverage, rank_p_value
from .ranks import pit
from .resampling import bootstrap
from .scores import interval_score

__all__ = ["THIN", "binned_table", "coverage_row", "diagnose", "in_bins", "quantile_edges"]

THIN = 100
LEAST = 10
SIGMAS = (1, 2, 3)


def diagnose(
    draws: ArrayLike,
    truth: ArrayLike,
    *,
    galaxies: ArrayLike | None = None,
    levels: Sequence[float] = LEVELS,
    band: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Say in numbers how right the uncertainty of one quantity is.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``, of log-fluxes where errors are relative ones.
    truth
        True values ``(blend,)``, or ``(blend, galaxy)``: the errors of the galaxies of a blend are tied, so that bands
        are those of as many values as there are blends, and ranks are tested for each galaxy by itself.
    galaxies
        Which galaxy each value belongs to ``(...)``, where galaxies repeat; all are distinct if None.
    levels
        Probabilities of the intervals.
    band
        Probability of the bands of the fractions covered.
    seed
        Seed of ranks and of the resampling of galaxies.

    Returns
    -------
    dict
        ``count`` and ``galaxies`` with draws; for each level ``coverage_68`` (a fraction) with the ends of its band,
        ``coverage_68_low`` and ``coverage_68_high`` (binomial around the level where galaxies are distinct; else the
        bootstrap over galaxies around the fraction); ``pull_mean``, ``pull_sd``, and ``within_1``, ``within_2``,
        ``within_3``: the fractions of errors inside so many standard deviations (as in the Euclid Morphology
        Challenge, Bretonniere et al. 2023, arXiv:2209.12907); ``interval_score`` (mean, 68 %), ``width`` (median
        half-width of the 68 % interval) and ``rank_p``, the p-value of the ranks (the least of the galaxies', times
        their number; NaN where galaxies repeat).

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
    owner = None if galaxies is None else _owners(galaxies, truth)[known]
    ranks = pit(flat, true, seed=seed)
    row: dict[str, float] = {"count": len(true), "galaxies": len(true) if owner is None else len(np.unique(owner))}
    blends = int(np.bincount(part).max())
    row |= coverage_row(ranks, owner, levels=levels, band=band, independent=blends, seed=seed)
    pull = (flat.mean(0) - true) / flat.std(0, ddof=1)
    low, _, high = np.quantile(flat, ONE_SIGMA, axis=0)
    row |= {"pull_mean": pull.mean(), "pull_sd": pull.std()}
    row |= {f"within_{sigma}": (np.abs(pull) <= sigma).mean() for sigma in SIGMAS}
    row |= {"interval_score": interval_score(flat, true).mean(), "width": np.median(high - low) / 2}
    row["rank_p"] = _rank_p(ranks, part) if owner is None else np.nan
    return {name: value if isinstance(value, int) else float(value) for name, value in row.items()}


def coverage_row(
    ranks: NDArray[np.float64],
    owner: NDArray | None,
    *,
    levels: Sequence[float] = LEVELS,
    central: bool = True,
    band: float = 0.95,
    independent: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return coverage with its bands, by the names that `diagnose` gives them.

    Parameters
    ----------
    ranks
        Of the truth among the draws ``(value,)``.
    owner
        Which galaxy each is of; None where all are distinct.
    levels, central, band, independent
        As for `~probdeblend.metrics.bands.expected_coverage`.
    seed
        Seed of the resampling.

    Returns
    -------
    dict
        Three numbers a level.
    """
    row: dict[str, float] = {}
    bands = expected_coverage(ranks, levels=levels, central=central, band=band, independent=independent)
    for level, covered, *ends in bands:
        inside = (np.abs(2 * ranks - 1) if central else ranks) <= level
        low, high = ends if owner is None else bootstrap(partial(_mean_of, inside), owner, level=band, seed=seed)
        name = f"coverage_{100 * level:g}"
        row |= {name: covered, f"{name}_low": low, f"{name}_high": high}
    return row


def _rank_p(ranks: NDArray[np.float64], part: NDArray[np.int64]) -> float:
    apart = [ranks[part == number] for number in np.unique(part)]
    tested = [rank_p_value(values) for values in apart if len(values) >= LEAST]
    return min(1.0, len(tested) * min(tested)) if tested else np.nan


def _mean_of(values: NDArray[np.bool_], rows: NDArray[np.int64]) -> float:
    return float(values[rows].mean())


def _owners(galaxies: ArrayLike, truth: NDArray) -> NDArray:
    owner = np.asarray(galaxies)
    if owner.shape != truth.shape:
        raise ValueError(f"galaxies must have the shape of truth {truth.shape}, got {owner.shape}")
    return owner.ravel()


def quantile_edges(values: ArrayLike, bins: int = 5) -> NDArray[np.float64]:
    """Return edges of bins that hold equally many values.

    Parameters
    ----------
    values
        Numbers; those that are not finite are left out.
    bins
        How many bins.

    Returns
    -------
    NDArray
        At most ``bins + 1`` ascending edges; equal ones are joined.

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
    """Say which values are in each bin.

    Parameters
    ----------
    values
        Numbers of any shape; NaN is in no bin.
    edges
        Ascending edges; a value on an edge is in the bin above it, and the last edge is in the last bin.

    Returns
    -------
    list
        Lower edge, upper edge and the values in the bin, one a bin.

    Raises
    ------
    ValueError
        If edges do not ascend.
    """
    values, edges = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[1:] > edges[:-1]).all():
        raise ValueError(f"edges must ascend, got {edges.tolist()}")
    number = np.searchsorted(edges, values, side="right") - (values == edges[-1])
    return [(float(low), float(high), number == index) for index, (low, high) in enumerate(pairwise(edges), start=1)]


def binned_table(
    draws: ArrayLike,
    truth: ArrayLike,
    feature: ArrayLike,
    edges: ArrayLike,
    *,
    galaxies: ArrayLike | None = None,
    name: str = "feature",
    **options: object,
) -> Table:
    """Diagnose one quantity in bins of another.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    feature
        What bins are made of ``(...)``: *estimated* signal-to-noise ratio, separation over FWHM, flux ratio,
        blendedness. In bins of something that depends on the truth itself, an exact posterior need not be calibrated.
    edges
        Ascending edges, as for `in_bins`.
    galaxies
        As for `diagnose`.
    name
        Name of the feature, for the warning.
    **options
        For `diagnose`.

    Returns
    -------
    Table
        A row a bin with at least ten values: ``low``, ``high``, and the numbers of `diagnose`.

    Raises
    ------
    ValueError
        If shapes disagree or edges do not ascend.

    Warns
    -----
    UserWarning
        Where a bin holds fewer than `THIN` galaxies.
    """
    draws, truth = paired_arrays(draws, truth)
    feature = np.asarray(feature, dtype=np.float64)
    if feature.shape != truth.shape:
        raise ValueError(f"{name} must have the shape of truth {truth.shape}, got {feature.shape}")
    bins = in_bins(feature, edges)
    owner = None if galaxies is None else _owners(galaxies, truth).reshape(truth.shape)
    known = np.isfinite(draws).all(0)
    rows = []
    for low, high, there in bins:
        inside = known & there
        number = int(inside.sum()) if owner is None else len(np.unique(owner[inside]))
        if number < THIN:
            warnings.warn(
                f"bin {low:g} to {high:g} of {name} holds {number} galaxies, fewer than {THIN}: its numbers say little",
                stacklevel=2,
            )
        if inside.sum() >= 10:
            found = diagnose(np.where(inside, draws, np.nan), truth, galaxies=owner, **options)
            rows.append({"low": low, "high": high} | found)
    return Table(rows)
