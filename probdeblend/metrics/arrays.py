"""Checks of draws, truths and probabilities that all diagnostics share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ONE_SIGMA", "distribution_arrays", "draw_covariance", "joint_arrays", "paired_arrays"]

ONE_SIGMA = (0.16, 0.5, 0.84)
"""Quantiles of the lower end, the median and the upper end of the central 68 % interval."""


def paired_arrays(
    draws: ArrayLike, truth: ArrayLike, *, least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws ``(draw, ...)``, NaN for a non-detection, and finite truths ``(...)`` as arrays of floats."""
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if draws.ndim == 0 or draws.shape[1:] != truth.shape:
        raise ValueError(f"draws must have the shape (draw, *{truth.shape}), got {draws.shape}")
    if len(draws) < least:
        raise ValueError(f"draws must be at least {least}, got {len(draws)}")
    if not np.isfinite(truth).all():
        raise ValueError(f"truth must be finite, got {int((~np.isfinite(truth)).sum())} non-finite values")
    return draws, truth


def joint_arrays(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws ``(draw, blend, part)`` and truths ``(blend, part)`` of the blends all of whose parts have draws."""
    draws, truth = paired_arrays(draws, truth)
    if truth.ndim != 2:
        raise ValueError(f"truth must have the axes (blend, part), got shape {truth.shape}")
    if len(draws) <= truth.shape[1]:
        raise ValueError(f"draws must outnumber the {truth.shape[1]} dimensions, got {len(draws)}")
    known = np.isfinite(draws).all((0, 2))
    return draws[:, known], truth[known]


def draw_covariance(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance ``(blend, part, part)`` of draws ``(draw, blend, part)``."""
    error = draws - draws.mean(0)
    return np.einsum("dbi,dbj->bij", error, error) / (len(draws) - 1)


def distribution_arrays(probability: ArrayLike, blends: int) -> NDArray[np.float64]:
    """Return class probabilities ``(blend, class)`` as an array of floats, one distribution per blend."""
    probability = np.asarray(probability, dtype=np.float64)
    if probability.ndim != 2 or probability.shape[0] != blends or probability.shape[1] < 2:
        raise ValueError(f"probability must have the shape ({blends}, class >= 2), got {probability.shape}")
    good = (probability >= 0).all(1) & np.isclose(probability.sum(1), 1, atol=1e-4)
    if not good.all():
        wrong = probability[~good][0]
        raise ValueError(f"probability must not be negative and must sum to 1 over the classes, got {wrong}")
    return np.minimum(probability, 1)
