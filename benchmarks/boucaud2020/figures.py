"""Figures 5 to 9 and 12 of the paper, for the methods of one run and, where the splits allow, the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.boucaud2020.statistics import CASES
from probdeblend.plots.images import EXACT_COLOR, PALETTE
from probdeblend.scene import GALAXY_TYPES

__all__ = ["plot_bias", "plot_cases", "plot_errors", "plot_iou", "plot_magnitudes", "plot_types"]

BOTH = CASES.index("both")
Fluxes = Mapping[str, tuple[NDArray, NDArray]]  # true and estimated magnitudes (pair, 2) of each method


def plot_magnitudes(magnitudes: Fluxes, case: NDArray) -> Figure:
    """Show estimated against true magnitudes, centrals above companions, of galaxies that SEP found (figure 5)."""
    figure, panels = _panels(2, len(magnitudes))
    found = [case != CASES.index("companion alone"), case != CASES.index("central alone")]
    for column, (name, (true, estimate)) in enumerate(magnitudes.items()):
        for galaxy, title in enumerate(("central", "companion")):
            seen = found[galaxy] & (case != CASES.index("more"))
            _scatter(panels[galaxy, column], true[seen, galaxy], estimate[seen, galaxy], PALETTE[galaxy])
            panels[galaxy, column].set(title=f"{name} ({title})")
    return figure


def plot_cases(magnitudes: Fluxes, case: NDArray) -> Figure:
    """Show estimated against true magnitudes, where SEP found both galaxies above where it did not (figure 6)."""
    figure, panels = _panels(2, len(magnitudes))
    for column, (name, (true, estimate)) in enumerate(magnitudes.items()):
        for row, (title, chosen) in enumerate((("both found", case == BOTH), ("one, or more than two", case != BOTH))):
            _scatter(panels[row, column], true[chosen], estimate[chosen], PALETTE[2 + row])
            panels[row, column].set(title=f"{name} ({title})")
    return figure


def plot_errors(magnitudes: Fluxes) -> Figure:
    """Show magnitude errors against the difference of the magnitudes, with boxes of six bins (figure 7)."""
    figure, panels = _panels(2, len(magnitudes))
    edges = np.linspace(-2, 2, 7)
    for column, (_, (true, estimate)) in enumerate(magnitudes.items()):
        for galaxy in range(2):
            axes, difference = panels[galaxy, column], true[:, galaxy] - true[:, 1 - galaxy]
            error = estimate[:, galaxy] - true[:, galaxy]
            known = np.isfinite(error)
            axes.plot(difference[known], error[known], ".", ms=2, alpha=0.3, color=PALETTE[galaxy], rasterized=True)
            number = np.digitize(difference, edges) - 1
            boxes = [error[known & (number == i)] for i in range(6)]
            places = (edges[1:] + edges[:-1]) / 2
            axes.boxplot(boxes, positions=places, widths=0.4, showfliers=False, whis=(5, 95), manage_ticks=False)
            axes.axhline(0, color=EXACT_COLOR, lw=1)
            axes.set(xlim=(-2, 2), ylim=(-0.7, 0.7), xlabel="magnitude minus that of the other", ylabel="error [mag]")
    for axes, name in zip(panels[0], magnitudes, strict=True):
        axes.set(title=name)
    return figure


def plot_bias(everyone: Mapping[str, Mapping]) -> Figure:
    """Show median error and scatter of centrals against the difference of the magnitudes (figure 8)."""
    figure, panels = _panels(1, 2, sharey=False)
    for (name, numbers), color in zip(everyone.items(), PALETTE, strict=False):
        rows = [row for row in numbers["difference"] if row["flux"] == "central"]
        _lines(panels[0], rows, name, color)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_types(everyone: Mapping[str, Mapping]) -> Figure:
    """Show median error and scatter of centrals by type against the difference of the magnitudes (figure 9)."""
    figure, panels = _panels(len(everyone), 2, sharey=False)
    for axes, (name, numbers) in zip(panels, everyone.items(), strict=True):
        for kind, color in zip(GALAXY_TYPES, PALETTE, strict=False):
            _lines(axes, [row for row in numbers["type_difference"] if row["type"] == kind], kind, color)
        axes[0].set(title=name)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def plot_iou(overlap: Mapping[str, NDArray], kind: NDArray) -> Figure:
    """Show histograms of the intersection over union, and its mean by the types of the pair (figure 12)."""
    figure, panels = _panels(1, 2, sharey=False)
    names = ["-".join(sorted(GALAXY_TYPES[i] for i in pair)) for pair in kind]
    for number, ((method, values), color) in enumerate(zip(overlap.items(), PALETTE, strict=False)):
        panels[0, 0].hist(values.mean(1), np.linspace(0, 1, 51), density=True, alpha=0.5, color=color, label=method)
        bars = {name: values[[n == name for n in names]].mean() for name in sorted(set(names))}
        places = np.arange(len(bars)) + 0.8 * number / len(overlap)
        panels[0, 1].barh(places, list(bars.values()), 0.8 / len(overlap), color=color)
        panels[0, 1].set_yticks(range(len(bars)), list(bars))
    panels[0, 0].set(xlabel="IoU", ylabel="density")
    panels[0, 1].set(xlabel="mean IoU", xlim=(0, 1))
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _panels(rows: int, columns: int, *, sharey: bool = True) -> tuple[Figure, NDArray]:
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True if sharey else "none", sharey=sharey)


def _scatter(axes: Axes, true: NDArray, estimate: NDArray, color: str) -> None:
    error = (estimate - true)[np.isfinite(estimate - true)]
    axes.plot([18, 23], [18, 23], color=EXACT_COLOR, lw=1)
    axes.plot(np.ravel(true), np.ravel(estimate), ".", ms=2, alpha=0.3, color=color, rasterized=True)
    axes.set(xlim=(18, 23), ylim=(18, 23), xlabel="true magnitude", ylabel="estimated magnitude")
    if len(error):
        outliers = 100 * (np.abs(error) > 0.75).mean()
        text = f"mean {error.mean():.3f}, sd {error.std():.3f}\nbeyond 0.75 mag: {outliers:.1f} %"
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=8)


def _lines(axes: Sequence[Axes], rows: Sequence[Mapping[str, float]], label: str, color: str) -> None:
    places = [(row["low"] + row["high"]) / 2 for row in rows]
    for panel, column, text in zip(axes, ("bias_mag", "sd_mag"), ("median error [mag]", "scatter [mag]"), strict=True):
        values = [np.nan if row[column] is None else row[column] for row in rows]
        panel.plot(places, values, "o-", ms=4, lw=1.2, color=color, label=label)
        panel.set(xlabel="central minus companion [mag]", ylabel=text)
