"""Monotone maps that move the draws of one galaxy, learned from many whose fluxes are known.

Errors are scaled by the posterior's own width: ``z = (value - median) / half-width of the 68 % interval``, of draws and
of truths. Three ways to learn where draws belong:

- "conformal": quantiles of the truths' z say where the quantiles of the draws should be. This is split conformal
  prediction on scaled residuals (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; Romano et al. 2019,
  arXiv:1905.03222), at all levels at once, and reaches beyond the draws;
- "isotonic": the truths' ranks among the draws are regressed on uniform ones (Kuleshov et al. 2018,
  arXiv:1807.00263). What no draw reaches stays out of reach: it cannot widen the outermost quantiles;
- "scale": one factor, which brings 68 % of the truths into the 68 % interval.

Draws keep their order, so that the pair keeps its rank correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

__all__ = ["METHODS", "NODES", "Method", "QuantileMap"]

NODES = (0.01, 0.025, 0.05, 0.1, 0.16, 0.25, 0.35, 0.5, 0.65, 0.75, 0.84, 0.9, 0.95, 0.975, 0.99)
METHODS = ("conformal", "isotonic", "scale")
DIGITS = 5
Method = Literal["conformal", "isotonic", "scale"]


@dataclass(frozen=True)
class QuantileMap:
    """Where draws go.

    Parameters
    ----------
    given, wanted
        Ascending nodes of scaled errors, and what becomes of them; "isotonic" ones hold levels, between 0 and 1.
    ranks
        Whether nodes are levels.
    """

    given: tuple[float, ...]
    wanted: tuple[float, ...]
    ranks: bool = False

    @classmethod
    def fit(
        cls,
        values: NDArray[np.float64],
        truth: NDArray[np.float64],
        *,
        method: Method = "conformal",
        galaxies: int | None = None,
    ) -> QuantileMap:
        """Learn from galaxies whose truth is known.

        Parameters
        ----------
        values
            Draws ``(galaxy, draw)``.
        truth
            True values ``(galaxy,)``.
        method
            "conformal", "isotonic" or "scale".
        galaxies
            How many of them are distinct; all if None.

        Returns
        -------
        QuantileMap
            The map.
        """
        middle, width = _place(values)
        true = (truth - middle[:, 0]) / width[:, 0]
        if method == "scale":
            factor = max(float(np.quantile(np.abs(true), 0.68)), 1e-6)
            return cls((-1.0, 1.0), (-round(factor, DIGITS), round(factor, DIGITS)))
        if method == "isotonic":
            return _isotonic(values, truth)
        drawn = np.median((np.quantile(values, NODES, axis=-1).T - middle) / width, axis=0)
        # Quantiles of n truths at (n + 1) p, outwards: at least as wide as the level says for one more galaxy.
        count = len(true) if galaxies is None else galaxies
        rank = np.array(NODES) * (count + 1)
        outward = np.where(np.array(NODES) < 0.5, np.floor(rank), np.ceil(rank)) / (count + 1)
        wanted = np.maximum.accumulate(np.quantile(true, np.clip(outward, 0, 1)))
        return cls(_rounded(drawn), _rounded(wanted))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws.

        Parameters
        ----------
        values
            Draws ``(galaxy, draw)``.

        Returns
        -------
        NDArray
            Moved draws ``(galaxy, draw)``.
        """
        given, wanted = np.array(self.given), np.array(self.wanted)
        if self.ranks:
            order = values.argsort(-1, kind="stable").argsort(-1, kind="stable")
            levels = np.interp((order + 0.5) / values.shape[-1], given, wanted)
            return _at_levels(np.sort(values, axis=-1), levels)
        middle, width = _place(values)
        scaled = (values - middle) / width
        mapped = np.interp(scaled, given, wanted)
        # Beyond the outermost nodes draws go on in proportion.
        for end, outside in ((0, scaled < given[0]), (-1, scaled > given[-1])):
            stretch = abs(wanted[end]) / max(abs(given[end]), 1e-6)
            mapped = np.where(outside, wanted[end] + stretch * (scaled - given[end]), mapped)
        return middle + width * mapped


def _place(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84), axis=-1)[..., None]
    return middle, np.maximum((high - low) / 2, np.finfo(float).tiny)


def _isotonic(values: NDArray[np.float64], truth: NDArray[np.float64]) -> QuantileMap:
    rank = np.sort(((values < truth[:, None]).sum(-1) + 0.5) / (values.shape[-1] + 1))
    uniform = (np.arange(len(rank)) + 0.5) / len(rank)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(rank, uniform)
    levels = np.linspace(0, 1, 101)
    # A quantile at the level p belongs where the regression of the ranks reaches p.
    reached = np.interp(levels, regression.predict(levels) + 1e-9 * levels, levels)
    return QuantileMap(_rounded(levels), _rounded(reached), ranks=True)


def _at_levels(ascending: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    place = np.clip(levels * ascending.shape[-1] - 0.5, 0, ascending.shape[-1] - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, ascending.shape[-1] - 1)
    low, high = (np.take_along_axis(ascending, index, -1) for index in (below, above))
    return low + (place - below) * (high - low)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())
