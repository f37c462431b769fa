"""Whether galaxies were found, as positions and as masks: pure functions of arrays, blend by blend.

What is found in each blend is given as an array with the axis ``blend`` first, or as a list with an array a blend where
their numbers differ. Positions that are NaN and masks without pixels are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from .bins import in_bins
from .pixels import iou

__all__ = [
    "IOU_LEVELS",
    "average_precision",
    "binned_average_precision",
    "detection_table",
    "detection_totals",
    "match_positions",
]

# Quotients of integers are the doubles that a fraction of pixels or galaxies of that size has; sums of steps are not.
IOU_LEVELS = tuple(percent / 100 for percent in range(50, 100, 5))
RECALLS = np.arange(101) / 100
MISSED = -1


def match_positions(detected: ArrayLike, truth: ArrayLike, *, radius: float = 5.0) -> NDArray[np.int64]:
    """Say which detection each galaxy of a blend is.

    The assignment has the least sum of distances, in which one beyond the radius costs as much as the radius: a galaxy
    that was missed cannot take the detection of another one. The Blending ToolKit (Mendoza et al. 2025,
    arXiv:2409.06986) assigns without that limit and drops what is too far afterwards.

    Parameters
    ----------
    detected
        Positions of the detections ``(detection, 2)``, x before y, in pixels.
    truth
        Positions of the galaxies ``(galaxy, 2)``.
    radius
        Largest distance of a detection from its galaxy in pixels.

    Returns
    -------
    NDArray
        Index of the detection of each galaxy ``(galaxy,)``, -1 for a galaxy that was missed.

    Raises
    ------
    ValueError
        If these are no positions or the radius is not positive.

    References
    ----------
    Kuhn (1955), doi:10.1002/nav.3800020109; Schuhmacher, Vo & Vo (2008), doi:10.1109/TSP.2008.920469.
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    detected, truth = _positions(detected, "detected"), _positions(truth, "truth")
    there, real = _known(detected), _known(truth)
    distance = np.linalg.norm(truth[real][:, None] - detected[there][None], axis=-1)
    galaxy, detection = linear_sum_assignment(np.minimum(distance, radius))
    near = distance[galaxy, detection] <= radius
    found = np.full(len(truth), MISSED)
    found[real[galaxy[near]]] = there[detection[near]]
    return found


def detection_table(
    detected: ArrayLike | Sequence[ArrayLike], truth: ArrayLike | Sequence[ArrayLike], *, radius: float = 5.0
) -> Table:
    """Count in each blend what was detected of what there is.

    Parameters
    ----------
    detected
        Positions of all detections of each blend ``(blend, detection, 2)``, x before y, in pixels.
    truth
        Positions of the galaxies of each blend ``(blend, galaxy, 2)``.
    radius
        Largest distance of a detection from its galaxy in pixels.

    Returns
    -------
    Table
        A row a blend: the numbers of galaxies ``true``, of detections ``detected`` and of galaxies with a detection
        ``matched``; ``precision``, matched over detected, and ``recall``, matched over true; NaN of none.

    Raises
    ------
    ValueError
        If there are not as many blends in both, these are no positions or the radius is not positive.
    """
    _same_blends(detected, truth, "detected")
    counts = np.zeros((len(truth), 3), dtype=np.int64)
    for row, found, real in zip(counts, detected, truth, strict=True):
        matched = int((match_positions(found, real, radius=radius) != MISSED).sum())
        row[:] = len(_known(_positions(real, "truth"))), len(_known(_positions(found, "detected"))), matched
    table = Table(counts, names=("true", "detected", "matched"))
    table["precision"], table["recall"] = _ratio(counts[:, 2], counts[:, 1]), _ratio(counts[:, 2], counts[:, 0])
    return table


