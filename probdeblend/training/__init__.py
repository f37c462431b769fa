"""From scenes to weights: train networks, compare them with the truth, and calibrate their posteriors."""

from __future__ import annotations

from .calibrate import fit_calibrator
from .counting import train_counts
from .evaluation import compare, evaluate, log_fluxes, scorecard
from .recipes import train_guide, train_readout, train_weights
from .streams import Mixture

__all__ = [
    "Mixture",
    "compare",
    "evaluate",
    "fit_calibrator",
    "log_fluxes",
    "scorecard",
    "train_counts",
    "train_guide",
    "train_readout",
    "train_weights",
]
