"""Accuracy and calibration: pure functions of arrays."""

from .accuracy import accuracy_table, magnitude_error
from .counts import count_reliability, count_scores
from .coverage import binned_table, diagnose, expected_coverage, quantile_edges
from .masks import Reliability, blendedness, iou
from .ranks import covariance_pit, ecdf_band, joint_pit, normal_pit, pit, rank_p_value, tarp, whitened
from .scores import crps, energy_score, interval_score, log_score

__all__ = [
    "Reliability",
    "accuracy_table",
    "binned_table",
    "blendedness",
    "count_reliability",
    "count_scores",
    "covariance_pit",
    "crps",
    "diagnose",
    "ecdf_band",
    "energy_score",
    "expected_coverage",
    "interval_score",
    "iou",
    "joint_pit",
    "log_score",
    "magnitude_error",
    "normal_pit",
    "pit",
    "quantile_edges",
    "rank_p_value",
    "tarp",
    "whitened",
]
