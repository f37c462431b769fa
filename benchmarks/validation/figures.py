"""The figures of the validation report: accuracy of several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from probdeblend.plots.images import EXACT_COLOR, PALETTE

__all__ = ["plot_accuracy", "plot_bars", "plot_errors", "plot_magnitudes"]

Rows = Sequence[Mapping[str, float]]


def plot_magnitudes(truth: ArrayLike, estimates: Mapping[str, ArrayLike]) -> Figure:
    """Show estimated against true magnitudes, with the errors below and their histograms beside them."""
    truth = np.ravel(np.asarray(truth, dtype=float))
    figure = Figure(figsize=(3.9 * len(estimates), 5.4), layout="constrained")
    widths = [3, 1] * len(estimates)
    axes = figure.subplots(2, 2 * len(estimates), squeeze=False, width_ratios=widths, height_ratios=[3, 2])
    low, high = np.nanmin(truth) - 0.3, np.nanmax(truth) + 0.3
    for column, ((name, estimate), color) in enumerate(zip(estimates.items(), PALETTE, strict=False)):
        estimate = np.ravel(np.asarray(estimate, dtype=float))  # noqa: PLW2901
        top, bottom, beside = axes[0, 2 * column], axes[1, 2 * column], axes[1, 2 * column + 1]
        axes[0, 2 * column + 1].axis("off")
        top.plot([low, high], [low, high], color=EXACT_COLOR, lw=1)
        top.plot(truth, estimate, ".", ms=2, alpha=0.3, color=color, rasterized=True)
        top.set(title=name, xlim=(low, high), ylim=(low, high), ylabel="estimated magnitude" if column == 0 else "")
        error = estimate - truth
        bottom.axhline(0, color=EXACT_COLOR, lw=1)
        bottom.plot(truth, error, ".", ms=2, alpha=0.3, color=color, rasterized=True)
        bottom.set(xlabel="true magnitude", ylabel="error" if column == 0 else "", xlim=(low, high), ylim=(-1, 1))
        beside.hist(error[np.isfinite(error)], np.linspace(-1, 1, 61), orientation="horizontal", color=color)
        beside.set(ylim=(-1, 1), xticks=[], yticklabels=[])
    return figure


def plot_accuracy(tables: Mapping[str, Rows], *, label: str) -> Figure:
    """Show bias and scatter of magnitudes in bins, and the fraction of outliers."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    errors, outliers = figure.subplots(1, 2)
    errors.axhline(0, color=EXACT_COLOR, lw=1)
    for number, ((name, rows), color) in enumerate(zip(tables.items(), PALETTE, strict=False)):
        columns = {key: _numbers(rows, key) for key in ("low", "high", "bias_mag", "nmad_mag", "outliers")}
        low, high = columns["low"], columns["high"]
        # Points of one bin stand side by side.
        x = (low + high) / 2 + 0.1 * np.min(high - low) * (number - (len(tables) - 1) / 2)
        settings = {"fmt": "o", "ms": 4, "lw": 1.2, "color": color, "label": name}
        errors.errorbar(x, columns["bias_mag"], columns["nmad_mag"], **settings)
        outliers.plot((low + high) / 2, columns["outliers"], "o-", ms=4, lw=1, color=color, label=name)
    errors.set(xlabel=label, ylabel="magnitude error (median, NMAD)")
    outliers.set(xlabel=label, ylabel="beyond 0.75 mag or missed", yscale="symlog", ylim=(0, 1))
    outliers.set_yscale("symlog", linthresh=1e-2)
    errors.legend(frameon=False, fontsize=8)
    return figure


def _numbers(rows: Rows, key: str) -> NDArray[np.float64]:
    return np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)


def plot_bars(values: Mapping[str, Mapping[str, float]], *, label: str) -> Figure:
    """Show a number of each method by category, as bars side by side."""
    names = list(dict.fromkeys(category for numbers in values.values() for category in numbers))
    figure = Figure(figsize=(1.6 + 1.3 * len(names), 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(values)
    for number, ((name, numbers), color) in enumerate(zip(values.items(), PALETTE, strict=False)):
        x = np.arange(len(names)) + width * (number - (len(values) - 1) / 2)
        heights = [np.nan if numbers.get(category) is None else numbers[category] for category in names]
        axes.bar(x, heights, width, color=color, label=name)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel=label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_errors(errors: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Show distributions of magnitude errors."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, (edges, fraction)), color in zip(errors.items(), PALETTE, strict=False):
        density = np.asarray(fraction, dtype=float) / np.diff(np.asarray(edges, dtype=float))
        axes.stairs(density, edges, color=color, lw=1.5, label=name)
    axes.axvline(0, color=EXACT_COLOR, lw=1)
    axes.set(
        xlabel="magnitude error (beyond 1 mag in the outermost bins)", ylabel="galaxies per magnitude", yscale="log"
    )
    axes.legend(frameon=False, fontsize=8)
    return figure
