"""Whether uncertainties are right: coverage, ranks, and the reliability of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..metrics.arrays import ONE_SIGMA
from .images import EXACT_COLOR, PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_coverage", "plot_errors", "plot_ranks", "plot_reliability"]

LARGEST_ERROR = 1.0  # of ln flux that is shown; larger ones are at the edge


def plot_coverage(table: Table, *, group: str = "state") -> NDArray[np.object_]:
    """Plot observed against nominal coverage.

    Parameters
    ----------
    table
        Coverage of each ``quantity``, one row per curve: ``coverage_68``, ``coverage_68_low``, ``coverage_68_high``
        and so on for other levels.
    group
        Column that labels the curves.

    Returns
    -------
    NDArray
        The `Axes` of each quantity ``(quantity,)``; bars are the bands of the table.
    """
    quantities = list(dict.fromkeys(table["quantity"]))
    names = [name for name in table.colnames if name.startswith("coverage_") and name.count("_") == 1]
    levels = np.array([float(name.removeprefix("coverage_")) / 100 for name in names])
    panels = new_figure(4 * len(quantities), 4).subplots(1, len(quantities), squeeze=False)[0]
    for axes, quantity in zip(panels, quantities, strict=True):
        axes.plot([0, 1], [0, 1], color=EXACT_COLOR, lw=1)
        rows = table[table["quantity"] == quantity]
        for row, color, shift in zip(rows, cycle(PALETTE), np.linspace(-0.006, 0.006, len(rows)), strict=False):
            covered, low, high = (np.array([row[f"{name}{end}"] for name in names]) for end in ("", "_low", "_high"))
            middle = (low + high) / 2  # a binomial band lies around the level, a bootstrap one around the fraction
            error = np.stack([middle - low, high - middle])
            axes.errorbar(levels + shift, covered, error, fmt="o-", ms=4, lw=1, color=color, label=row[group])
        axes.set(title=quantity, xlabel="probability of the interval", xlim=(0.4, 1), ylim=(0, 1))
    panels[0].set_ylabel("fraction of true values inside")
    panels[0].legend(frameon=False)
    return panels


def plot_errors(draws: ArrayLike, truth: ArrayLike, *, axes: Axes | None = None) -> Axes:
    """Plot errors of fluxes, with their 68 % intervals, against the true fluxes.

    Parameters
    ----------
    draws
        Draws of the fluxes ``(draw, source)``; NaN where a source was not measured.
    truth
        True fluxes ``(source,)``, which are positive.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        ln of the median over the true flux; intervals that contain the truth are blue, the others orange.

    Raises
    ------
    ValueError
        If the numbers of sources differ.
    """
    draws, truth = np.asarray(draws, dtype=float), np.asarray(truth, dtype=float)
    if draws.ndim != 2 or draws.shape[1:] != truth.shape:
        raise ValueError(f"truth must have one flux for each source of the draws {draws.shape}, got {truth.shape}")
    axes = axes or new_figure(5.6, 3.6).subplots()
    axes.axhline(0, color=EXACT_COLOR, lw=1)
    logs = np.log(np.maximum(np.quantile(draws, ONE_SIGMA, axis=0), np.finfo(float).tiny) / truth)
    low, middle, high = logs.clip(-LARGEST_ERROR, LARGEST_ERROR)
    inside = (low <= 0) & (high >= 0)
    for chosen, color, name in ((inside, PALETTE[0], "truth inside 68 %"), (~inside, PALETTE[1], "truth outside")):
        ends = np.abs(np.stack([low, high]) - middle)[:, chosen]
        axes.errorbar(truth[chosen], middle[chosen], ends, fmt="o", ms=3, lw=0.8, color=color, label=name)
    axes.set(xscale="log", xlabel="true flux", ylabel="ln (flux / true flux)", ylim=(-LARGEST_ERROR, LARGEST_ERROR))
    axes.legend(frameon=False, fontsize=8)
    return axes


def plot_ranks(ranks: Mapping[str, ArrayLike], *, level: float = 0.99, axes: Axes | None = None) -> Axes:
    """Show how far the distribution of ranks is from uniform, with the band for an exact posterior.

    Parameters
    ----------
    ranks
        Ranks of the truth between 0 and 1 by the label of the curve; the band is that of the shortest.
    level
        Probability that all of a curve lies in the band (Kolmogorov and Smirnov's) if the posterior is exact.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Cumulative distribution minus the diagonal.
    """
    axes = axes or new_figure(4.8, 3.6).subplots()
    values = {name: np.sort(np.ravel(np.asarray(found, dtype=float))) for name, found in ranks.items()}
    points, reach = np.linspace(0, 1, 501), stats.kstwo.ppf(level, min(map(len, values.values())))
    axes.axhspan(-reach, reach, color=EXACT_COLOR, alpha=0.35, lw=0, label=f"{level:.0%} band")
    for (name, found), color in zip(values.items(), cycle(PALETTE), strict=False):
        below = np.searchsorted(found, points, side="right") / len(found)
        axes.plot(points, below - points, color=color, lw=1.4, label=name)
    axes.axhline(0, color="k", lw=0.6)
    axes.set(xlabel="rank of the truth", ylabel="ECDF - rank")
    axes.legend(frameon=False, fontsize=8)
    return axes


def plot_reliability(curves: Mapping[str, Table], *, axes: Axes | None = None) -> Axes:
    """Show the fraction of pixels in the mask against the probability that they are.

    Parameters
    ----------
    curves
        Tables from `~probdeblend.metrics.reliability` by the label of the curve.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The reliability curves; the area of a point grows with its number of pixels.
    """
    axes = axes or new_figure(4.4, 4.2).subplots()
    axes.plot([0, 1], [0, 1], color=EXACT_COLOR, lw=1)
    for (name, curve), color in zip(curves.items(), cycle(PALETTE), strict=False):
        size = 120 * np.sqrt(curve["count"] / curve["count"].max()) + 4
        label = f"{name} (ECE {curve.meta['ece']:.3f})"
        axes.plot(curve["predicted"], curve["observed"], color=color, lw=1, label=label)
        axes.scatter(curve["predicted"], curve["observed"], size, color=color, alpha=0.5, lw=0)
    axes.set(xlabel="mask probability", ylabel="fraction of pixels in the mask", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return axes
