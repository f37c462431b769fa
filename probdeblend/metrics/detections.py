"""Detections compared with true sources: matches, classes of blends, completeness, purity, precision of masks."""

from collections.abc import Sequence

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from .coverage import in_bins

__all__ = ["average_precision", "binned_fraction", "blend_classes", "match_positions", "match_sources"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)  # of COCO
RECALLS = np.linspace(0, 1, 101)  # of COCO


def match_sources(
    found: tuple[ArrayLike, ArrayLike, ArrayLike], true: tuple[ArrayLike, ArrayLike, ArrayLike], *, radius: float
) -> NDArray[np.int64]:
    """Match detections to true sources by position, scene by scene and one to one.

    As many sources as possible are matched within the radius and, of all ways to do so, with the least sum of
    distances (Hungarian method; Kuhn 1955, doi:10.1002/nav.3800020109).

    Parameters
    ----------
    found, true
        Scene, x and y ``(source,)`` of the detections, and of the true sources.
    radius
        Largest distance in pixels.

    Returns
    -------
    NDArray
        For each true source the index of its detection ``(source,)``, -1 for a missed one.

    Raises
    ------
    ValueError
        If the radius is not positive, or scene, x and y differ in length.
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    (scene, *place), (true_scene, *true_place) = (_positions(*of) for of in (("found", found), ("true", true)))
    matched = np.full(len(true_scene), -1)
    for number in np.unique(true_scene):
        own, theirs = np.flatnonzero(true_scene == number), np.flatnonzero(scene == number)
        both = ((values[theirs] for values in place), (values[own] for values in true_place))
        pairs = match_positions(*(np.stack([*values], -1) for values in both), radius=radius)
        matched[own[pairs >= 0]] = theirs[pairs[pairs >= 0]]
    return matched


def match_positions(found: NDArray, true: NDArray, *, radius: float) -> NDArray[np.int64]:
    """Return the index of the position ``(source, 2)`` of one scene that belongs to each true one, -1 for none."""
    distance = np.linalg.norm(true[:, None] - found[None], axis=-1)
    # Beyond the radius the cost is so high that no number of matches within it is worth one.
    beyond = (len(true) + len(found)) * np.min([radius, distance.max(initial=0)])
    rows, columns = linear_sum_assignment(np.where(distance <= radius, distance, beyond))
    matched = np.full(len(true), -1)
    near = distance[rows, columns] <= radius
    matched[rows[near]] = columns[near]
    return matched


def blend_classes(
    found: tuple[ArrayLike, ArrayLike, ArrayLike], true: tuple[ArrayLike, ArrayLike, ArrayLike], *, radius: float
) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Tell which blends were resolved, and which detections are pieces of a source or nothing.

    True sources and detections within the radius of each other belong to one group, and so do friends of friends. In
    it they are matched one to one as by `match_sources`. A blend is a group in which several true sources have a
    detection within the radius.

    Parameters
    ----------
    found, true
        Scene, x and y ``(source,)`` of the detections, and of the true sources.
    radius
        Linking length and largest distance of a match, in pixels. Classes depend on it: quote more than one.

    Returns
    -------
    true_class
        Class of each true source ``(source,)``: "missed" without a detection within the radius; "shredded" if one of
        those within it is left over; otherwise "single" outside of blends, and in blends "resolved" if all of
        its sources are matched, "unrecognized" if one alone is, and "partial" in between.
    found_class
        Class of each detection ``(source,)``: that of its true source; without one it is "shredded" if it lies within
        the radius of a true source, and "spurious" if not.

    Raises
    ------
    ValueError
        If the radius is not positive, or scene, x and y differ in length.

    References
    ----------
    Classes and matching follow DeepDISC for Roman and Rubin (https://github.com/grantmerz/DeepDISC_Roman_Rubin), which
    calls every blend that is not resolved both unrecognized and partial.
    """
    matched = match_sources(found, true, radius=radius)
    # Scenes are farther apart than the radius in a third coordinate.
    places = [np.stack(_positions("", of), -1).astype(float) * (2 * radius, 1, 1) for of in (found, true)]
    count, size = map(len, places)
    pairs = KDTree(np.concatenate(places)).query_pairs(radius, output_type="ndarray").T
    links = coo_array((np.ones(pairs.shape[1]), pairs), shape=(count + size, count + size))
    group = connected_components(links, directed=False)[1][count:]
    own, theirs = pairs[:, (pairs[0] < count) & (pairs[1] >= count)]
    left, seen, shredded = ~np.isin(np.arange(count), matched), matched >= 0, np.zeros(size, dtype=bool)
    seen[theirs - count] = True
    shredded[theirs[left[own]] - count] = True
    connected, resolved = (np.bincount(group, kind, minlength=count + size)[group] for kind in (seen, matched >= 0))
    kinds = [~seen, shredded, connected == 1, resolved == connected, resolved == 1]
    true_class = np.select(kinds, ["missed", "shredded", "single", "resolved", "unrecognized"], "partial")
    found_class = np.where(np.isin(np.arange(count), own), "shredded", "spurious").astype(true_class.dtype)
    found_class[matched[matched >= 0]] = true_class[matched >= 0]
    return true_class, found_class


