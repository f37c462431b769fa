"""Evaluate and calibrate from the command line."""

import numpy as np
import pytest
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.posterior import Posterior


@pytest.fixture
def scenes(run):
    succeeded(run("simulate", "set", "--population", "default", "--camera", "random", "--count", 3, "--size", 64))
    return "set"


def test_evaluate_prints_rows_of_each_method(run, scenes, random_weights, tmp_path):
    options = ("--weights", random_weights, "--output", "accuracy")
    text = succeeded(run("evaluate", scenes, *options))
    assert text.endswith("written to accuracy: accuracy.ecsv, detection.ecsv, summary.ecsv\n")
    methods = {row.split()[0] for row in text.splitlines() if row}
    assert {"network", "sep"} <= methods
    table = Table.read(tmp_path / "accuracy" / "accuracy.ecsv")
    assert set(table["method"]) == {"network", "sep"}
    assert {"coverage_68", "joint_68", "total_68"} <= set(table.colnames)
    refused(run("evaluate", scenes, *options), "accuracy: exists already; --overwrite replaces it")
    refused(run("evaluate", "accuracy", "--weights", random_weights), "accuracy")


@pytest.mark.slow
def test_calibrate_and_deblend(run, random_weights, tmp_path):
    """Fit to a set, then deblend the example with the calibrator, with the weights that hold it, and without."""
    succeeded(run("simulate", "set", "--count", 150, "--size", 64))
    text = succeeded(run("calibrate", "set", "--weights", random_weights, "--least", 100))
    assert "before" in text
    assert text.endswith("written to calibration: calibrator.json, weights.safetensors, tested.ecsv\n")
    fluxes, few = {}, ("--draws", 64, "--passes", 2, "--save-draws")
    for name, options in {
        "calibrator": ("--weights", random_weights, "--calibrator", "calibration/calibrator.json"),
        "weights": ("--weights", "calibration/weights.safetensors"),
        "none": ("--weights", "calibration/weights.safetensors", "--no-calibrator"),
    }.items():
        succeeded(run("deblend", "--output", name, *few, *options))
        fluxes[name] = Posterior.open(tmp_path / name / "draws.nc").flux.values
    np.testing.assert_array_equal(fluxes["calibrator"], fluxes["weights"])
    assert not np.array_equal(fluxes["calibrator"], fluxes["none"])


def test_calibrate_refuses(run, scenes, random_weights, tmp_path):
    refused(run("calibrate", "none", "--weights", random_weights), "none")
    refused(run("calibrate", scenes, "--weights", "none"), "none: no such weights file")
    refused(run("calibrate", scenes, "--weights", random_weights), "scenes must hold at least 5 batches, got 1")
    refused(run("calibrate", "--count", 8, scenes), "scenes and count are mutually exclusive, got both")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
