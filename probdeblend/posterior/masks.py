"""Calibration of mask probabilities: a monotone map, learned from pixels of known masks.

Isotonic regression follows any monotone shape (Zadrozny & Elkan 2002, doi:10.1145/775047.775151). It is fitted to sums
over pixels in fine bins of the logit, so that any number of pixels needs the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ..metrics.masks import Reliability
from .draws import Posterior

__all__ = ["MaskMap", "calibrated_masks", "mask_sums"]

FITTED_SNR = 1.0  # only pixels brighter than this many sky rms: the background would dominate the fit
LEAST_PIXELS = 10_000
LEAST_ENTROPY = 1e-4  # bits; below, the ratio of information to entropy is lost to rounding
LIMIT = 12.0  # largest logit
EDGES = np.concatenate([[0.0], expit(np.linspace(-LIMIT, LIMIT, 481)), [1.0]])


def mask_sums(probability: ArrayLike, target: ArrayLike, snr: ArrayLike) -> Reliability:
    """Sum mask probabilities and true masks ``(blend, galaxy, y, x)`` over pixels with image over sky rms above 1."""
    bright = np.broadcast_to(np.asarray(snr)[:, None] > FITTED_SNR, np.shape(probability))
    return Reliability.measure(np.asarray(probability)[bright], np.asarray(target)[bright], edges=EDGES)


@dataclass(frozen=True)
class MaskMap:
    """A monotone map of probabilities, from ascending logits to others."""

    given: tuple[float, ...]
    wanted: tuple[float, ...]

    @classmethod
    def fit(cls, sums: Reliability) -> MaskMap:
        """Learn from the sums that `mask_sums` returns."""
        from sklearn.isotonic import IsotonicRegression  # slow to import, and needed for fits only

        total, inside = sums.count.sum(), sums.observed.sum()
        if total < LEAST_PIXELS:
            raise ValueError(f"masks need at least {LEAST_PIXELS} pixels above the sky noise, got {total:.0f}")
        if inside in (0, total):
            raise ValueError(
                f"masks must have pixels inside and outside to be calibrated, got {inside:.0f} of {total:.0f} inside"
            )
        held = sums.count > 0
        count = sums.count[held]
        x = logit(np.clip(sums.predicted[held] / count, expit(-LIMIT), expit(LIMIT)))
        regression = IsotonicRegression(y_min=expit(-LIMIT), y_max=expit(LIMIT))
        wanted = logit(regression.fit(x, sums.observed[held] / count, sample_weight=count).predict(x))
        return cls(tuple(np.round(x, 4).tolist()), tuple(np.round(wanted, 4).tolist()))

    def __call__(self, probability: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map probabilities of any shape."""
        with np.errstate(divide="ignore"):
            moved = np.interp(logit(np.asarray(probability, dtype=np.float64)), self.given, self.wanted)
        return expit(moved).astype(np.asarray(probability).dtype)


def calibrated_masks(mapping: MaskMap, posterior: Posterior) -> dict[str, Any]:
    """Return the calibrated masks of a posterior as variables; their information keeps its share of the entropy."""
    mask = posterior.dataset["mask"]
    moved = {"mask": (mask.dims, mapping(mask.values), mask.attrs)}
    if "mask_information" in posterior.dataset:
        entropy = Posterior(posterior.dataset.assign(moved)).mask_entropy
        share = posterior.mask_information / np.maximum(posterior.mask_entropy, LEAST_ENTROPY)
        moved["mask_information"] = (mask.dims, (share * entropy).values)
    return moved