def _positions(name: str, values: tuple[ArrayLike, ArrayLike, ArrayLike]) -> list[NDArray]:
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
        raise ValueError(f"{name} must be scene, x and y of one length, got shapes {[a.shape for a in arrays]}")
    return arrays


def binned_fraction(inside: ArrayLike, feature: ArrayLike, edges: ArrayLike, *, band: float = 0.68) -> Table:
    """Measure a fraction of sources in bins of a feature, such as completeness or purity by magnitude.

    Parameters
    ----------
    inside
        Whether each source counts ``(source,)``: a true source that was detected (completeness), or a detection that
        is a true source (purity).
    feature
        Magnitude, signal-to-noise ratio or contested light ``(source,)``; sources with NaN are in no bin.
    edges
        Ascending edges of the bins.
    band
        Probability of the band of each fraction (Wilson's interval).

    Returns
    -------
    Table
        One row per bin that holds sources: ``low``, ``high``, ``count``, ``fraction``, and the ends of the band
        ``fraction_low`` and ``fraction_high``.

    Raises
    ------
    ValueError
        If shapes disagree or edges do not ascend.
    """
    inside, feature = np.asarray(inside, dtype=bool), np.asarray(feature, dtype=np.float64)
    if inside.shape != feature.shape:
        raise ValueError(f"feature must have the shape of inside {inside.shape}, got {feature.shape}")
    rows = []
    for low, high, there in in_bins(feature, edges):
        if count := int(there.sum()):
            interval = stats.binomtest(int(inside[there].sum()), count).proportion_ci(band, method="wilson")
            row = {"low": low, "high": high, "count": count, "fraction": float(inside[there].mean())}
            rows.append(row | {"fraction_low": interval.low, "fraction_high": interval.high})
    return Table(rows)


def average_precision(overlap: Sequence[ArrayLike], score: Sequence[ArrayLike]) -> dict[str, float]:
    """Measure the average precision of detected masks as COCO defines it.

    Parameters
    ----------
    overlap
        Intersection over union of the masks ``(detection, true source)`` of each scene.
    score
        Confidence of the detections ``(detection,)`` of each scene, such as their existence.

    Returns
    -------
    dict
        ``ap``, the mean over IoU thresholds from 0.5 to 0.95, and ``ap_50``, at 0.5 alone. NaN without true sources.

    Raises
    ------
    ValueError
        If overlap and score disagree.

    References
    ----------
    Lin et al. (2014), arXiv:1405.0312: detections are matched from the highest score down, each to the free true source
    that it overlaps most; precision is that of the best threshold with at least the recall, averaged over 101 recalls.
    """
    overlaps, scores = [np.asarray(o, dtype=np.float64) for o in overlap], [np.asarray(s) for s in score]
    for pair, values in zip(overlaps, scores, strict=True):
        if pair.ndim != 2 or values.shape != pair.shape[:1]:
            raise ValueError(f"score must have one number per detection {pair.shape[:1]}, got shape {values.shape}")
    order = np.argsort(-np.concatenate([*scores, []]), kind="stable")
    total = sum(pair.shape[1] for pair in overlaps)
    if not total:
        return {"ap": float("nan"), "ap_50": float("nan")}
    found = [_precision(overlaps, scores, order, total, threshold) for threshold in IOU_THRESHOLDS]
    return {"ap": float(np.mean(found)), "ap_50": found[0]}


def _precision(overlaps: list[NDArray], scores: list[NDArray], order: NDArray, total: int, threshold: float) -> float:
    """Return the average precision at one threshold, with detections of all scenes in the order of their scores."""
    hits = [np.zeros(len(values), dtype=bool) for values in scores]
    for pair, values, hit in zip(overlaps, scores, hits, strict=True):
        free = pair.copy()
        for detection in np.argsort(-values, kind="stable"):
            if free.shape[1] and free[detection].max() >= threshold:
                hit[detection] = True
                free[:, free[detection].argmax()] = -1
    true = np.concatenate([*hits, np.zeros(0, dtype=bool)])[order].cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
    place = np.searchsorted(true / total, RECALLS - 1e-12)
    return float(np.append(precision, 0.0)[place].mean())
