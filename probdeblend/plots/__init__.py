"""Figures of images, posteriors and calibration: results go in, `Axes` come out.

Figures are made without pyplot: nothing stays open and no display is needed. Save one with
``axes.figure.savefig``. The two galaxies of a pair keep their colors throughout: blue for the central one,
vermilion for its companion (the palette of Okabe and Ito, which color-blind readers can tell apart).
"""

from .calibration import plot_coverage, plot_pulls, plot_ranks, plot_reliability
from .images import GALAXY_COLORS, PALETTE, plot_image, plot_stamps
from .posteriors import plot_blend, plot_blends, plot_field, plot_fluxes

__all__ = [
    "GALAXY_COLORS",
    "PALETTE",
    "plot_blend",
    "plot_blends",
    "plot_coverage",
    "plot_field",
    "plot_fluxes",
    "plot_image",
    "plot_pulls",
    "plot_ranks",
    "plot_reliability",
    "plot_stamps",
]
