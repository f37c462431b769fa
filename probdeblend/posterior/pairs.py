"""Repair of the two fluxes of a pair together: of their sum, of their ratio, and of how errors of the two are tied.

What one galaxy gains the other loses: the total flux is known far better than how it is shared, and posteriors that are
right for each galaxy may be wrong for both. Total flux and flux ratio are given a map each. How their errors correlate
follows, for each blend, from the widths of both fluxes and from their correlation, to first order; that correlation is
corrected by as much, in Fisher's z (Fisher 1915, doi:10.2307/2331838), as truths of the group tell. What dependence
remains (blends that are hard are so in both) is taken from the truths: their places among the draws, free of each
posterior's own correlation, are a sample of the copula, and draws are exchanged between ranks until they follow it.
That leaves both maps' work as it is (the Schaake shuffle: Clark et al. 2004,
doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from ..metrics.arrays import ONE_SIGMA
from ..metrics.scores import interval_score
from .maps import Method, QuantileMap

__all__ = ["PairMap", "apart", "second_is_brighter", "swapped", "together", "total_score"]

MOST_TIED = 0.99  # rank correlation beyond which the second coordinate would be noise alone
WILDEST = 3.0  # error in half-widths: what is beyond says as much
TINY = np.finfo(float).tiny
SMOOTHING = 0.3  # of the places of truths, in units of n^(-1/6) standard deviations
DIGITS = 2


@dataclass(frozen=True)
class PairMap:
    """Where draws of a pair go.

    Parameters
    ----------
    total, ratio
        Maps of the two coordinates of `apart`.
    logarithmic
        Whether these are logarithms.
    tie
        What is added to Fisher's z of the correlation of both fluxes.
    kept
        How much is kept of the correlation of total and ratio that follows from it.
    places
        Places of truths among the draws, in ascending order of the first: normal scores of the total, and of the ratio
        less what the total tells of it, in units of what is left.
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
        """Learn from pairs whose truth is known.

        Parameters
        ----------
        values
            Coordinates of draws ``(blend, coordinate, draw)``.
        truth
            Coordinates of truths ``(blend, coordinate)``.
        method
            "conformal", "isotonic", "scale" or "floor".
        blends
            How many blends these are worth.
        logarithmic
            Whether coordinates are logarithms.

        Returns
        -------
        PairMap
            The map.
        """
        total, ratio = (
            QuantileMap.fit(values[:, axis], truth[:, axis], method=method, galaxies=blends) for axis in (0, 1)
        )
        moved = np.stack([total(values[:, 0]), ratio(values[:, 1])], 1)
        below = (moved < truth[..., None]).sum(-1)
        first, second = ndtri((below + 0.5) / (values.shape[-1] + 1)).T
        tie = _tie(values, truth, logarithmic)
        follows = _correlation_apart(values, tie, logarithmic)
        kept = float(np.round(np.sum(first * second * follows) / np.maximum(np.sum(follows**2), TINY), DIGITS))
        correlation = np.clip(kept * follows, -MOST_TIED, MOST_TIED)
        places = np.stack([first, (second - correlation * first) / np.sqrt(1 - correlation**2)], -1)
        ascending = np.round(places[places[:, 0].argsort()], DIGITS)
        return cls(total, ratio, logarithmic, tie, kept, tuple(map(tuple, ascending.tolist())))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws.

        Parameters
        ----------
        values
            Coordinates of draws ``(blend, coordinate, draw)``.

        Returns
        -------
        NDArray
            Coordinates of moved draws.
        """
        moved = np.stack([self.total(values[:, 0]), self.ratio(values[:, 1])], 1)
        follows = _correlation_apart(values, self.tie, self.logarithmic)[:, None]
        correlation = np.clip(self.kept * follows, -MOST_TIED, MOST_TIED)
        first, second = self._sample(values.shape[-1]).T
        tied = np.stack(
            [np.broadcast_to(first, moved[:, 0].shape), correlation * first + np.sqrt(1 - correlation**2) * second], 1
        )
        return np.take_along_axis(np.sort(moved, axis=-1), _ranks(tied), -1)

    def _sample(self, draws: int) -> NDArray[np.float64]:
        """Return that many places, evenly from those of truths and smoothed; always the same."""
        count = len(self.places)
        chosen = np.array(self.places)[((np.arange(draws) + 0.5) * count / draws).astype(int)]
        noise = np.random.default_rng(0).normal(size=(draws, 2))
        return chosen + SMOOTHING * count ** (-1 / 6) * noise


def apart(flux: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    """Return total flux and flux ratio.

    Parameters
    ----------
    flux
        Fluxes ``(blend, galaxy, ...)``.
    logarithmic
        Whether fluxes are positive; else their difference takes the place of the ratio, and neither is a logarithm.

    Returns
    -------
    NDArray
        ``(blend, coordinate, ...)``: ln of the total, and ln of the first flux over the second.
    """
    first, second = flux[:, 0], flux[:, 1]
    if logarithmic:
        return np.stack([np.log(first + second), np.log(first / second)], 1)
    return np.stack([first + second, first - second], 1)


def together(coordinates: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    """Return the fluxes that `apart` was given.

    Parameters
    ----------
    coordinates
        ``(blend, coordinate, ...)``.
    logarithmic
        As for `apart`.

    Returns
    -------
    NDArray
        Fluxes ``(blend, galaxy, ...)``.
    """
    total, ratio = coordinates[:, 0], coordinates[:, 1]
    if logarithmic:
        return np.stack([np.exp(total - np.logaddexp(0, -ratio)), np.exp(total - np.logaddexp(0, ratio))], 1)
    return np.stack([(total + ratio) / 2, (total - ratio) / 2], 1)


def total_score(flux: NDArray[np.float64], truth: NDArray[np.float64], *, logarithmic: bool) -> float:
    """Return how well draws tell the total flux: the mean interval score, the lower the better.

    Parameters
    ----------
    flux
        Draws ``(blend, galaxy, draw)``.
    truth
        ``(blend, galaxy)``.
    logarithmic
        As for `apart`.

    Returns
    -------
    float
        Of the first coordinate of `apart`.
    """
    total, true = (apart(values, logarithmic=logarithmic)[:, 0] for values in (flux, truth))
    return float(interval_score(total.T, true).mean())


def second_is_brighter(flux: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which pairs are to be `swapped`, so that errors of total and ratio are tied alike in all.

    Parameters
    ----------
    flux
        Draws ``(blend, galaxy, draw)``.

    Returns
    -------
    NDArray
        ``(blend,)``.
    """
    first, second = np.median(flux, -1).T
    return second > first


