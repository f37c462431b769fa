"""Evaluate and calibrate from the command line."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.posterior import Posterior
from probdeblend.training import calibrate


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
    assert text.endswith("written to calibration: calibrator.json, report.ecsv, tested.ecsv, weights.safetensors\n")
    assert "Your error bars of total fluxes were" in text
    report = Table.read(tmp_path / "calibration" / "report.ecsv")
    assert all(sentence in text for sentence in report.meta["comments"])
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
    refused(run("calibrate", "--galaxies", "none"), "none: not a library of galaxies, it has no library.h5")
    refused(run("calibrate", "--fold", 1), "fold requires galaxies, got none")
    refused(
        run("calibrate", scenes, "--psf", "candels_f160w"), "psf must be left out without images, got candels_f160w"
    )
    refused(run("calibrate", "--each"), "each must be left out without images, got True")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.fixture
def images(tmp_path):
    """Two bands of one field, with nothing but noise in them; and one that has none."""
    rng = np.random.default_rng(0)
    for name, pixels in (("g", rng.normal(5, 1, (96, 96))), ("r", rng.normal(0, 2, (96, 96)))):
        fits.PrimaryHDU(pixels.astype("f4")).writeto(tmp_path / f"{name}.fits")
    fits.PrimaryHDU(np.ones((128, 128), "f4")).writeto(tmp_path / "flat.fits")
    fits.PrimaryHDU(rng.normal(0, 1, (64, 64)).astype("f4")).writeto(tmp_path / "small.fits")
    return "g.fits", "r.fits"


def test_calibrate_hands_over_what_is_known_of_images(run, images, random_weights, monkeypatch):
    asked = {}

    def answers_of(fields, count, *_, **options):
        asked.update(fields.keywords, count=count)

    monkeypatch.setattr(calibrate, "answers_of", answers_of)
    monkeypatch.setattr(calibrate, "fit_answers", lambda *_, **options: 1 / 0)
    Table({"mag": [20.0]}).write("catalog.ecsv")
    options = ("--psf", "p.fits", "--rms", 1, "--rms", 2, "--gain", 3, "--zero-point", 25, "--catalog", "catalog.ecsv")
    run("calibrate", *images, *options, "--weights", random_weights)
    known = {"psf": "p.fits", "sky_rms": [1.0, 2.0], "gain": 3.0, "zero_point": [25.0]}
    assert {name: asked[name] for name in known} == known
    assert asked["catalog"]["mag"] == [20.0]
    assert [[path.name for path in bands] for bands in asked["images"]] == [list(images)]
    assert asked["count"] == 125  # 250 of one band


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ("g.fits", (), "psf must be given"),
        ("small.fits", ("--psf", "candels_f160w"), "image must be at least 96 pixels on a side, got shape (64, 64)"),
        ("flat.fits", ("--psf", "candels_f160w"), "sky_rms must be given where the sky cannot be measured"),
        ("none.fits", ("--psf", "candels_f160w"), "none.fits: no such file"),
        ("g.fits", ("--catalog", "none.ecsv"), "none.ecsv: no such file"),
    ],
)
def test_calibrate_refuses_images(run, images, random_weights, tmp_path, image, options, message):
    before = sorted(tmp_path.iterdir())
    refused(run("calibrate", image, *options, "--weights", random_weights), message)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_calibrate_on_images_and_resume(run, images, random_weights, tmp_path, monkeypatch):
    """What was done is not done again, and the result is that of a run without interruption."""
    how = ("--psf", "candels_f160w", "--count", 10, "--least", 20)
    command = ("calibrate", *images, *how, "--weights", random_weights)
    succeeded(run(*command, "--output", "whole"))
    answer, numbers = calibrate.answer, []

    def interrupted(number, *arguments):
        numbers.append(number)
        if numbers == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return answer(number, *arguments)

    monkeypatch.setattr(calibrate, "answer", interrupted)
    assert run(*command, "--output", "again").exit_code == 130
    refused(run(*command, "--output", "again"), "resume continues it")
    refused(run(*command, "--output", "again", "--seed", 1, "--resume"), "settings")
    succeeded(run(*command, "--output", "again", "--resume"))
    assert numbers == [0, 1, 2, 3, *range(3, 10)]
    one, other = (json.loads((tmp_path / name / "calibrator.json").read_text()) for name in ("whole", "again"))
    assert one == other
    assert one["fitted_on"] == "10 windows of g.fits, r.fits"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "flat.fits", *images, "small.fits", "whole"]
