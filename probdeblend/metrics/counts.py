"""Are probabilities of the number of galaxies right? Scores by class, and reliability in bins of separation."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .arrays import distribution_arrays
from .bins import in_bins
from .reliability import Reliability

__all__ = ["SEPARATION_EDGES", "count_reliability", "count_scores"]

SEPARATION_EDGES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Edges of the bins of separation over the FWHM of the PSF."""


def count_scores(probability: ArrayLike, truth: ArrayLike) -> Table:
    """Score probabilities of the number of galaxies.

    Parameters
    ----------
    probability
        Probabilities of one galaxy, two, ..., and as many as there are classes or more ``(blend, class)``.
    truth
        True numbers ``(blend,)``, from 1.

    Returns
    -------
    Table
        A row a class: ``galaxies``, its number; ``predicted`` and ``observed``, its mean probability and its share;
        ``accuracy``, the fraction of its blends in which it is the most probable one (NaN of none);
        ``calibration_error`` and ``brier_score`` of its probability. The table's ``meta`` has the same of all:
        ``blends``, ``accuracy``, ``calibration_error`` (mean over classes), ``brier_score`` (sum over classes, as Brier
        1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2, has it), and ``log_loss``, the cross-entropy in nat.

    Raises
    ------
    ValueError
        If shapes disagree, there are no blends, a row is no distribution, or a truth is no number from 1.
    """
    probability, truth = _answers(probability, truth)
    classes, label = probability.shape[1], np.minimum(truth, probability.shape[1]) - 1
    right = probability.argmax(1) == label
    rows = []
    for number in range(classes):
        true = label == number
        sums = Reliability.measure(probability[:, number], true)
        rows.append(
            {
                "galaxies": str(number + 1) if number + 1 < classes else f"{classes}+",
                "predicted": probability[:, number].mean(),
                "observed": true.mean(),
                "accuracy": right[true].mean() if true.any() else np.nan,
                "calibration_error": sums.calibration_error,
                "brier_score": sums.brier_score,
            }
        )
    table = Table(rows)
    true_probability = np.maximum(probability[np.arange(len(label)), label], np.finfo(float).tiny)
    table.meta = {
        "blends": len(label),
        "accuracy": float(right.mean()),
        "calibration_error": float(table["calibration_error"].mean()),
        "brier_score": float(table["brier_score"].sum()),
        "log_loss": float(-np.log(true_probability).mean()),
    }
    return table


def count_reliability(
    probability: ArrayLike, truth: ArrayLike, separation: ArrayLike, *, edges: ArrayLike = SEPARATION_EDGES
) -> Table:
    """Say how often a blend is taken for one galaxy, and whether its probability is right, in bins of separation.

    With the *true* separation, which single galaxies do not have, ``unrecognized`` and ``probability_two`` say what can
    be told from images; ``observed`` is then 1, and what ``predicted`` lacks is no error. With a separation that is
    *estimated*, for single galaxies too (from the positions of a posterior of pairs), calibrated probabilities have
    ``observed`` between ``low_observed`` and ``high_observed``.

    Parameters
    ----------
    probability
        Probabilities of one galaxy, two, ..., and as many as there are classes or more ``(blend, class)``.
    truth
        True numbers ``(blend,)``, from 1.
    separation
        Separation over the FWHM of the PSF ``(blend,)``; NaN where there is none.
    edges
        Ascending edges of the bins; a value on an edge is in the bin above it, and the last edge is in the last bin.

    Returns
    -------
    Table
        A row a bin: ``low``, ``high``, the number of ``blends``; ``predicted``, their mean probability of two or more,
        and ``observed``, the share with two or more, with the ends of the binomial 95 % band around ``predicted``;
        the number of true ``pairs``, their mean ``probability_two`` (of two or more), and ``unrecognized``, the
        fraction of them that is called single with more than 50 %. NaN of none. Its ``meta`` is that of `count_scores`.

    Raises
    ------
    ValueError
        As `count_scores`; if there is not a separation a blend, or edges do not ascend.
    """
    scores = count_scores(probability, truth)
    probability, truth = _answers(probability, truth)
    separation = np.asarray(separation, dtype=np.float64)
    if separation.shape != truth.shape:
        raise ValueError(f"separation must have the shape of truth {truth.shape}, got {separation.shape}")
    several = 1 - probability[:, 0]
    rows = [
        {"low": low, "high": high} | _reliability_row(several[inside], truth[inside])
        for low, high, inside in in_bins(separation, edges)
    ]
    return Table(rows, meta=scores.meta)


def _reliability_row(several: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, float]:
    names = ("predicted", "observed", "low_observed", "high_observed")
    curve = Reliability.measure(several, truth > 1, edges=(0.0, 1.0)).curve()
    values = [curve[name.removesuffix("_observed")] for name in names]
    pairs = several[truth == 2]
    return (
        {"blends": len(truth)}
        | {name: float(value[0]) if len(value) else np.nan for name, value in zip(names, values, strict=True)}
        | {
            "pairs": len(pairs),
            "probability_two": pairs.mean() if len(pairs) else np.nan,
            "unrecognized": (pairs < 0.5).mean() if len(pairs) else np.nan,
        }
    )


def _answers(probability: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    truth = np.asarray(truth)
    if truth.ndim != 1 or not len(truth) or truth.dtype.kind not in "iu" or truth.min() < 1:
        raise ValueError(f"truth must be at least one whole number from 1 a blend, got {truth.tolist()}")
    return distribution_arrays(probability, len(truth)), truth
