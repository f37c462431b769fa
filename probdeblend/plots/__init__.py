"""Figures of images, sources, groups, fields and calibration: results go in, `Axes` come out.

Figures are made without pyplot: nothing stays open and no display is needed. Save one with
``axes.figure.savefig``. Colors are those of Okabe and Ito, which color-blind readers can tell apart.
"""

from .calibration import plot_coverage, plot_errors, plot_ranks, plot_reliability
from .images import PALETTE, plot_image, plot_rgb, plot_stamps
from .sources import plot_field, plot_group, plot_source

__all__ = [
    "PALETTE", "plot_coverage", "plot_errors", "plot_field", "plot_group", "plot_image", "plot_ranks",
    "plot_reliability", "plot_rgb", "plot_source", "plot_stamps",
]  # fmt: skip
