"""Errors in units of the quoted ones, while a companion moves past its primary."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from probdeblend.plots.images import EXACT_COLOR, PALETTE

__all__ = ["plot_march"]

APART = 0.06  # of a factor of e, between the points of two methods at one separation


def plot_march(table: Table) -> Figure:
    """Show scatter and mean of z against separation, with the bar that errors have to pass.

    Parameters
    ----------
    table
        What `~benchmarks.march.march` returns.

    Returns
    -------
    Figure
        A column a galaxy and one for the total flux, the scatter above the mean; bars are bootstrap standard errors.
        Gray lines are where right errors are on average, dashed ones the bar; its lower end and that of the mean count
        where the posterior is much narrower than the prior, which is not so where symbols are open.
    """
    galaxies = list(dict.fromkeys(table["galaxy"]))
    figure = Figure(figsize=(1 + 3.6 * len(galaxies), 6.2), layout="constrained")
    panels = figure.subplots(2, len(galaxies), sharex=True, sharey="row", squeeze=False)
    bias = table.meta["mean"]
    for column, galaxy in enumerate(galaxies):
        rows = table[table["galaxy"] == galaxy]
        _draw(panels[0, column], rows, "sd", exact=1.0, bar=table.meta["sd"])
        _draw(panels[1, column], rows, "mean", exact=0.0, bar=(-bias, bias))
        panels[0, column].set(title=galaxy, xscale="log", yscale="log")
        panels[1, column].set(xlabel="separation over the PSF's FWHM")
        panels[1, column].set_yscale("symlog", linthresh=1.0)
    for axis in (panels[0, 0].xaxis, panels[0, 0].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    panels[0, 0].set(ylabel="standard deviation of z")
    panels[1, 0].set(ylabel="mean of z")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, rows: Table, name: str, *, exact: float, bar: tuple[float, float]) -> None:
    axes.axhline(exact, color=EXACT_COLOR, lw=1)
    for end in bar:
        axes.axhline(end, color=EXACT_COLOR, lw=1, ls="--")
    methods = list(dict.fromkeys(rows["method"]))
    for number, (method, color) in enumerate(zip(methods, PALETTE, strict=False)):
        found = rows[rows["method"] == method]
        x = found["separation_fwhm"] * np.exp(APART * (number - (len(methods) - 1) / 2))
        axes.errorbar(x, found[name], found[f"{name}_error"], fmt="o-", ms=4, lw=1, color=color, label=method)
        vague = ~found["informed"]
        axes.plot(x[vague], found[name][vague], "o", ms=4, mfc="w", mec=color, zorder=3)
