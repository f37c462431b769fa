"""What every diagnostic asks of draws and truths, checked once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ONE_SIGMA", "distribution_arrays", "draw_covariance", "joint_arrays", "paired_arrays"]

ONE_SIGMA = (0.16, 0.5, 0.84)
"""Quantiles of the lower end, the median and the upper end of the central 68 % interval."""


def paired_arrays(
    draws: ArrayLike, truth: ArrayLike, *, least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws and truths as arrays whose shapes agree.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``; NaN for an abstention.
    truth
        True values ``(...)``.
    least
        Least number of draws.

    Returns
    -------
    draws, truth
        Arrays of floats.

    Raises
    ------
    ValueError
        If shapes disagree, there are too few draws, or a truth is not finite.
    """
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if draws.ndim == 0 or draws.shape[1:] != truth.shape:
        raise ValueError(f"draws must have the shape (draw, *{truth.shape}), got {draws.shape}")
    if len(draws) < least:
        raise ValueError(f"draws must be at least {least}, got {len(draws)}")
    if not np.isfinite(truth).all():
        raise ValueError(f"truth must be finite, got {int((~np.isfinite(truth)).sum())} values that are not")
    return draws, truth


def joint_arrays(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws and truths of blends whose parts are judged together.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    draws, truth
        Without the blends of which a part is an abstention.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.
    """
    draws, truth = paired_arrays(draws, truth)
    if truth.ndim != 2:
        raise ValueError(f"truth must have the axes (blend, part), got shape {truth.shape}")
    if len(draws) <= truth.shape[1]:
        raise ValueError(f"draws must be more than the {truth.shape[1]} parts, got {len(draws)}")
    known = np.isfinite(draws).all((0, 2))
    return draws[:, known], truth[known]


def draw_covariance(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of the draws.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.

    Returns
    -------
    NDArray
        ``(blend, part, part)``.
    """
    error = draws - draws.mean(0)
    return np.einsum("dbi,dbj->bij", error, error) / (len(draws) - 1)


def distribution_arrays(probability: ArrayLike, blends: int) -> NDArray[np.float64]:
    """Return probabilities of classes as an array, a distribution a blend.

    Parameters
    ----------
    probability
        Probabilities ``(blend, class)``.
    blends
        How many blends there must be.

    Returns
    -------
    NDArray
        Floats between 0 and 1.

    Raises
    ------
    ValueError
        If the shape is another one, or a row is no distribution.
    """
    probability = np.asarray(probability, dtype=np.float64)
    if probability.ndim != 2 or probability.shape[0] != blends or probability.shape[1] < 2:
        raise ValueError(f"probability must have the shape ({blends}, class >= 2), got {probability.shape}")
    if not ((probability >= 0).all() and np.allclose(probability.sum(1), 1, atol=1e-4)):
        raise ValueError("probability must not be negative and must sum to 1 over the classes")
    return np.minimum(probability, 1)
