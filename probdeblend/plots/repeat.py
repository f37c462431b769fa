"""Differences of two exposures in units of their errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .images import GALAXY_COLORS, LONE_COLOR

__all__ = ["plot_repeat"]

END = 5.0
BINS = 40


def plot_repeat(scores: Mapping[str, ArrayLike], *, axes: Axes | None = None) -> Axes:
    """Show histograms of differences over their errors, with the unit normal that right errors give.

    Parameters
    ----------
    scores
        Differences in units of their errors by the curve's label, NaN for none. Those beyond 5 are in the
        outermost bins.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The histograms, each with unit area.
    """
    axes = axes or Figure(figsize=(5.4, 4), layout="constrained").subplots()
    grid = np.linspace(-END, END, 401)
    normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    axes.fill_between(grid, normal, color="0.6", alpha=0.35, lw=0, label="unit normal")
    for (name, values), color in zip(scores.items(), (*GALAXY_COLORS, LONE_COLOR), strict=False):
        score = np.asarray(values, dtype=float)
        score = np.clip(score[np.isfinite(score)], -END, END)
        if len(score):
            look = {"histtype": "step", "color": color, "lw": 1.6, "label": f"{name} ({len(score)} galaxies)"}
            axes.hist(score, np.linspace(-END, END, BINS + 1), density=True, **look)
    axes.set(xlabel="difference over its error", ylabel="density", xlim=(-END, END))
    axes.legend(frameon=False, fontsize=8)
    return axes
