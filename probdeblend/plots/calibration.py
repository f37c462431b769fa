"""Whether uncertainties are right: coverage, ranks, reliability of masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..metrics.bands import ecdf_band
from ..metrics.reliability import Reliability
from .images import EXACT_COLOR, PALETTE

__all__ = ["plot_coverage", "plot_ranks", "plot_reliability"]


def plot_coverage(table: Table, *, group: str = "state") -> Figure:
    """Show how often intervals hold the truth against how often they should, a panel a quantity.

    Parameters
    ----------
    table
        Rows of `~probdeblend.training.scorecard.scorecard`, with a column that tells curves apart.
    group
        That column.

    Returns
    -------
    Figure
        What was drawn; bars are the bands of the table.
    """
    quantities = list(dict.fromkeys(table["quantity"]))
    names = [name for name in table.colnames if name.startswith("coverage_") and name.count("_") == 1]
    levels = np.array([float(name.removeprefix("coverage_")) / 100 for name in names])
    figure = Figure(figsize=(4 * len(quantities), 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        axes.plot([0, 1], [0, 1], color=EXACT_COLOR, lw=1)
        rows = table[table["quantity"] == quantity]
        for row, color, shift in zip(rows, PALETTE, np.linspace(-0.006, 0.006, len(rows)), strict=False):
            covered, low, high = (np.array([row[f"{name}{end}"] for name in names]) for end in ("", "_low", "_high"))
            middle = (low + high) / 2  # a binomial band lies around the level, a bootstrap one around the fraction
            error = np.stack([middle - low, high - middle])
            axes.errorbar(levels + shift, covered, error, fmt="o-", ms=4, lw=1, color=color, label=row[group])
        axes.set(title=quantity, xlabel="probability of the interval", xlim=(0.4, 1), ylim=(0, 1))
    figure.axes[0].set_ylabel("fraction of the truths inside")
    figure.axes[0].legend(frameon=False)
    return figure


def plot_ranks(ranks: Mapping[str, ArrayLike], *, level: float = 0.99, axes: Axes | None = None) -> Axes:
    """Show how the distribution of ranks strays from uniform, with the band in which that of an exact posterior lies.

    Parameters
    ----------
    ranks
        Values between 0 and 1 by the curve's label; the band is that of the shortest.
    level
        Probability of the band, everywhere at once.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Cumulative distribution minus the diagonal.
    """
    axes = axes or Figure(figsize=(4.8, 3.6), layout="constrained").subplots()
    values = {name: np.sort(np.ravel(np.asarray(found, dtype=float))) for name, found in ranks.items()}
    points, low, high = ecdf_band(min(len(found) for found in values.values()), level=level)
    band = {"color": EXACT_COLOR, "alpha": 0.35, "lw": 0, "label": f"{level:.0%} band"}
    axes.fill_between(points, low - points, high - points, **band)
    for (name, found), color in zip(values.items(), PALETTE, strict=False):
        below = np.searchsorted(found, points, side="right") / len(found)
        axes.plot(points, below - points, color=color, lw=1.4, label=name)
    axes.axhline(0, color="k", lw=0.6)
    axes.set(xlabel="rank of the truth", ylabel="ECDF - rank")
    axes.legend(frameon=False, fontsize=8)
    return axes


def plot_reliability(masks: Mapping[str, Reliability], *, axes: Axes | None = None) -> Axes:
    """Show how often pixels are in the mask against the probability that they are.

    Parameters
    ----------
    masks
        Sums over pixels by the curve's label.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The reliability curves; the area of a point grows with the number of its pixels.
    """
    axes = axes or Figure(figsize=(4.4, 4.2), layout="constrained").subplots()
    axes.plot([0, 1], [0, 1], color=EXACT_COLOR, lw=1)
    for (name, sums), color in zip(masks.items(), PALETTE, strict=False):
        curve = sums.curve()
        size = 120 * np.sqrt(curve["count"] / curve["count"].max()) + 4
        label = f"{name} (ECE {sums.calibration_error:.3f})"
        axes.plot(curve["predicted"], curve["observed"], color=color, lw=1, label=label)
        axes.scatter(curve["predicted"], curve["observed"], size, color=color, alpha=0.5, lw=0)
    axes.set(xlabel="mask probability", ylabel="fraction of pixels in the mask", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return axes
