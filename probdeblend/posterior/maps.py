"""Monotone maps that move the draws of one galaxy, learned from many whose fluxes are known.

Errors are scaled by the posterior's own width: ``z = (value - median) / half-width of the 68 % interval``, of draws and
of truths. Four ways to learn where draws belong:

- "conformal": quantiles of the truths' z take the place of the quantiles of the draws. This is split conformal
  prediction on scaled residuals (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; Romano et al. 2019,
  arXiv:1905.03222), at all levels at once, and reaches beyond the draws;
- "isotonic": the truths' ranks among the draws are regressed on uniform ones (Kuleshov et al. 2018,
  arXiv:1807.00263). What no draw reaches stays out of reach: it cannot widen the outermost quantiles;
- "scale": one factor, which brings 68 % of the truths into the 68 % interval;
- "floor": the same by one error, added in quadrature to the width of all: what a model leaves out weighs most where
  noise is least. Where intervals are too wide, a factor.

Draws keep their order, so that the pair keeps its rank correlation.
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
METHODS = ("conformal", "isotonic", "scale", "floor")
DIGITS = 5
TAIL = 10.0  # the slope is taken from this multiple of the outermost level on, and at most from 16 %
FARTHEST = 6.0  # normal score beyond which no draw is
Method = Literal["conformal", "isotonic", "scale", "floor"]


@dataclass(frozen=True)
class QuantileMap:
    """Where draws go.

    Parameters
    ----------
    method
        "conformal": nodes are levels, and the scaled errors that belong there; "isotonic": levels, and the levels that
        they become; "scale": scaled errors, and what they become; "floor": no error, and the one that is added.
    given, wanted
        Ascending nodes, and what becomes of them.
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
        """Learn from galaxies whose truth is known.

        Parameters
        ----------
        values
            Draws ``(galaxy, draw)``.
        truth
            True values ``(galaxy,)``.
        method
            "conformal", "isotonic", "scale" or "floor".
        galaxies
            How many of them are distinct; all if None.

        Returns
        -------
        QuantileMap
            The map.
        """
        middle, width = _place(values)
        true = (truth - middle[:, 0]) / width[:, 0]
        if method in ("scale", "floor"):
            factor = max(float(np.quantile(np.abs(true), 0.68)), 1e-6)
            if method == "floor" and factor > 1:
                added = np.quantile(np.square(truth - middle[:, 0]) - np.square(width[:, 0]), 0.68)
                return cls(method, (0.0,), _rounded([np.sqrt(added)]))
            return cls("scale", (-1.0, 1.0), _rounded([-factor, factor]))
        if method == "isotonic":
            return cls(method, *_isotonic(values, truth))
        # One more truth is below the k-th of n with the probability k / (n + 1): whole k, nodes that or a little more.
        count = len(true) if galaxies is None else galaxies
        rank = (count + 1) * np.array(NODES)
        whole = np.unique(np.clip(np.where(np.array(NODES) < 0.5, np.floor(rank), np.ceil(rank)), 1, count))
        wanted = np.quantile(true, (whole - 0.5) / count, method="hazen")
        return cls(method, _rounded(whole / (count + 1)), _rounded(wanted))

    @classmethod
    def of_plain(cls, plain: dict) -> QuantileMap:
        """Make a map of its fields, as JSON gives them.

        Parameters
        ----------
        plain
            Fields by name, lists for tuples.

        Returns
        -------
        QuantileMap
            The map.
        """
        return cls(plain["method"], tuple(plain["given"]), tuple(plain["wanted"]))

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
        order = values.argsort(-1, kind="stable")
        ascending = np.take_along_axis(values, order, -1)
        levels = np.arange(1, values.shape[-1] + 1) / (values.shape[-1] + 1)  # truths rank evenly among such draws
        if self.method == "isotonic":
            placed = _at_levels(ascending, np.interp(levels, self.given, self.wanted))
        elif self.method == "scale":
            middle, _ = _place(values)
            placed = middle + self.wanted[-1] * (ascending - middle)
        elif self.method == "floor":
            middle, width = _place(values)
            placed = middle + np.hypot(width, self.wanted[0]) / width * (ascending - middle)
        else:
            placed = self._conformal(ascending, levels)
        moved = np.empty_like(values)
        np.put_along_axis(moved, order, placed, -1)
        return moved

    def _conformal(self, ascending: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
        middle, width = _place(ascending)
        given, wanted = ndtri(self.given), np.array(self.wanted)
        # Beyond the outermost nodes the tails of the truths go on, as normal ones of their slope.
        inner = max(np.searchsorted(self.given, min(TAIL * self.given[0], ONE_SIGMA[0])), 1)
        low, high = (
            wanted[end] + (wanted[end] - wanted[other]) / (given[end] - given[other]) * (place - given[end])
            for end, other, place in ((0, inner, -FARTHEST), (-1, -1 - inner, FARTHEST))
        )
        given, wanted = np.r_[-FARTHEST, given, FARTHEST], np.r_[low, wanted, high]
        return middle + width * np.interp(ndtri(levels), given, wanted)


def _place(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, middle, high = np.quantile(values, ONE_SIGMA, axis=-1)[..., None]
    return middle, np.maximum((high - low) / 2, np.finfo(float).tiny)


def _isotonic(values: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from sklearn.isotonic import IsotonicRegression  # takes a second to import, and only fitting needs it

    rank = np.sort(((values < truth[:, None]).sum(-1) + 0.5) / (values.shape[-1] + 1))
    uniform = (np.arange(len(rank)) + 0.5) / len(rank)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(rank, uniform)
    levels = np.linspace(0, 1, 101)
    # A quantile at the level p belongs where the regression of the ranks reaches p.
    return _rounded(levels), _rounded(np.interp(levels, regression.predict(levels) + 1e-9 * levels, levels))


def _at_levels(ascending: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    place = np.clip(levels * (ascending.shape[-1] + 1) - 1, 0, ascending.shape[-1] - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, ascending.shape[-1] - 1)
    return ascending[:, below] + (place - below) * (ascending[:, above] - ascending[:, below])


def _rounded(values: ArrayLike) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())