def detection_totals(table: Table) -> dict[str, float]:
    """Sum over blends what was detected, each galaxy and each detection alike.

    Parameters
    ----------
    table
        What `detection_table` returns, or some of its rows.

    Returns
    -------
    dict
        The sums ``true``, ``detected`` and ``matched``; ``precision`` and ``recall`` of the sums; ``f1``, their
        harmonic mean; NaN of none.
    """
    true, detected, matched = (int(np.sum(table[name])) for name in ("true", "detected", "matched"))
    ratios = _ratio([matched, matched, 2 * matched], [detected, true, detected + true])
    counts = {"true": true, "detected": detected, "matched": matched}
    return counts | dict(zip(("precision", "recall", "f1"), ratios.tolist(), strict=True))


def average_precision(
    estimate: ArrayLike | Sequence[ArrayLike],
    truth: ArrayLike | Sequence[ArrayLike],
    *,
    scores: ArrayLike | Sequence[ArrayLike] | None = None,
    threshold: float = 0.5,
) -> NDArray[np.float64]:
    """Return the average precision of masks at each of `IOU_LEVELS`; its mean is that of COCO.

    At each level, the masks of a blend take in the order of their scores the true mask with which they overlap most, of
    those that are left, if the intersection over union reaches the level. The average precision is the mean over 101
    recalls of the highest precision that is reached with at least that recall. Masks of one score enter together, so
    that the order of blends does not matter; where no two scores are equal, this is COCO's number.

    Parameters
    ----------
    estimate
        Masks of what was found in each blend ``(blend, instance, y, x)``: booleans, or numbers that are in the mask
        from `threshold` on.
    truth
        True masks of each blend ``(blend, galaxy, y, x)``.
    scores
        How sure each mask is ``(blend, instance)``; if None, the mean of its pixels from the threshold on, which is the
        same for all booleans.
    threshold
        Least probability of a pixel in the mask.

    Returns
    -------
    NDArray
        Average precision at intersections over union of 0.5, 0.55, ..., 0.95; NaN without a true mask.

    Raises
    ------
    ValueError
        If there are not as many blends in all, shapes disagree, or a score is not finite.

    References
    ----------
    Lin et al. (2014), arXiv:1405.0312.
    """
    return _curve(_overlaps(estimate, truth, scores, threshold))[0]


def binned_average_precision(
    estimate: ArrayLike | Sequence[ArrayLike],
    truth: ArrayLike | Sequence[ArrayLike],
    feature: ArrayLike,
    edges: ArrayLike,
    *,
    scores: ArrayLike | Sequence[ArrayLike] | None = None,
    threshold: float = 0.5,
) -> Table:
    """Measure masks in bins of what blends are like, such as their overlap.

    Parameters
    ----------
    estimate, truth
        As for `average_precision`.
    feature
        A number a blend ``(blend,)``, such as the largest `~probdeblend.metrics.pixels.blendedness` of its galaxies. Bins hold
        whole blends, because a mask that matches nothing is of no galaxy.
    edges
        Ascending edges, as for `~probdeblend.metrics.bins.in_bins`; from minus to plus infinity is all.
    scores, threshold
        As for `average_precision`.

    Returns
    -------
    Table
        A row a bin: ``low``, ``high``; the numbers of ``blends``, ``galaxies`` and ``instances``;
        ``average_precision``, the mean over `IOU_LEVELS`, and those at 0.5 and 0.75 as ``average_precision_50`` and
        ``average_precision_75``; ``average_recall``, the mean over the levels of the fraction of galaxies that were
        matched. NaN without a true mask.

    Raises
    ------
    ValueError
        As by `average_precision`, or if `feature` is no number a blend or edges do not ascend.
    """
    if np.shape(feature) != (len(truth),):
        raise ValueError(f"feature must have the shape of the blends ({len(truth)},), got {np.shape(feature)}")
    bins = in_bins(feature, edges)
    blends = _overlaps(estimate, truth, scores, threshold)
    return Table([{"low": low, "high": high} | _row([blends[i] for i in np.flatnonzero(x)]) for low, high, x in bins])


class _Overlap(NamedTuple):
    """Intersections over union of a blend's masks ``(instance, galaxy)``, and the scores, in falling order of them."""

    iou: NDArray[np.float64]
    score: NDArray[np.float64]


