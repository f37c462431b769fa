"""Ranks of truths among draws, and whitened errors.

For an exact posterior ranks are uniform, which ``scipy.stats.kstest(ranks, "uniform")`` tests.
Draws have the shape ``(draw, ...)``, truths ``(...)``; the last axis of joint quantities holds their parts.
Non-detections (NaN) are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .arrays import joint_arrays, paired_arrays

__all__ = ["covariance_pit", "group_pit", "joint_pit", "normal_pit", "pit", "whitened"]


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

    Every other draw gives mean and covariance, and the truth is ranked among the others: with draws that take part in
    their own covariance, many parts and few draws would make an exact posterior look too narrow.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, group, part)``.
    truth
        True values ``(group, part)``.
    seed
        Seed of the position within a rank.

    Returns
    -------
    NDArray
        One value per group; non-detections are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more than twice as many draws as parts.
    """
    draws, truth = joint_arrays(draws, truth)
    if len(draws) // 2 <= truth.shape[1]:
        raise ValueError(f"draws must be more than twice the {truth.shape[1]} parts, got {len(draws)}")
    fitted, ranked = draws[::2], draws[1::2]
    mean = fitted.mean(0)
    covariance = np.einsum("dgi,dgj->gij", fitted - mean, fitted - mean) / (len(fitted) - 1)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    distance = [
        np.square(np.einsum("...gi,gji->...gj", error, whitening)).sum(-1) for error in (ranked - mean, truth - mean)
    ]
    return pit(*distance, seed=seed)


def group_pit(draws: ArrayLike, truth: ArrayLike, group: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the joint rank, as `joint_pit`, of the sources of each group, whatever their number.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, source, ...)``, of log-fluxes; NaN for a non-detection.
    truth
        True values ``(source, ...)``; NaN where unknown.
    group
        The group of each source ``(source,)``.
    seed
        Seed of the position within a rank.

    Returns
    -------
    NDArray
        One value per group, in the order of the groups' numbers; NaN for groups with a non-detection or an unknown
        truth.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more than twice as many draws as parts of a group.
    """
    draws, truth, group = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64), np.asarray(group)
    if group.shape != truth.shape[:1] or draws.shape[1:] != truth.shape:
        shapes = f"{draws.shape}, {truth.shape}, {group.shape}"
        raise ValueError(f"draws, truth and group must have one row per source, got shapes {shapes}")
    _, owner, size = np.unique(group, return_inverse=True, return_counts=True)
    order, start = np.argsort(owner, kind="stable"), np.cumsum(size) - size
    values = np.full(len(size), np.nan)
    for number in np.unique(size):
        groups = np.flatnonzero(size == number)
        members = order[start[groups, None] + np.arange(number)]
        true, drawn = truth[members].reshape(len(groups), -1), draws[:, members].reshape(len(draws), len(groups), -1)
        known = np.isfinite(true).all(-1) & np.isfinite(drawn).all((0, 2))
        if known.any():
            values[groups[known]] = joint_pit(drawn[:, known], true[known], seed=seed + int(number))
    return values


def covariance_pit(mean: ArrayLike, covariance: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the chi-square probability of the Mahalanobis distance for means with covariances.

    Parameters
    ----------
    mean
        Estimates ``(group, part)``.
    covariance
        Their covariances ``(group, part, part)``, positive definite.
    truth
        True values ``(group, part)``.

    Returns
    -------
    NDArray
        One value per group, uniform for an exact posterior; non-detections are left out.

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
        Posterior means ``(group, part)``.
    covariance
        Posterior covariances ``(group, part, part)``.
    truth
        True values ``(group, part)``.

    Returns
    -------
    NDArray
        ``L^-1 (truth - mean)`` with the Cholesky factor L of the covariance ``(group, part)``; non-detections are
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
        raise ValueError("covariance must be positive definite for every group") from error
    return np.linalg.solve(factor, (truth - mean)[known][..., None])[..., 0]
