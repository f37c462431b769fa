"""Monotone maps of the draws of one galaxy, learned from many galaxies of known flux.

Errors are scaled by the width of the posterior: ``z = (value - median) / half-width of the 68 % interval``, of draws
and of truths. There are three ways to learn where draws belong:

- "conformal": the quantiles of z of the truths replace those of the draws. This is split conformal prediction on scaled
  residuals (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; Romano et al. 2019, arXiv:1905.03222), at all levels at
  once, and extends beyond the draws;
- "scale": one factor, which brings 68 % of the truths into the 68 % interval;
- "floor": the same by one error, added in quadrature to all widths: what a model lacks matters most where noise is
  lowest. If intervals are too wide, a factor.

Draws keep their order, so that a pair keeps its rank correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from ..metrics.arrays import ONE_SIGMA

__all__ = ["METHODS", "NODES", "Method", "QuantileMap"]

_LOW = (0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
NODES = (*_LOW, 0.5, *(round(1 - level, 3) for level in reversed(_LOW)))
METHODS = ("conformal", "scale", "floor")
DIGITS = 5
TAIL = 10.0  # the slope of a tail begins at this multiple of the outermost level, at most at 16 %
FARTHEST = 6.0  # normal score beyond which there are no draws
Method = Literal["conformal", "scale", "floor"]


@dataclass(frozen=True)
class QuantileMap:
    """A map of draws.

    For "conformal", `given` holds levels and `wanted` the scaled errors at these levels; for "scale", scaled errors and
    what they become; for "floor", zero and the error that is added.
    """

    method: Method
    given: tuple[float, ...]
    wanted: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        values: NDArray[np.float64],
        truth: NDArray[np.float64],
        *,
        method: Method = "conformal",
        galaxies: int | None = None,
    ) -> QuantileMap:
        """Learn from draws ``(galaxy, draw)`` and truths ``(galaxy,)`` of `galaxies` distinct galaxies (None: all)."""
        middle, width = _center(values)
        true = (truth - middle[:, 0]) / width[:, 0]
        if method != "conformal":
            factor = max(float(np.quantile(np.abs(true), 0.68)), 1e-6)
            if method == "floor" and factor > 1:
                added = np.quantile(np.square(truth - middle[:, 0]) - np.square(width[:, 0]), 0.68)
                return cls(method, (0.0,), _rounded([np.sqrt(added)]))
            return cls("scale", (-1.0, 1.0), _rounded([-factor, factor]))
        # A new truth is below the k-th of n with probability k / (n + 1): round nodes outwards to whole k.
        count = len(true) if galaxies is None else galaxies
        rank = (count + 1) * np.array(NODES)
        whole = np.unique(np.clip(np.where(np.array(NODES) < 0.5, np.floor(rank), np.ceil(rank)), 1, count))
        wanted = np.quantile(true, (whole - 0.5) / count, method="hazen")
        return cls(method, _rounded(whole / (count + 1)), _rounded(wanted))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws ``(galaxy, draw)``."""
        order = values.argsort(-1, kind="stable")
        ascending = np.take_along_axis(values, order, -1)
        middle, width = _center(values)
        if self.method == "scale":
            placed = middle + self.wanted[-1] * (ascending - middle)
        elif self.method == "floor":
            placed = middle + np.hypot(width, self.wanted[0]) / width * (ascending - middle)
        else:
            placed = middle + width * self._scaled_errors(values.shape[-1])
        moved = np.empty_like(values)
        np.put_along_axis(moved, order, placed, -1)
        return moved

    def _scaled_errors(self, draws: int) -> NDArray[np.float64]:
        """Return the scaled errors of that many draws, in ascending order."""
        levels = np.arange(1, draws + 1) / (draws + 1)  # truths rank uniformly among such draws
        given, wanted = ndtri(self.given), np.array(self.wanted)
        # Tails beyond the outermost nodes are normal, of the slope of the truths.
        inner = max(np.searchsorted(self.given, min(TAIL * self.given[0], ONE_SIGMA[0])), 1)
        low, high = (
            wanted[end] + (wanted[end] - wanted[other]) / (given[end] - given[other]) * (place - given[end])
            for end, other, place in ((0, inner, -FARTHEST), (-1, -1 - inner, FARTHEST))
        )
        return np.interp(ndtri(levels), np.r_[-FARTHEST, given, FARTHEST], np.r_[low, wanted, high])


def _center(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median and the half-width of the 68 % interval ``(galaxy, 1)``."""
    low, middle, high = np.quantile(values, ONE_SIGMA, axis=-1)[..., None]
    return middle, np.maximum((high - low) / 2, np.finfo(float).tiny)


def _rounded(values: ArrayLike) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())
