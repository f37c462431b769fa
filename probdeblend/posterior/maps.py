"""Monotone maps of the draws of one galaxy, and of pairs, learned from many galaxies of known flux.

Errors are scaled by the width of the posterior: ``z = (value - median) / half-width of the 68 % interval``, of draws
and of truths. There are two ways to learn where draws belong:

- "conformal": the quantiles of z of the truths replace those of the draws. This is split conformal prediction on scaled
  residuals (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; Romano et al. 2019, arXiv:1905.03222), at all levels at
  once, and extends beyond the draws;
- "floor": one error, added in quadrature to all widths, brings 68 % of the truths into the 68 % interval: what a model
  lacks matters most where noise is lowest. If intervals are too wide, a factor does.

Draws keep their order, so that a pair keeps its rank correlation.

The two fluxes of a pair are mapped together: their total, their ratio, and the correlation of errors.

Flux that one galaxy gains the other loses: the total flux is known far better than its division, and posteriors that
are right for each galaxy may be wrong for the pair. Total flux and flux ratio have a map each. The correlation of their
errors follows, for each blend, from the widths of both fluxes and from their correlation, to first order; that
correlation is corrected, in Fisher's z (Fisher 1915, doi:10.2307/2331838), by the amount that truths of the group show.
The remaining dependence (difficult blends are difficult in both) is taken from the truths: their positions among the
draws, free of the correlation of each posterior, are a sample of the copula, and draws are exchanged between ranks
until they follow it. That leaves both maps intact (the Schaake shuffle: Clark et al. 2004,
doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri

from ..metrics.arrays import ONE_SIGMA

__all__ = [
    "METHODS",
    "NODES",
    "Method",
    "PairMap",
    "QuantileMap",
    "apart",
    "ranks",
    "swapped",
    "together",
]

_LOW = (0.005, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
NODES = (*_LOW, 0.5, *(round(1 - level, 3) for level in reversed(_LOW)))
METHODS = ("conformal", "floor")
DIGITS, PAIR_DIGITS = 5, 2
TINY = np.finfo(float).tiny
TAIL = 10.0  # the slope of a tail begins at this multiple of the outermost level, at most at 16 %
FARTHEST = 6.0  # normal score beyond which there are no draws
LARGEST = 0.99  # correlation; beyond, the second coordinate would be noise alone
WORST = 3.0  # error in half-widths; larger ones count as this
SMOOTHING = 0.3  # of the positions of truths, in units of n^(-1/6) standard deviations
Method = Literal["conformal", "floor"]


@dataclass(frozen=True)
class QuantileMap:
    """A map of draws.

    For "conformal", `given` holds levels and `wanted` the scaled errors at these levels; for "floor", the factor of the
    widths, at most 1, and the error that is added.
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
            lacking = np.quantile(np.square(truth - middle[:, 0]) - np.square(width[:, 0]), 0.68)
            return cls(method, _rounded([min(factor, 1)]), _rounded([np.sqrt(lacking) if factor > 1 else 0]))
        # A new truth is below the k-th of n with probability k / (n + 1): round nodes outwards to whole k.
        count = len(true) if galaxies is None else galaxies
        rank = (count + 1) * np.array(NODES)
        whole = np.unique(np.clip(np.where(np.array(NODES) < 0.5, np.floor(rank), np.ceil(rank)), 1, count))
        wanted = np.quantile(true, (whole - 0.5) / count, method="hazen")
        return cls(method, _rounded(whole / (count + 1)), _rounded(wanted))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws ``(galaxy, draw)``."""
        ascending = np.sort(values, axis=-1)
        middle, width = _center(values)
        if self.method == "floor":
            placed = middle + self.given[0] * np.hypot(width, self.wanted[0]) / width * (ascending - middle)
        else:
            placed = middle + width * self._scaled_errors(values.shape[-1])
        return np.take_along_axis(placed, ranks(values), -1)

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
    return middle, np.maximum((high - low) / 2, TINY)


def _rounded(values: ArrayLike) -> tuple[float, ...]:
    return tuple(np.round(values, DIGITS).tolist())


@dataclass(frozen=True)
class PairMap:
    """A map of the draws of pairs.

    `total` and `ratio` map the two coordinates of `apart`. `tie` is added to Fisher's z of the correlation of the
    fluxes; `kept` is the fraction kept of the correlation of total and ratio that follows. `places` are positions of
    truths among the draws: normal scores of the total, in ascending order, and standardized residuals of the ratio.
    """

    total: QuantileMap
    ratio: QuantileMap
    logarithmic: bool
    tie: float
    kept: float
    places: tuple[tuple[float, float], ...]

    @classmethod
    def fit(
        cls,
        values: NDArray[np.float64],
        truth: NDArray[np.float64],
        *,
        method: Method,
        blends: int,
        logarithmic: bool,
    ) -> PairMap:
        """Learn from coordinates of draws ``(blend, coordinate, draw)`` and of truths ``(blend, coordinate)``.

        `blends` is their effective number; `logarithmic` as for `apart`.
        """
        total, ratio = (
            QuantileMap.fit(values[:, axis], truth[:, axis], method=method, galaxies=blends) for axis in (0, 1)
        )
        below = np.stack([total(values[:, 0]), ratio(values[:, 1])], 1) < truth[..., None]
        first, second = ndtri((below.sum(-1) + 0.5) / (values.shape[-1] + 1)).T
        tie = _tie(values, truth, logarithmic)
        follows = _correlation_apart(values, tie, logarithmic)
        kept = float(np.round(np.sum(first * second * follows) / np.maximum(np.sum(follows**2), TINY), PAIR_DIGITS))
        correlation = np.clip(kept * follows, -LARGEST, LARGEST)
        places = np.stack([first, (second - correlation * first) / np.sqrt(1 - correlation**2)], -1)
        ascending = np.round(places[places[:, 0].argsort()], PAIR_DIGITS)
        return cls(total, ratio, logarithmic, tie, kept, tuple(map(tuple, ascending.tolist())))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws, given as coordinates ``(blend, coordinate, draw)``."""
        moved = np.stack([self.total(values[:, 0]), self.ratio(values[:, 1])], 1)
        follows = _correlation_apart(values, self.tie, self.logarithmic)[:, None]
        correlation = np.clip(self.kept * follows, -LARGEST, LARGEST)
        # As many positions as draws, evenly from those of truths, with smoothing noise that is always the same.
        count, draws = len(self.places), values.shape[-1]
        chosen = np.array(self.places)[((np.arange(draws) + 0.5) * count / draws).astype(int)]
        noise = np.random.default_rng(0).normal(size=(draws, 2))
        first, second = (chosen + SMOOTHING * count ** (-1 / 6) * noise).T
        tied = np.broadcast_arrays(first, correlation * first + np.sqrt(1 - correlation**2) * second)
        return np.take_along_axis(np.sort(moved, axis=-1), ranks(np.stack(tied, 1)), -1)


