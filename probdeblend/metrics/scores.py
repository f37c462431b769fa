"""Proper scores of posteriors, which reward calibration and sharpness at once: lower is better.

Coverage alone does not distinguish a sharp posterior from a broad one; a score does. Shapes are as in `ranks`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import paired_arrays

__all__ = ["crps", "interval_score"]


def crps(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the continuous ranked probability score, unbiased in the number of draws.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.

    Returns
    -------
    NDArray
        ``E|X - truth| - E|X - X'| / 2`` in the unit of the draws ``(...)``, NaN for non-detections.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, or a truth is not finite.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437; Ferro (2014), doi:10.1002/qj.2270.
    """
    draws, truth = paired_arrays(draws, truth)
    number = len(draws)
    weight = (2 * np.arange(1, number + 1) - number - 1) / (number * (number - 1))
    return np.abs(draws - truth).mean(0) - np.tensordot(weight, np.sort(draws, axis=0), axes=1)


def interval_score(draws: ArrayLike, truth: ArrayLike, *, level: float = 0.68) -> NDArray[np.float64]:
    """Return the score of the central interval: its width, plus a penalty for missing the truth.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    level
        Probability of the interval.

    Returns
    -------
    NDArray
        ``width + 2 / (1 - level) * distance of the truth from the interval`` ``(...)``, NaN for non-detections.

    Raises
    ------
    ValueError
        If shapes disagree or the level is not between 0 and 1.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437, section 6.2.
    """
    draws, truth = paired_arrays(draws, truth)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    miss = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return high - low + 2 / (1 - level) * miss
