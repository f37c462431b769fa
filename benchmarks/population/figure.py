"""The figure of a recovered population, beside what stacking gives."""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probdeblend.plots.images import GALAXY_COLORS

__all__ = ["plot_population"]

COLOR, MEDIANS = GALAXY_COLORS
DRAWS = "#009E73"
LABELS = {
    "magnitude": ("AB magnitude", "share of the galaxies per magnitude"),
    "ln flux ratio": ("ln(flux of companion / flux of central galaxy)", "share of the pairs per unit"),
}


def plot_population(table: Table) -> Figure:
    """Show number counts and flux ratios: truth, recovered shares with bands of 68 and 95 %, and stacking."""
    quantities = list(dict.fromkeys(table["quantity"]))
    figure = Figure(figsize=(5.4 * len(quantities), 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        _draw(axes, table[table["quantity"] == quantity])
        label, density = LABELS.get(quantity, (quantity, "density"))
        axes.set(xlabel=label, ylabel=density, ylim=(0, None))
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, rows: Table) -> None:
    low, high = (np.asarray(rows[name], dtype=float) for name in ("low", "high"))
    width, middle, edges = high - low, (low + high) / 2, np.append(low, high[-1])
    axes.stairs(rows["truth"] / width, edges, color="0.6", alpha=0.5, fill=True, label="truth")
    for name, color, style in (("medians", MEDIANS, "--"), ("draws", DRAWS, ":")):
        axes.stairs(rows[name] / width, edges, color=color, ls=style, lw=1.4, label=f"stacked {name}")
    for level, thickness in ((95, 1.2), (68, 3.5)):
        ends = (rows[f"low_{level}"] / width, rows[f"high_{level}"] / width)
        axes.vlines(middle, *ends, color=COLOR, lw=thickness)
    axes.plot(middle, rows["recovered"] / width, "o", color=COLOR, ms=4, label="recovered, 68 % and 95 %")
