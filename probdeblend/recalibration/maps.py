"""Monotone maps that move the draws of one galaxy, learned from many whose fluxes are known.

Errors are scaled by the posterior's own width: ``z = (value - median) / half-width of the 68 % interval``, of draws and
of truths. Three ways to learn where draws belong:

- "conformal": quantiles of the truths' z take the place of the quantiles of the draws. This is split conformal
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
from numpy.typing import ArrayLike, NDArray

__all__ = ["METHODS", "NODES", "Method", "QuantileMap"]

_LOW = (0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
NODES = (*_LOW, 0.5, *(round(1 - level, 3) for level in reversed(_LOW)))
METHODS = ("conformal", "isotonic", "scale")
DIGITS = 5
Method = Literal["conformal", "isotonic", "scale"]


@dataclass(frozen=True)
class QuantileMap:
    """Where draws go.

    Parameters
    ----------
    method
        "conformal": nodes are levels, and the scaled errors that belong there; "isotonic": levels, and the levels that
        they become; "scale": scaled errors, and what they become.
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
            return cls(method, (-1.0, 1.0), _rounded([-factor, factor]))
        if method == "isotonic":
            return cls(method, *_isotonic(values, truth))
        # Quantiles of n truths at (n + 1) p, outwards: at least as wide as the level says for one more galaxy.
        count = len(true) if galaxies is None else galaxies
        rank = np.array(NODES) * (count + 1)
        outward = np.where(np.array(NODES) < 0.5, np.floor(rank), np.ceil(rank)) / (count + 1)
        return cls(method, NODES, _rounded(np.maximum.accumulate(np.quantile(true, np.clip(outward, 0, 1)))))

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
        levels = (np.arange(values.shape[-1]) + 0.5) / values.shape[-1]
        if self.method == "isotonic":
            placed = _at_levels(ascending, np.interp(levels, self.given, self.wanted))
        elif self.method == "scale":
            middle, _ = _place(values)
            placed = middle + self.wanted[-1] * (ascending - middle)
        else:
            placed = self._conformal(ascending, levels)
        moved = np.empty_like(values)
        np.put_along_axis(moved, order, placed, -1)
        return moved

    def _conformal(self, ascending: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
        middle, width = _place(ascending)
        scaled = np.broadcast_to(np.interp(levels, self.given, self.wanted), ascending.shape).copy()
        # Beyond the outermost nodes draws go on in proportion to their own tails.
        own = (ascending - middle) / width
        for end, outside in ((0, levels < self.given[0]), (-1, levels > self.given[-1])):
            edge = np.quantile(own, self.given[end], axis=-1, keepdims=True)
            stretch = abs(self.wanted[end]) / np.maximum(np.abs(edge), 1e-6)
            scaled[:, outside] = self.wanted[end] + stretch * (own[:, outside] - edge)
        return middle + width * scaled


def _place(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84), axis=-1)[..., None]
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
    place = np.clip(levels * ascending.shape[-1] - 0.5, 0, ascending.shape[-1] - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, ascending.shape[-1] - 1)
    return ascending[:, below] + (place - below) * (ascending[:, above] - ascending[:, below])


def _rounded(values: ArrayLike) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())
