"""Are mask probabilities right? Reliability, calibration error and Brier score, added up over any number of pixels.

Masks that are defined by light above 3 rms and masks of a segmentation are different events; one `Reliability` holds
one kind. Targets may be soft, between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["BIN_EDGES", "Reliability"]

BIN_EDGES = tuple(np.linspace(0, 1, 21).round(2).tolist())


@dataclass(frozen=True, eq=False)
class Reliability:
    """Sums over pixels in bins of their predicted probability.

    Parameters
    ----------
    edges
        Ascending edges of the bins, from 0 to 1 ``(bin + 1,)``.
    count
        Number of pixels ``(bin,)``.
    predicted, observed
        Sums of the probabilities, and of the targets ``(bin,)``.
    squared
        Sums of the squared differences of both ``(bin,)``.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.float64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    squared: NDArray[np.float64]

    @classmethod
    def measure(cls, probability: ArrayLike, target: ArrayLike, *, edges: ArrayLike = BIN_EDGES) -> Reliability:
        """Sum over pixels.

        Parameters
        ----------
        probability
            Predicted probabilities ``(...)``.
        target
            Whether each pixel is in the mask, or how much of it ``(...)``.
        edges
            Ascending edges of bins, from 0 to 1.

        Returns
        -------
        Reliability
            Of these pixels; those of other pixels can be added to it.

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
        edges = np.asarray(edges, dtype=np.float64)
        bins = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, len(edges) - 2)
        sums = [
            np.bincount(bins, weights, minlength=len(edges) - 1).astype(np.float64)
            for weights in (None, probability, target, (probability - target) ** 2)
        ]
        return cls(edges, *sums)

    def __add__(self, other: Reliability) -> Reliability:
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("both must have the same edges to be added")
        names = [field.name for field in fields(self)][1:]
        return Reliability(self.edges, *(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of observed from predicted over bins, weighted by their pixels."""
        return float(np.abs(self.observed - self.predicted).sum() / self._total)

    @property
    def brier_score(self) -> float:
        """Mean squared difference of probability and target."""
        return float(self.squared.sum() / self._total)

    @property
    def _total(self) -> float:
        if not self.count.sum():
            raise ValueError("there must be pixels, got none")
        return float(self.count.sum())

    def curve(self, *, level: float = 0.95) -> dict[str, NDArray[np.float64]]:
        """Return the reliability curve: bins that hold pixels.

        Parameters
        ----------
        level
            Probability of the band, as if pixels were independent; neighbors are not, so that it is too narrow.

        Returns
        -------
        dict
            ``predicted`` and ``observed`` means, ``count``, and the ends ``low`` and ``high`` of the band ``(bin,)``.
        """
        held = self.count > 0
        count = self.count[held]
        predicted, observed = self.predicted[held] / count, self.observed[held] / count
        low, high = stats.binom.interval(level, count.astype(int), np.clip(predicted, 0, 1))
        return {"predicted": predicted, "observed": observed, "count": count, "low": low / count, "high": high / count}
