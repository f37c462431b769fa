"""Accuracy and calibration: pure functions of arrays."""

from .accuracy import accuracy_table, magnitude_error
from .coverage import binned_table, diagnose
from .detections import average_precision, binned_fraction, match_sources
from .masks import blendedness, iou, reliability
from .ranks import covariance_pit, group_pit, joint_pit, normal_pit, pit, whitened
from .scores import crps, interval_score

__all__ = [
    "accuracy_table",
    "average_precision",
    "binned_fraction",
    "binned_table",
    "blendedness",
    "covariance_pit",
    "crps",
    "diagnose",
    "group_pit",
    "interval_score",
    "iou",
    "joint_pit",
    "magnitude_error",
    "match_sources",
    "normal_pit",
    "pit",
    "reliability",
    "whitened",
]
