"""Ranks of truths among draws, and whitened errors.

Draws have the shape ``(draw, ...)``, truths ``(...)``; the last axis of joint quantities holds their parts.
Non-detections (NaN) are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .arrays import draw_covariance, joint_arrays, paired_arrays

__all__ = ["covariance_pit", "joint_pit", "normal_pit", "pit", "tarp", "whitened"]


def pit(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the probability integral transform, by ranks: uniform between 0 and 1 for an exact posterior.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    seed
        Seed of the position within a rank, which makes the values continuous.

    Returns
    -------
    NDArray
        One-dimensional; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, or a truth is not finite.
    """
    draws, truth = paired_arrays(draws, truth)
    flat, true = draws.reshape(len(draws), -1), truth.ravel()
    known = np.isfinite(flat).all(0)
    below, equal = (flat < true).sum(0)[known], (flat == true).sum(0)[known]
    place = np.random.default_rng(seed).random(len(below))
    return (below + place * (equal + 1)) / (len(draws) + 1)


def normal_pit(mean: ArrayLike, sd: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the probability integral transform of normal errors, such as those quoted in a catalog.

    Parameters
    ----------
    mean, sd
        Estimates and their errors ``(...)``.
    truth
        True values ``(...)``.

    Returns
    -------
    NDArray
        One-dimensional; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree, an error is not positive, or a truth is not finite.
    """
    mean, truth = paired_arrays(np.asarray(mean)[None], truth, least=1)
    mean, sd = mean[0], np.asarray(sd, dtype=np.float64)
    if sd.shape != truth.shape:
        raise ValueError(f"sd must have the shape of truth {truth.shape}, got {sd.shape}")
    known = np.isfinite(mean) & np.isfinite(sd)
    if (sd[known] <= 0).any():
        raise ValueError(f"sd must be positive, got {sd[known].min()}")
    return stats.norm.cdf((truth[known] - mean[known]) / sd[known])


def joint_pit(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the rank of the Mahalanobis distance of the truth among the draws: uniform for an exact posterior.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.
    seed
        Seed of the position within a rank.

    Returns
    -------
    NDArray
        One value per blend; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.
    """
    draws, truth = joint_arrays(draws, truth)
    mean = draws.mean(0)
    whitening = np.linalg.inv(np.linalg.cholesky(draw_covariance(draws)))
    distance = [
        np.square(np.einsum("...bi,bji->...bj", error, whitening)).sum(-1) for error in (draws - mean, truth - mean)
    ]
    return pit(*distance, seed=seed)


def covariance_pit(mean: ArrayLike, covariance: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the chi-square probability of the Mahalanobis distance for means with covariances.

    Parameters
    ----------
    mean
        Estimates ``(blend, part)``.
    covariance
        Their covariances ``(blend, part, part)``, positive definite.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        One value per blend, uniform for an exact posterior; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or a covariance is not positive definite.
    """
    error = whitened(mean, covariance, truth)
    return stats.chi2.cdf(np.square(error).sum(-1), error.shape[-1])


def whitened(mean: ArrayLike, covariance: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return errors in units of the posterior covariance: uncorrelated, of unit scatter, for an exact posterior.

    Parameters
    ----------
    mean
        Posterior means ``(blend, part)``.
    covariance
        Posterior covariances ``(blend, part, part)``.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        ``L^-1 (truth - mean)`` with the Cholesky factor L of the covariance ``(blend, part)``; non-detections are
        left out.

    Raises
    ------
    ValueError
        If shapes disagree or a covariance is not positive definite.
    """
    mean, truth = paired_arrays(np.asarray(mean)[None], truth, least=1)
    mean, covariance = mean[0], np.asarray(covariance, dtype=np.float64)
    if truth.ndim != 2 or covariance.shape != (*truth.shape, truth.shape[1]):
        expected = (*truth.shape, truth.shape[-1])
        raise ValueError(f"covariance must have the shape {expected}, got {covariance.shape}")
    known = np.isfinite(mean).all(-1) & np.isfinite(covariance).all((-2, -1))
    try:
        factor = np.linalg.cholesky(covariance[known])
    except np.linalg.LinAlgError as error:
        raise ValueError("covariance must be positive definite for every blend") from error
    return np.linalg.solve(factor, (truth - mean)[known][..., None])[..., 0]


def tarp(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the fraction of draws closer than the truth to a random reference point, one per blend (TARP).

    Parts are scaled to the range of the truths, from which the references are drawn.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.
    seed
        Seed of the references.

    Returns
    -------
    NDArray
        One value per blend, uniform between 0 and 1 for an exact posterior; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Lemos et al. (2023), arXiv:2302.03026.
    """
    draws, truth = joint_arrays(draws, truth)
    low, high = truth.min(0), truth.max(0)
    width = np.where(high > low, high - low, 1.0)
    rng = np.random.default_rng(seed)
    reference = rng.random(truth.shape)
    drawn = np.square((draws - low) / width - reference).sum(-1)
    true = np.square((truth - low) / width - reference).sum(-1)
    return pit(drawn, true, seed=seed + 1)
