"""Scores and reliability of probabilities of the number of galaxies."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .arrays import distribution_arrays
from .coverage import in_bins
from .masks import Reliability

__all__ = ["count_reliability", "count_scores"]

SEPARATION_EDGES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # in units of the FWHM of the PSF


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
        One row per class: the number of ``galaxies``; its mean probability ``predicted``, and its frequency
        ``observed``; ``accuracy``, the fraction of its blends in which it is the most probable class (NaN without
        any); ``calibration_error`` and ``brier_score`` of its probability. The ``meta`` of the table has the same over
        all classes: ``blends``, ``accuracy``, ``calibration_error`` (mean over classes), ``brier_score`` (sum over
        classes, as in Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), and ``log_loss``, the
        cross-entropy in nats.

    Raises
    ------
    ValueError
        If shapes disagree, there are no blends, a row is not a distribution, or a truth is not a whole number from 1.
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
    """Measure how often pairs are taken for one galaxy, and the reliability of probabilities, in bins of separation.

    With the *true* separation, which single galaxies lack, ``unrecognized`` and ``probability_two`` show what images
    can tell; ``observed`` is then 1, and ``predicted`` may be smaller without any error. With an *estimated*
    separation, also for single galaxies (from the positions of a posterior of pairs), calibrated probabilities have
    ``observed`` between ``low_observed`` and ``high_observed``.

    Parameters
    ----------
    probability
        Probabilities of one galaxy, two, ..., and as many as there are classes or more ``(blend, class)``.
    truth
        True numbers ``(blend,)``, from 1.
    separation
        Separation in units of the FWHM of the PSF ``(blend,)``; NaN if there is none.
    edges
        Ascending edges of the bins; a value on an edge is in the bin above it, and the last edge is in the last bin.

    Returns
    -------
    Table
        One row per bin: ``low``, ``high``, the number of ``blends``; ``predicted``, their mean probability of two or
        more galaxies, and ``observed``, the fraction with two or more, with the ends of the binomial 95 % band around
        ``predicted``; the number of true ``pairs``, their mean ``probability_two`` (of two or more), and
        ``unrecognized``, the fraction of them called single with more than 50 %. NaN without any. Its ``meta`` is that
        of `count_scores`.

    Raises
    ------
    ValueError
        As by `count_scores`; if there is not one separation per blend, or edges do not ascend.
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
    curve = Reliability.measure(several, truth > 1, edges=(0.0, 1.0)).curve()
    names = {"predicted": "predicted", "observed": "observed", "low": "low_observed", "high": "high_observed"}
    row = {"blends": len(truth)} | {names[key]: float(curve[key][0]) if len(truth) else np.nan for key in names}
    pairs = several[truth == 2] if (truth == 2).any() else np.array([np.nan])
    found = {"probability_two": pairs.mean(), "unrecognized": np.where(np.isnan(pairs), np.nan, pairs < 0.5).mean()}
    return row | {"pairs": int((truth == 2).sum())} | found


def _answers(probability: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    truth = np.asarray(truth)
    if truth.ndim != 1 or not len(truth) or truth.dtype.kind not in "iu" or truth.min() < 1:
        raise ValueError(f"truth must be one whole number from 1 per blend, got {truth.tolist()}")
    return distribution_arrays(probability, len(truth)), truth
