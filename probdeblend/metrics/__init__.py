"""Accuracy and calibration: pure functions of arrays."""

from .accuracy import accuracy_table, magnitude_error
from .coverage import binned_table, diagnose, expected_coverage, quantile_edges
from .detections import average_precision, binned_fraction, match_sources
from .masks import Reliability, blendedness, iou
from .ranks import covariance_pit, ecdf_band, group_pit, joint_pit, normal_pit, pit, rank_p_value, tarp, whitened
from .scores import crps, interval_score

__all__ = [
    "Reliability",
    "accuracy_table",
    "average_precision",
    "binned_fraction",
    "binned_table",
    "blendedness",
    "covariance_pit",
    "crps",
    "diagnose",
    "ecdf_band",
    "expected_coverage",
    "group_pit",
    "interval_score",
    "iou",
    "joint_pit",
    "magnitude_error",
    "match_sources",
    "normal_pit",
    "pit",
    "quantile_edges",
    "rank_p_value",
    "tarp",
    "whitened",
]
