"""Accuracy and calibration: pure functions of arrays."""

from .accuracy import flux_accuracy, magnitude_error
from .coverage import diagnose, interval_score
from .detections import average_precision, binned_fraction, blend_classes, match_sources
from .masks import blendedness, iou, reliability
from .ranks import group_pit, joint_pit, pit

__all__ = [
    "average_precision", "binned_fraction", "blend_classes", "blendedness", "diagnose", "flux_accuracy", "group_pit",
    "interval_score", "iou", "joint_pit", "magnitude_error", "match_sources", "pit", "reliability",
]  # fmt: skip
