"""How well pixels are told apart, and how much galaxies overlap: pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["blendedness", "iou", "label_iou"]


def iou(estimate: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5) -> NDArray[np.float64]:
    """Intersection over union of masks; two masks without pixels agree (1).

    Parameters
    ----------
    estimate, truth
        Masks ``(..., y, x)``: booleans, or numbers that are in the mask from `threshold` on.
    threshold
        Least probability of a pixel in the mask.

    Returns
    -------
    NDArray
        One number a mask ``(...)``.

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


def label_iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each label of pixels; NaN for a label that is nowhere.

    Parameters
    ----------
    confusion
        Number of pixels by true (row) and estimated (column) label.

    Returns
    -------
    NDArray
        One number a label.

    Raises
    ------
    ValueError
        If the table is not square.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    if confusion.ndim != 2 or len(set(confusion.shape)) != 1:
        raise ValueError(f"confusion must be square, got shape {confusion.shape}")
    both = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan)


def blendedness(isolated: ArrayLike) -> NDArray[np.float64]:
    """How much of the image at a galaxy is other galaxies' light: 0 for a lone one, towards 1 for a swamped one.

    Parameters
    ----------
    isolated
        Image of each galaxy alone ``(..., galaxy, y, x)``.

    Returns
    -------
    NDArray
        ``1 - sum(I_i^2) / sum(I_total I_i)`` of each galaxy ``(..., galaxy)``; NaN for one without light.

    References
    ----------
    Bosch et al. (2018), doi:10.1093/pasj/psx080, section 4.9.11.
    """
    light = np.asarray(isolated, dtype=np.float64)
    own = (light**2).sum((-2, -1))
    shared = (light.sum(-3, keepdims=True) * light).sum((-2, -1))
    return np.where(shared > 0, 1 - own / np.where(shared > 0, shared, 1.0), np.nan)
