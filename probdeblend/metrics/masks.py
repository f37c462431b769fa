"""Masks: their overlap, the reliability of their probabilities, and how much sources overlap.

Masks defined by light above 3 rms and masks of a segmentation are different events; judge one kind at a time.
"""

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

__all__ = ["blendedness", "iou", "iou_matrix", "reliability"]

BINS = 20  # of equal width


def reliability(probability: ArrayLike, target: ArrayLike) -> Table:
    """Measure whether what is given a probability occurs as often.

    Parameters
    ----------
    probability
        Predicted probabilities ``(...)``.
    target
        Whether each pixel is in the mask, or the fraction of it that is ``(...)``.

    Returns
    -------
    Table
        One row for each of 20 bins of the probability that holds pixels: means ``predicted`` and ``observed``, and
        ``count``. Its ``meta`` holds the expected calibration error ``ece``: the mean absolute difference of observed
        and predicted, weighted by pixels.

    Raises
    ------
    ValueError
        If shapes disagree, there are no values, or a probability or target is not between 0 and 1.
    """
    probability, target = (np.asarray(values, dtype=np.float64).ravel() for values in (probability, target))
    if probability.shape != target.shape or not probability.size:
        sizes = f"{probability.size} and {target.size}"
        raise ValueError(f"probability must have as many values as target, and at least one, got {sizes}")
    for name, values in (("probability", probability), ("target", target)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be between 0 and 1, got {values[~((values >= 0) & (values <= 1))][0]}")
    bins = np.minimum(BINS * probability, BINS - 1).astype(int)
    _, bins, count = np.unique(bins, return_inverse=True, return_counts=True)
    predicted, observed = (np.bincount(bins, values) / count for values in (probability, target))
    error = float(np.average(np.abs(observed - predicted), weights=count))
    return Table({"predicted": predicted, "observed": observed, "count": count}, meta={"ece": error})


def iou(estimate: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> NDArray[np.float64]:
    """Return the intersection over union of masks; 1 for two empty masks.

    Parameters
    ----------
    estimate, truth
        Masks ``(..., y, x)``: booleans or probabilities.
    threshold
        Lowest probability of a pixel in the mask.

    Returns
    -------
    NDArray
        One number per mask ``(...)``.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    estimate, truth = np.asarray(estimate), np.asarray(truth)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate must have the shape of truth {truth.shape}, got {estimate.shape}")
    first, second = estimate >= threshold, truth >= threshold
    union = (first | second).sum((-2, -1))
    return np.where(union == 0, 1.0, (first & second).sum((-2, -1)) / np.maximum(union, 1))


def iou_matrix(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union of every mask ``(detection, y, x)`` with every other ``(source, y, x)``."""
    sides = np.shape(truth)[1:]
    first, second = (np.asarray(m, dtype=np.float32).reshape(len(m), np.prod(sides)) for m in (estimate, truth))
    both = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - both
    return (both / np.maximum(union, 1)).astype(np.float64)


def blendedness(isolated: ArrayLike) -> NDArray[np.float64]:
    """Return the blendedness of sources: 0 for an isolated one, close to 1 under a much brighter neighbor.

    Parameters
    ----------
    isolated
        Image of each source of a scene alone ``(..., source, y, x)``.

    Returns
    -------
    NDArray
        ``1 - sum(I_i^2) / sum(I_total I_i)`` of each source ``(..., source)``; NaN for one without light.

    References
    ----------
    Bosch et al. (2018), doi:10.1093/pasj/psx080, section 4.9.11.
    """
    light = np.asarray(isolated, dtype=np.float64)
    own = (light**2).sum((-2, -1))
    shared = (light.sum(-3, keepdims=True) * light).sum((-2, -1))
    return np.where(shared > 0, 1 - own / np.where(shared > 0, shared, 1.0), np.nan)
