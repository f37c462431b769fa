"""Repair of uncertainties: what galaxies of known flux, and pixels of known masks, have shown to be right."""

from .calibrator import Calibrator
from .groups import FEATURES, LEAST_GALAXIES, Group, estimated_features
from .maps import NODES, QuantileMap
from .masks import MaskMap, MaskSums

__all__ = [
    "FEATURES",
    "LEAST_GALAXIES",
    "NODES",
    "Calibrator",
    "Group",
    "MaskMap",
    "MaskSums",
    "QuantileMap",
    "estimated_features",
]
