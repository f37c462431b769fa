"""Accuracy and calibration: pure functions of arrays."""
