"""Masks: their overlap, the reliability of their probabilities, and how much sources overlap.

Masks defined by light above 3 rms and masks of a segmentation are different events; one `Reliability` holds one kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Reliability", "blendedness", "iou", "iou_matrix"]

BINS = 20  # of equal width


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of probabilities: sums over pixels in 20 bins of their predicted probability.

    Parameters
    ----------
    count
        Number of pixels ``(bin,)``.
    predicted, observed
        Sums of the probabilities, and of the targets ``(bin,)``.
    """

    count: NDArray[np.float64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]

    @classmethod
    def measure(cls, probability: ArrayLike, target: ArrayLike) -> Reliability:
        """Sum over pixels.

        Parameters
        ----------
        probability
            Predicted probabilities ``(...)``.
        target
            Whether each pixel is in the mask, or the fraction of it that is ``(...)``.

        Returns
        -------
        Reliability
            Of these pixels.

        Raises
        ------
        ValueError
            If shapes disagree, or a probability or target is not between 0 and 1.
        """
        probability, target = (np.asarray(values, dtype=np.float64).ravel() for values in (probability, target))
        if probability.shape != target.shape:
            raise ValueError(f"probability must have as many values as target, got {probability.size}, {target.size}")
        for name, values in (("probability", probability), ("target", target)):
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name} must be between 0 and 1, got {values[~((values >= 0) & (values <= 1))][0]}")
        bins = np.minimum(BINS * probability, BINS - 1).astype(int)
        weights = (np.ones(bins.shape), probability, target)
        return cls(*(np.bincount(bins, values, minlength=BINS) for values in weights))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean absolute difference of observed and predicted, weighted by pixels."""
        if not self.count.sum():
            raise ValueError("count must include at least one pixel, got 0")
        return float(np.abs(self.observed - self.predicted).sum() / self.count.sum())

    def curve(self) -> dict[str, NDArray[np.float64]]:
        """Return the reliability curve over the bins that hold pixels.

        Returns
        -------
        dict
            Means ``predicted`` and ``observed``, and ``count`` ``(bin,)``.
        """
        held = self.count > 0
        count = self.count[held]
        return {"predicted": self.predicted[held] / count, "observed": self.observed[held] / count, "count": count}


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
