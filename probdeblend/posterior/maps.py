r"""Monotone maps of draws and of probabilities, learned from known truths: what a calibrator is made of.

A map of draws takes quantiles of scaled errors :math:`(\ln f - m) / s`, with the median m and the standard deviation s
of the draws, to those of scaled truths. For the total of a group, with the share :math:`w_i` of each source in its
median flux, the common part of a draw is :math:`c = \sum_i w_i (\ln f_i - m_i)`, to first order the error of the ln
total; the rest is how the light is divided. A total is often known much better than the fluxes, and maps that move
their medians would spoil it: it is mapped from draws that keep the medians. The common part is replaced by the error of
the mapped total. The rest is scaled by one number per group, such that the variance of ln flux, summed over the
sources, remains. At last all fluxes of a draw are scaled alike, so that its total is exactly the mapped one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

__all__ = ["NODES", "fit_logistic", "fit_map", "fit_totals", "logistic", "mapped", "mapped_totals"]

NODES = np.array([0.02, 0.05, 0.1, 0.16, 0.25, 0.35, 0.5, 0.65, 0.75, 0.84, 0.9, 0.95, 0.98])
MIDDLE = len(NODES) // 2
SIZES = (2, 3, 4, 6)  # least numbers of sources in groups whose totals have one map
STRETCH = (0.25, 4.0)  # limits of the factor for the division of a group's light
LIMIT = 12.0  # largest logit


def _scale(draws: NDArray) -> tuple[NDArray, NDArray]:
    return np.median(draws, axis=0), np.maximum(draws.std(0), 1e-9)


def fit_map(draws: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Return given and wanted quantiles ``(2, node)`` from draws ``(draw, value)`` and truths ``(value,)``."""
    middle, scale = _scale(draws)
    given = np.quantile((draws - middle) / scale, NODES)
    return np.stack([given, np.quantile((truth - middle) / scale, NODES, method="weibull")])


def mapped(draws: NDArray, pair: NDArray) -> NDArray[np.float64]:
    """Apply a map to draws ``(draw, ...)``; beyond the outermost nodes it is as steep as on average on that side."""
    middle, scale = _scale(draws)
    values, (given, wanted) = (draws - middle) / scale, pair
    moved = np.interp(values, given, wanted)
    for end, beyond in ((0, values < given[0]), (-1, values > given[-1])):
        slope = (wanted[end] - wanted[MIDDLE]) / (given[end] - given[MIDDLE])
        moved = np.where(beyond, wanted[end] + slope * (values - given[end]), moved)
    return middle + scale * moved


def _groups(draws: NDArray, group: NDArray) -> list[tuple[int, NDArray[np.int64]]]:
    """Return, for every number of sources above one, its class and the sources ``(group, source)`` of such groups."""
    _, owner, size = np.unique(group, return_inverse=True, return_counts=True)
    order, start = np.argsort(owner, kind="stable"), np.cumsum(size) - size
    found = []
    for number in np.unique(size[size > 1]):
        members = order[start[size == number][:, None] + np.arange(number)]
        members = members[np.isfinite(draws[:, members]).all((0, 2, 3))]
        found.append((int(np.searchsorted(SIZES, number, side="right")) - 1, members))
    return found


def fit_totals(draws: NDArray, truth: NDArray, group: NDArray, least: int) -> NDArray[np.float64]:
    """Return the maps of ln totals of groups of 2, 3, 4 and 5, and 6 and more sources ``(class, 2, node)``.

    Draws of ln flux are ``(draw, source, band)``, truths ``(source, band)``. A class with fewer groups than `least` has
    the map of all groups; there are no maps if all groups are too few.
    """
    drawn, true, number = [np.zeros((len(draws), 0))], [np.zeros(0)], [np.zeros(0)]
    for which, members in _groups(draws, group):
        known = members[np.isfinite(truth[members]).all((1, 2))]
        true.append(np.log(np.exp(truth[known]).sum(1)).ravel())
        drawn.append(np.log(np.exp(draws[:, known]).sum(2)).reshape(len(draws), true[-1].size))
        number.append(np.full(true[-1].size, which))
    totals, sums, classes = np.concatenate(drawn, axis=1), np.concatenate(true), np.concatenate(number)
    if len(sums) < least * truth.shape[1]:
        return np.zeros((0, 2, len(NODES)))
    chosen = [classes == which for which in range(len(SIZES))]
    chosen = [own if own.sum() >= least * truth.shape[1] else classes >= 0 for own in chosen]
    return np.stack([fit_map(totals[:, own], sums[own]) for own in chosen])


def mapped_totals(draws: NDArray, given: NDArray, maps: NDArray, group: NDArray) -> NDArray[np.float64]:
    """Give the groups of draws of ln flux ``(draw, source, band)`` the mapped totals of other, given draws."""
    moved = draws.copy()
    for number, members in _groups(draws, group) if len(maps) else ():
        for part in np.array_split(members, max(1, members.size // 500)):  # bounds the memory
            moved[:, part] = _with_total(draws[:, part], mapped(np.log(np.exp(given[:, part]).sum(2)), maps[number]))
    return moved


def _with_total(draws: NDArray, wanted: NDArray) -> NDArray[np.float64]:
    """Give draws of ln flux ``(draw, group, source, band)`` the ln totals ``(draw, group, band)`` that are wanted."""
    wanted, middle = wanted[:, :, None], np.median(draws, axis=0)
    share = np.exp(middle) / np.exp(middle).sum(1, keepdims=True)
    error = draws - middle
    common = (share * error).sum(2, keepdims=True)
    apart, after = error - common, wanted - wanted.mean(0)
    centered = apart - apart.mean(0)
    # The variance of (after + factor * apart), summed over the sources, is to be that of the errors.
    square, mixed = (centered**2).mean(0).sum(1), (after * centered).mean(0).sum(1)
    excess = draws.shape[2] * (after**2).mean(0)[:, 0] - error.var(0).sum(1)
    factor = (np.sqrt(np.maximum(mixed**2 - square * excess, 0)) - mixed) / np.maximum(square, 1e-12)
    shaped = middle + common + np.clip(factor, *STRETCH)[:, None] * apart
    return shaped + wanted - np.log(np.exp(shaped).sum(2, keepdims=True))


def fit_logistic(probability: ArrayLike, target: ArrayLike) -> tuple[float, float] | None:
    """Return slope and shift of the logit by maximum likelihood; None with fewer than 20 true or false targets."""
    y = np.asarray(target, dtype=np.float64)
    if min(y.sum(), len(y) - y.sum()) < 20:
        return None
    design, numbers = np.stack([_logit(probability), np.ones_like(y)]), np.array([1.0, 0.0])
    for _ in range(30):
        p = expit(numbers @ design)
        curvature = (design * np.maximum(p * (1 - p), 1e-6)) @ design.T + 1e-6 * np.eye(2)
        numbers = numbers + np.clip(np.linalg.solve(curvature, design @ (y - p)), -1, 1)
    return float(np.clip(numbers[0], 0.05, 20)), float(numbers[1])


def logistic(probability: ArrayLike, numbers: tuple[float, float]) -> NDArray[np.float64]:
    """Return probabilities with another slope and shift of their logit."""
    return expit(numbers[0] * _logit(probability) + numbers[1])


def _logit(probability: ArrayLike) -> NDArray[np.float64]:
    return logit(np.clip(np.asarray(probability, dtype=np.float64), expit(-LIMIT), expit(LIMIT)))