def _overlaps(
    estimate: ArrayLike | Sequence[ArrayLike],
    truth: ArrayLike | Sequence[ArrayLike],
    scores: ArrayLike | Sequence[ArrayLike] | None,
    threshold: float,
) -> list[_Overlap]:
    _same_blends(estimate, truth, "estimate")
    if scores is None:
        scores = [None] * len(truth)
    _same_blends(scores, truth, "scores")
    return [_overlap(*blend, threshold) for blend in zip(estimate, truth, scores, strict=True)]


def _overlap(estimate: ArrayLike, truth: ArrayLike, scores: ArrayLike | None, threshold: float) -> _Overlap:
    estimate, truth = np.asarray(estimate), np.asarray(truth)
    if estimate.ndim != 3 or truth.ndim != 3 or estimate.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"estimate and truth must have masks (number, y, x) of one size, got {estimate.shape} and {truth.shape}"
        )
    found, real = estimate >= threshold, truth >= threshold
    if scores is None:
        scores = np.where(found, estimate, 0).sum((1, 2), dtype=np.float64) / np.maximum(found.sum((1, 2)), 1)
    scores, there = np.asarray(scores, dtype=np.float64), found.any((1, 2))
    if scores.shape != (len(estimate),) or not np.isfinite(scores[there]).all():
        raise ValueError(f"scores must hold a finite number for each of {len(estimate)} masks, got {scores.tolist()}")
    found, real, scores = found[there], real[real.any((1, 2))], scores[there]
    order = np.argsort(-scores, kind="stable")
    return _Overlap(iou(*np.broadcast_arrays(found[order][:, None], real[None])), scores[order])


def _row(blends: list[_Overlap]) -> dict[str, float]:
    precision, recall = _curve(blends)
    return {
        "blends": len(blends),
        "galaxies": sum(blend.iou.shape[1] for blend in blends),
        "instances": sum(len(blend.score) for blend in blends),
        "average_precision": float(precision.mean()),
        "average_precision_50": float(precision[IOU_LEVELS.index(0.5)]),
        "average_precision_75": float(precision[IOU_LEVELS.index(0.75)]),
        "average_recall": float(recall.mean()),
    }


def _curve(blends: list[_Overlap]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision and largest recall at each level."""
    galaxies = sum(blend.iou.shape[1] for blend in blends)
    if not galaxies:
        return np.full(len(IOU_LEVELS), np.nan), np.full(len(IOU_LEVELS), np.nan)
    score = np.concatenate([blend.score for blend in blends])
    hits = [np.concatenate([_hits(blend.iou, level) for blend in blends]) for level in IOU_LEVELS]
    return np.array([_area(hit, score, galaxies) for hit in hits]), np.sum(hits, axis=1) / galaxies


def _hits(overlap: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Say which masks of a blend find a galaxy at this level; the first ones choose first."""
    overlap, hit = overlap.copy(), np.zeros(len(overlap), dtype=bool)
    for instance in np.flatnonzero((overlap >= level).any(1)):
        galaxy = overlap[instance].argmax()
        hit[instance] = overlap[instance, galaxy] >= level
        if hit[instance]:
            overlap[:, galaxy] = 0.0
    return hit


def _area(hit: NDArray[np.bool_], score: NDArray[np.float64], galaxies: int) -> float:
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
    matched = np.cumsum(hit[order])[last]
    precision = np.maximum.accumulate((matched / (last + 1))[::-1])[::-1]
    reached = np.searchsorted(matched / galaxies, RECALLS)
    return float(np.append(precision, 0.0)[reached].mean())


def _positions(positions: ArrayLike, name: str) -> NDArray[np.float64]:
    positions = np.asarray(positions, dtype=np.float64)
    positions = positions.reshape(0, 2) if positions.size == 0 else positions
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ValueError(f"{name} must have the shape (number, 2), x before y, got {positions.shape}")
    return positions


def _known(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.isfinite(positions).all(1))


def _same_blends(given: Sequence, truth: Sequence, name: str) -> None:
    if len(given) != len(truth):
        raise ValueError(f"{name} must hold as many blends as truth, {len(truth)}, got {len(given)}")


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
