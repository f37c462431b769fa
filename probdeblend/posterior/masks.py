"""Repair of mask probabilities: a monotone map of them, learned from pixels of known masks.

"temperature" divides the logits by one number (Guo et al. 2017, arXiv:1706.04599); "isotonic" regression follows any
monotone shape (Zadrozny & Elkan 2002, doi:10.1145/775047.775151). Both are fitted to sums over pixels in fine bins of
the logit, so that any number of pixels needs the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from ..metrics.masks import Reliability
from .draws import Posterior

__all__ = ["FITTED_SNR", "MaskMap", "MaskMethod", "MaskSums", "repaired_masks"]

FITTED_SNR = 1.0  # only pixels brighter than so many sky rms teach: the background would swamp the others
LEAST_PIXELS = 10_000
LEAST_ENTROPY = 1e-4  # bits; of less, the share that is information is lost to rounding
LIMIT = 12.0
MaskMethod = Literal["isotonic", "temperature"]


class MaskSums:
    """Sums over pixels from which a `MaskMap` is fitted."""

    edges = np.concatenate([[0.0], expit(np.linspace(-LIMIT, LIMIT, 481)), [1.0]])

    @classmethod
    def measure(cls, probability: ArrayLike, target: ArrayLike, snr: ArrayLike) -> Reliability:
        """Sum over the pixels that teach.

        Parameters
        ----------
        probability
            Mask probabilities ``(blend, galaxy, y, x)``.
        target
            True masks of that shape.
        snr
            Image over sky rms ``(blend, y, x)``.

        Returns
        -------
        Reliability
            In fine bins, to be added to those of other blends.
        """
        bright = np.broadcast_to(np.asarray(snr)[:, None] > FITTED_SNR, np.shape(probability))
        return Reliability.measure(np.asarray(probability)[bright], np.asarray(target)[bright], edges=cls.edges)


@dataclass(frozen=True)
class MaskMap:
    """A monotone map of probabilities.

    Parameters
    ----------
    given, wanted
        Ascending logits, and those that become of them.
    """

    given: tuple[float, ...]
    wanted: tuple[float, ...]

    @classmethod
    def fit(cls, sums: Reliability, *, method: MaskMethod = "isotonic") -> MaskMap:
        """Learn from pixels of known masks.

        Parameters
        ----------
        sums
            What `MaskSums.measure` returned, of all blends.
        method
            "isotonic" or "temperature".

        Returns
        -------
        MaskMap
            The map.

        Raises
        ------
        ValueError
            If there are fewer than 10,000 pixels, or they are all inside the masks, or all outside.
        """
        from sklearn.isotonic import IsotonicRegression  # takes a second to import, and only fitting needs it
        from sklearn.linear_model import LogisticRegression

        total, inside = sums.count.sum(), sums.observed.sum()
        if total < LEAST_PIXELS:
            raise ValueError(f"masks need at least {LEAST_PIXELS} pixels above the sky noise, got {total:.0f}")
        if inside in (0, total):
            raise ValueError("masks must have pixels inside and outside to be calibrated, got only one kind")
        held = sums.count > 0
        count = sums.count[held]
        predicted = np.clip(sums.predicted[held] / count, expit(-LIMIT), expit(LIMIT))
        observed = sums.observed[held] / count
        x = logit(predicted)
        if method == "temperature":
            fitted = LogisticRegression(C=np.inf, fit_intercept=False)
            both = np.concatenate([observed * count, (1 - observed) * count])
            labels = np.repeat([1, 0], len(x))
            factor = float(fitted.fit(np.tile(x, 2)[:, None], labels, sample_weight=both).coef_[0, 0])
            return cls((-LIMIT, LIMIT), (-round(LIMIT * factor, 4), round(LIMIT * factor, 4)))
        regression = IsotonicRegression(y_min=expit(-LIMIT), y_max=expit(LIMIT))
        wanted = logit(regression.fit(x, observed, sample_weight=count).predict(x))
        return cls(tuple(np.round(x, 4).tolist()), tuple(np.round(wanted, 4).tolist()))

    def __call__(self, probability: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map probabilities.

        Parameters
        ----------
        probability
            Any shape.

        Returns
        -------
        NDArray
            Of the same shape and type.
        """
        with np.errstate(divide="ignore"):
            moved = np.interp(logit(np.asarray(probability, dtype=np.float64)), self.given, self.wanted)
        return expit(moved).astype(np.asarray(probability).dtype)


def repaired_masks(repair: MaskMap, posterior: Posterior) -> dict[str, Any]:
    """Repair the masks of a posterior.

    Parameters
    ----------
    repair
        The map of probabilities.
    posterior
        A posterior with masks.

    Returns
    -------
    dict
        Variables by name: ``mask`` and, where the posterior has it, ``mask_information``: what the passes disagree on
        keeps its share of the entropy.
    """
    mask = posterior.dataset["mask"]
    moved = {"mask": (mask.dims, repair(mask.values), mask.attrs)}
    if "mask_information" in posterior.dataset:
        entropy = Posterior(posterior.dataset.assign(moved)).mask_entropy
        share = posterior.mask_information / np.maximum(posterior.mask_entropy, LEAST_ENTROPY)
        moved["mask_information"] = (mask.dims, (share * entropy).values)
    return moved
