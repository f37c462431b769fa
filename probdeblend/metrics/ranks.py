"""Ranks of truths among draws.

For an exact posterior ranks are uniform, which ``scipy.stats.kstest(ranks, "uniform")`` tests.
Draws have the shape ``(draw, ...)``, truths ``(...)``; the last axis of joint quantities holds their parts.
Non-detections (NaN) are left out.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import members_by_size, paired_arrays

__all__ = ["group_pit", "joint_pit", "pit"]


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
    draws, truth = paired_arrays(draws, truth)
    if truth.ndim != 2:
        raise ValueError(f"truth must have the axes (group, part), got shape {truth.shape}")
    if len(draws) // 2 <= truth.shape[1]:
        raise ValueError(f"draws must be more than twice the {truth.shape[1]} parts, got {len(draws)}")
    known = np.isfinite(draws).all((0, 2))
    fitted, ranked, truth = draws[::2, known], draws[1::2, known], truth[known]
    mean = fitted.mean(0)
    covariance = np.einsum("dgi,dgj->gij", fitted - mean, fitted - mean) / (len(fitted) - 1)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    errors = (ranked - mean, truth - mean)
    return pit(*(np.square(np.einsum("...gi,gji->...gj", own, whitening)).sum(-1) for own in errors), seed=seed)


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
    values = np.full(len(np.unique(group)), np.nan)
    for groups, members in members_by_size(group):
        true, drawn = truth[members].reshape(len(groups), -1), draws[:, members].reshape(len(draws), len(groups), -1)
        known = np.isfinite(true).all(-1) & np.isfinite(drawn).all((0, 2))
        if known.any():
            values[groups[known]] = joint_pit(drawn[:, known], true[known], seed=seed + members.shape[1])
    return values
