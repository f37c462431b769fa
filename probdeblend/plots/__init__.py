"""Every figure of the package: results go in, `Axes` come out.

Figures are made without pyplot, so that nothing is left open and no display is needed; save one with
``axes.figure.savefig``. The two galaxies of a pair keep their colours throughout: blue for the central one,
vermilion for its companion (Okabe and Ito's palette, told apart by colour-blind readers).
"""

from .calibration import plot_coverage, plot_ranks, plot_reliability
from .images import EXACT_COLOR, GALAXY_COLORS, LONE_COLOR, PALETTE, plot_image, plot_stamps
from .posteriors import plot_blend, plot_blends, plot_field, plot_fluxes
from .repeat import plot_repeat
from .sets import plot_distributions, plot_matrix

__all__ = [
    "EXACT_COLOR",
    "GALAXY_COLORS",
    "LONE_COLOR",
    "PALETTE",
    "plot_blend",
    "plot_blends",
    "plot_coverage",
    "plot_distributions",
    "plot_field",
    "plot_fluxes",
    "plot_image",
    "plot_matrix",
    "plot_ranks",
    "plot_reliability",
    "plot_repeat",
    "plot_stamps",
]
