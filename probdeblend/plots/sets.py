"""Sets of blends and training sources: distributions beside reference ones, matrices of scores."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .images import GALAXY_COLORS

__all__ = ["plot_distributions", "plot_matrix"]


def plot_matrix(values: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], names: Sequence[str]) -> Figure:
    """Show square matrices of scores with their bands, a panel each.

    Parameters
    ----------
    values
        Values and the lower and upper ends of their bands ``(trained on, tested on)`` by the panel's title.
    names
        Names of the rows and columns.

    Returns
    -------
    Figure
        What was drawn.
    """
    size = 1.15 * len(names) + 1.5
    figure = Figure(figsize=(size * len(values), size), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (title, arrays) in zip(panels, values.items(), strict=True):
        value, low, high = (np.asarray(array, dtype=float) for array in arrays)
        axes.imshow(value, cmap="Blues", vmin=0, vmax=1.4 * np.nanmax(value))
        for (row, column), number in np.ndenumerate(value):
            text = f"{number:.2f}\n{low[row, column]:.2f}-{high[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(title=title, xlabel="tested on", ylabel="trained on")
    return figure


def plot_distributions(
    values: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike], *, labels: tuple[str, str], columns: int = 2
) -> Figure:
    """Show distributions beside those of a reference, a panel a quantity.

    Parameters
    ----------
    values, reference
        Numbers, or names of categories, by the quantity's label.
    labels
        What the two are.
    columns
        Panels in a row.

    Returns
    -------
    Figure
        What was drawn.
    """
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.axis("off")
    for axes, (name, found) in zip(panels, values.items(), strict=False):
        both = [np.asarray(found), np.asarray(reference[name])]
        if both[0].dtype.kind in "US":
            _bars(axes, both, labels)
        else:
            low, high = np.quantile(np.concatenate(both), (0.002, 0.998))
            for numbers, color, label in zip(both, GALAXY_COLORS, labels, strict=True):
                bins = np.linspace(low, high, 41)
                axes.hist(numbers, bins, density=True, histtype="step", color=color, lw=1.6, label=label)
            axes.set(ylabel="density")
        axes.set(xlabel=name)
    panels[0].legend(frameon=False)
    return figure


def _bars(axes: object, both: list[np.ndarray], labels: tuple[str, str]) -> None:
    names = sorted(set(both[0].tolist()) | set(both[1].tolist()))
    for shift, found, color, label in zip((-0.2, 0.2), both, GALAXY_COLORS, labels, strict=True):
        share = [np.mean(found == name) for name in names]
        axes.bar(np.arange(len(names)) + shift, share, 0.4, color=color, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="share")
