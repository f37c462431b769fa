"""Variance of draws in chains, and its parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["variance_parts"]


def variance_parts(flux: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Divide the variance of draws into that within the chains and that between them.

    Parameters
    ----------
    flux
        Draws ``(chain, draw, ...)``; chains are dropout passes.

    Returns
    -------
    within, between
        Mean variance within a chain, and the variance of the chains' means beyond what so few draws scatter by
        themselves ``(...)``.
    """
    flux = np.asarray(flux, dtype=float)
    chains, each = flux.shape[:2]
    within = flux.var(1, ddof=min(1, each - 1)).mean(0)
    between = flux.mean(1).var(0) - within / each * (1 - 1 / chains)
    return within, np.maximum(between, 0)