def apart(flux: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    """Return the coordinates ``(blend, coordinate, ...)`` of fluxes ``(blend, galaxy, ...)``.

    They are ln of the total and ln of the ratio of the first flux to the second or, for fluxes that may be negative
    (``logarithmic=False``), their sum and difference.
    """
    first, second = flux[:, 0], flux[:, 1]
    if logarithmic:
        return np.stack([np.log(first + second), np.log(first / second)], 1)
    return np.stack([first + second, first - second], 1)


def together(coordinates: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    """Return the fluxes ``(blend, galaxy, ...)`` of the coordinates that `apart` returns."""
    total, ratio = coordinates[:, 0], coordinates[:, 1]
    if logarithmic:
        return np.stack([np.exp(total - np.logaddexp(0, -ratio)), np.exp(total - np.logaddexp(0, ratio))], 1)
    return np.stack([(total + ratio) / 2, (total - ratio) / 2], 1)


def swapped(flux: NDArray[np.float64], swap: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return fluxes ``(blend, galaxy, ...)`` with the galaxies of some pairs exchanged."""
    return np.where(swap.reshape(-1, *[1] * (flux.ndim - 1)), flux[:, ::-1], flux)


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rank of each draw among those of its row, from 0."""
    ranks = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(ranks, values.argsort(-1, kind="stable"), np.arange(values.shape[-1]), -1)
    return ranks


def _marginals(values: NDArray[np.float64], logarithmic: bool) -> tuple[NDArray[np.float64], ...]:
    """Return the Jacobian from coordinates to (ln) fluxes; their medians, half-widths and correlation."""
    share = expit(np.median(values[:, 1], -1)) if logarithmic else np.full(len(values), 0.5)
    taken = np.stack([1 - share, -share], -1)
    to_fluxes = np.stack([np.full_like(taken, 1.0 if logarithmic else 0.5), taken], -1)
    draws = to_fluxes @ values
    low, middle, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    scores = ndtri((np.arange(draws.shape[-1]) + 0.5) / draws.shape[-1])
    claimed = (scores[ranks(draws)].prod(1)).mean(-1) / np.maximum((scores**2).mean(), TINY)
    return to_fluxes, middle, np.maximum(high - low, TINY) / 2, np.clip(claimed, -LARGEST, LARGEST)


def _tie(values: NDArray[np.float64], truth: NDArray[np.float64], logarithmic: bool) -> float:
    """Return by how much errors of the two fluxes correlate more than draws, in Fisher's z."""
    to_fluxes, middle, width, claimed = _marginals(values, logarithmic)
    error = np.clip(((to_fluxes @ truth[..., None])[..., 0] - middle) / width, -WORST, WORST)
    tied = np.mean(error.prod(1)) / np.sqrt(np.maximum(np.mean(error**2, 0).prod(), TINY))
    return float(np.round(np.arctanh(np.clip(tied, -LARGEST, LARGEST)) - np.arctanh(claimed).mean(), PAIR_DIGITS))


def _correlation_apart(values: NDArray[np.float64], tie: float, logarithmic: bool) -> NDArray[np.float64]:
    """Return the correlation of total and ratio of each blend, with the corrected correlation of fluxes."""
    to_fluxes, _, width, claimed = _marginals(values, logarithmic)
    tied = np.tanh(np.arctanh(claimed) + tie)[:, None, None]
    covariance = width[:, :, None] * width[:, None] * np.where(np.eye(2) == 1, 1, tied)
    apart_again = np.linalg.inv(to_fluxes)
    covariance = apart_again @ covariance @ apart_again.swapaxes(1, 2)
    size = np.sqrt(np.maximum(covariance[:, 0, 0] * covariance[:, 1, 1], TINY))
    return np.clip(covariance[:, 0, 1] / size, -LARGEST, LARGEST)
