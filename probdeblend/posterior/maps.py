r"""Monotone maps of draws and of probabilities, learned from known truths: what a calibrator is made of.

A map of draws takes quantiles of scaled errors :math:`(\ln f - m) / s`, with the median m and the standard deviation s
of the draws, to those of scaled truths. For the total of a group, with the share :math:`w_i` of each source in its
median flux, the common part of a draw is :math:`c = \sum_i w_i (\ln f_i - m_i)`, to first order the error of the ln
total; the rest is how the light is divided. A total is often known much better than the fluxes, and maps that move
their medians would spoil it: it is mapped from draws that keep the medians. The common part is replaced by the error of
the mapped total. The rest is scaled by one number per group, such that the variance of ln flux, summed over the
sources, remains. At last all fluxes of a draw are scaled alike, so that its total is exactly the mapped one.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from ..metrics.arrays import members_by_size

__all__ = ["NODES", "cell_of", "color_stretch", "fit_cells", "fit_logistic", "logistic", "mapped", "with_colors"]
__all__ += ["maps_of", "with_totals"]

NODES = np.array([0.02, 0.05, 0.1, 0.16, 0.25, 0.35, 0.5, 0.65, 0.75, 0.84, 0.9, 0.95, 0.98])
MIDDLE = len(NODES) // 2
STRETCH = (0.25, 4.0)  # limits of the factors for colors, and for the division of a group's light
WITHIN = 0.68  # of the colors
LIMIT = 12.0  # largest logit
LEAST_ODD = 5  # true and false targets of a logistic map

Edges = tuple[tuple[float, ...], ...]
"""Edges of the bins of each feature."""


def cell_of(features: NDArray, edges: Edges) -> NDArray[np.int64]:
    """Return one number for the bins of all features ``(..., feature)``; what is unknown is in the lowest bin."""
    number = np.zeros(features.shape[:-1], dtype=np.int64)
    for own, values in zip(edges, np.moveaxis(np.nan_to_num(features), -1, 0), strict=True):
        number = number * (len(own) + 1) + np.searchsorted(own, values, side="right")
    return number


def _scale(draws: NDArray) -> tuple[NDArray, NDArray]:
    return np.median(draws, axis=0), np.maximum(draws.std(0), 1e-9)


def fit_cells(
    batches: Iterable[tuple[NDArray, NDArray, NDArray]], edges: Edges, *, least: int
) -> tuple[NDArray[np.float64], int]:
    """Return given and wanted quantiles in every cell ``(cell, 2, node)``, and the number of sources with values.

    Batches are draws ``(draw, source, band)``, truths and cells ``(source, band)``. A cell that has values of fewer
    than `least` sources takes the map of a coarser one, without the last feature, the last two, and so on. There are no
    maps if all together are fewer.
    """
    flat, count = [], 0
    for draws, truth, cell in batches:
        known = np.isfinite(draws).all(0) & np.isfinite(truth)
        owner = np.repeat(count + np.arange(known.any(1).sum()), known.sum(1)[known.any(1)])
        count += int(known.any(1).sum())
        middle, scale = _scale(draws[:, known])
        flat.append(((draws[:, known] - middle) / scale, (truth[known] - middle) / scale, cell[known], owner))
    given, wanted, cell, owner = (np.concatenate(parts, axis=-1) for parts in zip(*flat, strict=True))
    coarser = np.cumprod([1, *(len(own) + 1 for own in edges[::-1])]).tolist()
    maps: dict[tuple[int, int], NDArray] = {}
    for number in range(coarser[-1] if count >= least else 0):
        for size in coarser:
            chosen = cell // size == number // size
            if (key := (size, number // size)) not in maps and len(np.unique(owner[chosen])) >= least:
                wants = np.quantile(wanted[chosen], NODES, method="weibull")
                maps[key] = np.stack([np.quantile(given[:, chosen], NODES), wants])
            if key in maps:
                maps[1, number] = maps[key]
                break
    return np.reshape([maps[1, number] for number in range(coarser[-1]) if maps], (-1, 2, len(NODES))), count


def mapped(draws: NDArray, maps: NDArray, cell: NDArray) -> NDArray[np.float64]:
    """Map draws ``(draw, ...)`` in their cells ``(...)``; those of a value that are not all finite stay.

    Beyond the outermost nodes a map is as steep as on average on that side.
    """
    found, known = draws.astype(np.float64), np.isfinite(draws).all(0)
    for number in np.unique(cell[known]):
        chosen, (given, wanted) = known & (cell == number), maps[number]
        middle, scale = _scale(found[:, chosen])
        values = (found[:, chosen] - middle) / scale
        moved = np.interp(values, given, wanted)
        for end, beyond in ((0, values < given[0]), (-1, values > given[-1])):
            slope = (wanted[end] - wanted[MIDDLE]) / (given[end] - given[MIDDLE])
            moved = np.where(beyond, wanted[end] + slope * (values - given[end]), moved)
        found[:, chosen] = middle + scale * moved
    return found


def maps_of(numbers: list, edges: Edges, *, optional: bool) -> NDArray[np.float64]:
    """Return maps ``(cell, 2, node)`` from lists of numbers; if they are optional, there may be none."""
    maps = np.array(numbers, dtype=np.float64).reshape(-1, 2, len(NODES))
    if len(maps) != math.prod(len(own) + 1 for own in edges) and (len(maps) or not optional):
        raise ValueError(f"there must be a map for each bin, got {len(maps)}")
    if not ((np.diff(maps) >= 0).all() and (np.diff(maps[:, 0, [0, MIDDLE, -1]]) > 0).all()):
        raise ValueError("maps must be monotone")
    return maps


def color_stretch(batches: Iterable[tuple[NDArray, NDArray]]) -> float:
    """Return the factor on differences between bands that makes 68 % of the colors' intervals cover the truth.

    Batches are draws of ln flux ``(draw, source, band)`` and truths ``(source, band)``; without colors it is 1.
    """
    given, wanted = [np.zeros(0)], [np.zeros(0)]
    for draws, truth in batches:
        with np.errstate(invalid="ignore"):
            color, true = np.diff(draws, axis=-1), np.diff(truth, axis=-1)
        known = np.isfinite(color).all(0) & np.isfinite(true)
        middle, scale = _scale(color[:, known])
        given.append(np.quantile(np.abs(color[:, known] - middle), WITHIN, axis=0) / scale)
        wanted.append(np.abs(true[known] - middle) / scale)
    ratio = [np.concatenate(values) for values in (wanted, given)]
    return float(np.clip(np.quantile(ratio[0] / ratio[1], WITHIN), *STRETCH)) if ratio[0].size else 1.0


def with_colors(draws: NDArray, factor: float) -> NDArray[np.float64]:
    """Stretch the differences between bands of draws of ln flux ``(draw, source, band)``; their mean variance stays."""
    if draws.shape[-1] == 1:
        return draws
    middle = np.median(draws, axis=0)
    common = (draws - middle).mean(-1, keepdims=True)
    apart = draws - middle - common
    excess = apart.var(0).mean(-1, keepdims=True) / np.maximum(common.var(0), 1e-12)
    return middle + np.sqrt(np.maximum(1 + (1 - factor**2) * excess, 0)) * common + factor * apart


def with_totals(draws: NDArray, wanted: NDArray, group: NDArray) -> NDArray[np.float64]:
    """Give draws of ln flux ``(draw, source, band)`` the ln totals ``(draw, group, band)`` that are wanted.

    Groups of one source stay, and those in which a draw is not finite.
    """
    moved = draws.copy()
    for own, members in members_by_size(group, least=2):
        finite = np.isfinite(draws[:, members]).all((0, 2, 3))
        for part in np.array_split(np.flatnonzero(finite), max(1, members.size // 500)):  # bounds the memory
            moved[:, members[part]] = _with_total(draws[:, members[part]], wanted[:, own[part]])
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
    """Return slope and shift of the logit by maximum likelihood; None with fewer than 5 true or false targets.

    Targets are moved off 0 and 1 as by Platt (1999), so that few false ones do not claim certainty.
    """
    true = np.asarray(target, dtype=bool)
    number = {side: int((true == side).sum()) for side in (False, True)}
    if min(number.values()) < LEAST_ODD:
        return None
    y, x = np.where(true, (number[True] + 1) / (number[True] + 2), 1 / (number[False] + 2)), _logit(probability)

    def loss(numbers: NDArray) -> float:
        """Return the mean cross-entropy."""
        value = numbers[0] * x + numbers[1]
        return float((np.logaddexp(0, value) - y * value).mean())

    slope, shift = minimize(loss, [1.0, 0.0], method="L-BFGS-B", bounds=[(0.05, 20), (None, None)]).x
    return float(slope), float(shift)


def logistic(probability: ArrayLike, numbers: tuple[float, float]) -> NDArray[np.float64]:
    """Return probabilities with another slope and shift of their logit."""
    return expit(numbers[0] * _logit(probability) + numbers[1])


def _logit(probability: ArrayLike) -> NDArray[np.float64]:
    return logit(np.clip(np.asarray(probability, dtype=np.float64), expit(-LIMIT), expit(LIMIT)))