def swapped(flux: NDArray[np.float64], swap: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Exchange the galaxies of some pairs; twice, and nothing has changed.

    Parameters
    ----------
    flux
        ``(blend, galaxy, ...)``.
    swap
        Which pairs ``(blend,)``.

    Returns
    -------
    NDArray
        A copy.
    """
    exchanged = flux.copy()
    exchanged[swap] = flux[swap, ::-1]
    return exchanged


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return values.argsort(-1, kind="stable").argsort(-1, kind="stable")


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return normal scores of the ranks."""
    return ndtri((np.arange(values.shape[-1]) + 0.5) / values.shape[-1])[_ranks(values)]


def _correlation(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.maximum((scores**2).mean((1, 2)), TINY)
    return np.clip((scores[:, 0] * scores[:, 1]).mean(-1) / size, -MOST_TIED, MOST_TIED)


def _marginals(
    values: NDArray[np.float64], logarithmic: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return what makes both fluxes (ln of them) of coordinates, to first order; their medians, widths, correlation."""
    share = expit(np.median(values[:, 1], -1)) if logarithmic else np.full(len(values), 0.5)
    taken = np.stack([1 - share, -share], -1)
    to_fluxes = np.stack([np.full_like(taken, 1.0 if logarithmic else 0.5), taken], -1)
    draws = to_fluxes @ values
    low, middle, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    return to_fluxes, middle, np.maximum(high - low, TINY) / 2, _correlation(_scores(draws))


def _tie(values: NDArray[np.float64], truth: NDArray[np.float64], logarithmic: bool) -> float:
    """Return how much more errors of both fluxes correlate than draws, in Fisher's z."""
    to_fluxes, middle, width, claimed = _marginals(values, logarithmic)
    error = np.clip(((to_fluxes @ truth[..., None])[..., 0] - middle) / width, -WILDEST, WILDEST)
    tied = np.mean(error.prod(1)) / np.sqrt(np.maximum(np.mean(error**2, 0).prod(), TINY))
    return float(np.round(np.arctanh(np.clip(tied, -MOST_TIED, MOST_TIED)) - np.arctanh(claimed).mean(), DIGITS))


def _correlation_apart(values: NDArray[np.float64], tie: float, logarithmic: bool) -> NDArray[np.float64]:
    """Return the correlation of total and ratio of each blend, once that of its fluxes is corrected."""
    to_fluxes, _, width, claimed = _marginals(values, logarithmic)
    tied = np.tanh(np.arctanh(claimed) + tie)[:, None, None]
    covariance = width[:, :, None] * width[:, None] * np.where(np.eye(2) == 1, 1, tied)
    apart_again = np.linalg.inv(to_fluxes)
    covariance = apart_again @ covariance @ apart_again.swapaxes(1, 2)
    size = np.sqrt(np.maximum(covariance[:, 0, 0] * covariance[:, 1, 1], TINY))
    return np.clip(covariance[:, 0, 1] / size, -MOST_TIED, MOST_TIED)
