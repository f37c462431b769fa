"""Proper scores of posteriors, which reward calibration and sharpness at once: lower is better.

Coverage alone does not distinguish a sharp posterior from a broad one; a score does. Shapes are as in `ranks`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import draw_covariance, joint_arrays, paired_arrays
from .ranks import whitened

__all__ = ["crps", "energy_score", "interval_score", "log_score"]


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


def energy_score(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the energy score of joint draws, unbiased in the number of draws.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, group, part)``.
    truth
        True values ``(group, part)``.

    Returns
    -------
    NDArray
        ``E|X - truth| - E|X - X'| / 2`` of each group; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437.
    """
    draws, truth = joint_arrays(draws, truth)
    error = np.linalg.norm(draws - truth, axis=-1).mean(0)
    number = len(draws)
    spread = np.zeros(truth.shape[0])
    for shift in range(1, number):
        spread += np.linalg.norm(draws[shift:] - draws[:-shift], axis=-1).sum(0)
    return error - spread / (number * (number - 1))


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


def log_score(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return minus the log density at the truth of the normal distribution with the moments of the draws.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, group, part)``, of log-fluxes rather than fluxes, which are less normal.
    truth
        True values ``(group, part)``.

    Returns
    -------
    NDArray
        One value per group, in nats; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Dawid & Sebastiani (1999), doi:10.1214/aos/1018031101.
    """
    draws, truth = joint_arrays(draws, truth)
    covariance = draw_covariance(draws)
    error = whitened(draws.mean(0), covariance, truth)
    volume = np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.square(error).sum(-1) + volume + truth.shape[1] * np.log(2 * np.pi))
