"""Evaluate and calibrate from the command line."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import refused

import probdeblend
from probdeblend.deblending import weights
from probdeblend.posterior import Calibrator
from probdeblend.posterior.masks import MaskMap
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.training import Mixture, compare

FILES = ["calibration.png", "calibrator.json", "tested.ecsv", "weights.safetensors"]
FAST = ("--draws", 40, "--passes", 2)


def test_evaluate_prints_a_row_a_method(run, fake, tmp_path):
    assert run("simulate", "set", "--count", 4, "--renderer", "torch").exit_code == 0
    result = run("evaluate", "set", "--draws", 64, "--output", "accuracy.ecsv")
    assert result.exit_code == 0, result.output
    accuracy, by_anomaly = result.stdout.split("The network by anomaly score:")
    assert [row.split()[0] for row in accuracy.strip().splitlines()[-2:]] == ["network", "sep"]
    assert by_anomaly.split()[:3] == ["low", "high", "blends"]
    assert Table.read(tmp_path / "accuracy.ecsv")["method"].tolist() == ["network", "sep"]
    refused(run("evaluate", "set", "--output", "accuracy.ecsv"), "accuracy.ecsv: exists already")
    refused(run("evaluate", "accuracy.ecsv"), "must be a set of blends written by probdeblend")


@pytest.mark.slow
def test_calibrate_and_deblend(run, tmp_path):
    """Fit on simulated blends, then deblend the example with the calibrator, with its weights, and without."""
    result = run("calibrate", "--count", 150, "--output", "fitted", *FAST)
    assert result.exit_code == 0, result.output
    assert "conformal" in result.output
    assert "Each galaxy, repaired by a calibrator that was fitted on others" in result.output
    assert sorted(entry.name for entry in (tmp_path / "fitted").iterdir()) == FILES
    fitted = Calibrator.open(tmp_path / "fitted" / "calibrator.json")
    assert fitted.fitted_on == "150 simulated blends of the training population"
    assert weights.load(tmp_path / "fitted" / "weights.safetensors").calibrator == fitted
    # The encoder, which masks come from, has learned from no close pairs: the map of masks is fitted to blends without.
    others = Mixture().blends(150, seed=1, progress=False)
    assert fitted.mask == MaskMap.fit(compare(others, probdeblend.load(), sep=(), draws=40, passes=2).sums)
    refused(run("calibrate", "--output", "fitted"), "fitted: exists already; --overwrite replaces it")
    fluxes = {}
    for name, options in {
        "calibrator": ("--calibrator", "fitted/calibrator.json"),
        "weights": ("--weights", "fitted/weights.safetensors"),
        "none": ("--no-calibrator",),
    }.items():
        result = run("deblend", "--output", name, "--save-draws", *FAST, *options)
        assert result.exit_code == 0, result.output
        fluxes[name] = probdeblend.Posterior.open(tmp_path / name / "draws.nc").flux.values
    np.testing.assert_array_equal(fluxes["calibrator"], fluxes["weights"])
    assert not np.array_equal(fluxes["calibrator"], fluxes["none"])
    refused(
        run("deblend", "--calibrator", "fitted/calibrator.json", "--no-calibrator", "--output", "x"),
        "mutually exclusive",
    )


@pytest.mark.slow
def test_calibrate_on_own_sky(run, tmp_path):
    image, catalog = simulate_mosaic(
        30, (500, 500), prior=Prior.published(), instrument=Instrument.candels_f160w(), seed=5
    )
    fits.PrimaryHDU(image.astype(np.float32), fits.Header({"ABMAGZP": 25.9463})).writeto(tmp_path / "mosaic.fits")
    catalog.write(tmp_path / "catalog.csv")
    psf = Instrument.candels_f160w().psf.numpy()
    fits.PrimaryHDU(psf, fits.Header({"PIXSCALE": 0.06})).writeto(tmp_path / "psf.fits")
    own = ("--images", "mosaic.fits", "--catalog", "catalog.csv", "--psf", "psf.fits", "--galaxies", "simulated")
    result = run("calibrate", *own, "--count", 300, "--least", 60, "--repair", "floor", "--output", "survey", *FAST)
    assert result.exit_code == 0, result.output
    assert "300 blends of simulated galaxies in" in result.output
    assert "not guaranteed" in result.output
    assert sorted(entry.name for entry in (tmp_path / "survey").iterdir()) == FILES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blends", "a", "--images", "b"), "blends and images are mutually exclusive, got both"),
        (("--blends", "missing"), "missing: no such"),
        (("--images", "missing.fits"), "missing.fits: no such file"),
        (
            ("--images", "a.fits", "--images", "b.fits", "--catalog", "c"),
            "catalog must come with one image, got 2 images",
        ),
        (("--images", "a.fits", "--columns", "x"), "columns must be NAME=COLUMN"),
        pytest.param(
            ("--count", 100, "--least", 5000, *FAST),
            "at least 5000 galaxies with draws are needed to fit, got 200",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_calibrate_refuses(run, tmp_path, options, message):
    refused(run("calibrate", "--output", "out", *options), message)
    assert not list(tmp_path.iterdir())
