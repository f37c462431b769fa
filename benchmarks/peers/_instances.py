"""Instances, which are masks with scores by class, and how precisely they are found.

Average precision is COCO's (Lin et al. 2014, arXiv:1405.0312): from the highest score down, each instance takes the
free true source that it overlaps most, if it does so by the threshold at least; precision is that of the best score
with at least the recall, averaged over 101 recalls, here without a limit on the number of instances per image.

Sources with a signal-to-noise ratio below five, or with a mask of fewer than five pixels, do not count: they are not
missed, and an instance that is nearest to one of them, and found nothing else, is not false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from benchmarks._scenes import LEAST_SNR, column, flat_draws
from benchmarks.peers._fields import Field, flat_masks, overlaps
from probdeblend.deblending.deblender import Deblends
from probdeblend.metrics.detections import IOU_THRESHOLDS, RECALLS
from probdeblend.scene import Scene
from probdeblend.training.evaluation import REACH

__all__ = ["CLASSES", "IOU_THRESHOLDS", "LEAST_AREA", "Instances", "by_network", "by_sep", "curves", "expected_iou"]
__all__ += ["hits", "judged", "precision"]

CLASSES = ("any", "galaxy", "star")
LEAST_AREA = 5  # pixels, as SExtractor asks of a detection
Arrays = dict[str, NDArray]


@dataclass(frozen=True, eq=False)
class Instances:
    """What was found in an image: masks ``(instance, pixel)``, centers x, y ``(instance, 2)``, and scores by class.

    Scores ``(instance, class)`` are those of `CLASSES`; an instance with NaN is none of that class.
    """

    mask: csr_array
    center: NDArray[np.float64]
    score: NDArray[np.float64]


def by_network(deblender: Deblends, scene: Scene, *, seed: int = 0) -> Instances:
    """Return what a network finds: each source is a galaxy and a star, by the probabilities that it exists as such.

    The score is this probability times the `expected_iou` of the mask.
    """
    posterior = deblender.scenes(scene, seed=seed)
    star = column(posterior, "star")
    existence = column(posterior, "existence") * [expected_iou(mask) for mask in posterior.cutouts.mask]
    score = np.stack([existence, existence * (1 - star), existence * star], -1)
    center = np.stack([column(posterior, "x"), column(posterior, "y")], -1)
    return Instances(flat_masks(posterior.cutouts), center, score)


def expected_iou(probability: NDArray) -> float:
    """Return about how much a mask, where its probability is one half or more, overlaps the truth: expected sums."""
    mask = probability >= 0.5
    return float(probability[mask].sum() / max(mask.sum() + probability[~mask].sum(), 1e-9))


def by_sep(deblender: Deblends, scene: Scene) -> Instances:
    """Return what SEP finds: sources of one class, by their signal-to-noise ratio in all bands."""
    posterior = deblender.scenes(scene)
    draws = flat_draws(posterior, "auto")
    ratio = np.linalg.norm(np.clip(draws.mean(0) / draws.std(0), 0, None), axis=-1)
    score = np.stack([np.nan_to_num(ratio), *np.full((2, len(ratio)), np.nan)], -1)
    center = np.stack([column(posterior, "x"), column(posterior, "y")], -1)
    return Instances(flat_masks(posterior.cutouts), center, score)


def hits(overlap: NDArray, score: NDArray, threshold: float) -> NDArray[np.int64]:
    """Return the true source that each instance ``(instance,)`` of an image finds, -1 for none.

    `overlap` ``(instance, source)`` is the intersection over union; instances whose score is NaN find nothing.
    """
    free, found = overlap.copy(), np.full(len(score), -1)
    for instance in np.argsort(-score, kind="stable") if overlap.shape[1] else ():
        if np.isfinite(score[instance]) and free[instance].max() >= threshold:
            found[instance] = free[instance].argmax()
            free[:, found[instance]] = -1
    return found


def curves(hit: NDArray, score: NDArray, counts: NDArray, total: int) -> NDArray[np.float64]:
    """Return the precision at each IoU threshold and recall ``(threshold, 101)``; NaN without true sources.

    `hit` ``(instance, threshold)`` says which instances of all images find a source, `counts` which others are false;
    those whose score ``(instance,)`` is NaN are left out.
    """
    if not total:
        return np.full((hit.shape[1], len(RECALLS)), np.nan)
    order = np.argsort(-score, kind="stable")[: np.isfinite(score).sum()]
    found = np.zeros((hit.shape[1], len(RECALLS)))
    for row, own in zip(found, hit[order].T, strict=True):
        true = own[own | counts[order]].cumsum()
        precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
        row[:] = np.append(precision, 0.0)[np.searchsorted(true / total, RECALLS - 1e-12)]
    return found


def judged(field: Field, found: Instances) -> Arrays:
    """Compare instances with the truth of a field.

    Per true source its ``scene``, whether it is a ``star`` and ``counts``, ``snr`` and ``contested`` light. Per
    instance ``found_score`` ``(instance, class)``; ``found_hit`` ``(instance, class, threshold)``, whether it finds a
    source of the class that counts; ``found_counts``, whether it is false where it does not; and ``found_snr`` and
    ``found_contested`` of the source that it finds, at the lowest threshold and of any class, else of the nearest.
    """
    star, snr, contested = field.star, field.snr, field.contested
    mask = flat_masks(field.truth)
    counts = (snr >= LEAST_SNR) & (mask.sum(1) >= LEAST_AREA)
    overlap, score = overlaps(found.mask, mask), found.score
    hit = np.full((len(score), len(CLASSES), len(IOU_THRESHOLDS)), -1)
    for kind, own in enumerate((counts, counts & ~star, counts & star)):
        for level, threshold in enumerate(IOU_THRESHOLDS):
            hit[:, kind, level] = hits(np.where(own, overlap, -1.0), score[:, kind], threshold)
    places = torch.stack([field.scene.x, field.scene.y], -1).double().numpy()
    away, nearest = KDTree(places).query(found.center) if len(score) else np.zeros((2, 0))
    nearest = np.where(hit[:, 0, 0] >= 0, hit[:, 0, 0], nearest).astype(int)
    real = {"scene": np.zeros(len(star), dtype=int), "star": star, "counts": counts, "snr": snr, "contested": contested}
    return real | {
        "found_score": score,
        "found_hit": hit >= 0,
        "found_counts": counts[nearest] | (away > REACH),
        "found_snr": snr[nearest],
        "found_contested": contested[nearest],
    }


def precision(
    found: Mapping[str, NDArray], kind: str, *, feature: str = "", low: float = -np.inf, high: float = np.inf
) -> tuple[NDArray[np.float64], int]:
    """Return the `curves` of a class, with the number of its true sources; of a feature's bin if one is named.

    An instance that finds no source belongs to the bin of the nearest.
    """
    number = CLASSES.index(kind)
    own = found["counts"] & (True if kind == "any" else found["star"] == (kind == "star"))
    inside = np.ones(len(found["found_score"]), dtype=bool)
    if feature:
        own = own & (found[feature] >= low) & (found[feature] < high)
        inside = (found[f"found_{feature}"] >= low) & (found[f"found_{feature}"] < high)
    hit, score = found["found_hit"][inside, number], found["found_score"][inside, number]
    return curves(hit, score, found["found_counts"][inside], int(own.sum())), int(own.sum())
