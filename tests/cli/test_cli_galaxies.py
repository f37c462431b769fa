"""The commands that make and look through training sets, on a mosaic that the package simulates."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner

from probdeblend.cli import main
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import count_blends, read_blends
from probdeblend.surveys import collect


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted = collect.fit_aperture_correction
    monkeypatch.setattr(collect, "fit_aperture_correction", lambda instrument: fitted(instrument, count=96))

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def mosaic(tmp_path):
    image, catalog = simulate_mosaic(
        12, (400, 400), prior=Prior.published(), instrument=Instrument.candels_f160w(), seed=3
    )
    header = fits.Header({"ABMAGZP": 25.9463})
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(tmp_path / "mosaic.fits")
    catalog.rename_column("magnitude", "H")
    catalog.write(tmp_path / "catalog.csv")
    return "mosaic.fits"


def succeeded(result):
    assert result.exit_code == 0, result.output
    return result.output


def refused(result, message):
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    error = result.stderr.splitlines()[-1]
    assert "Error: " in error
    assert message in error


def test_from_a_mosaic_to_blends(run, mosaic, tmp_path):
    """Cut out, edit the list, blend, go on, inspect."""
    stamps = ("stamps", mosaic, "--output", "lone", "--catalog", "catalog.csv", "--columns", "magnitude=H")
    text = succeeded(run(*stamps))
    assert "to keep" in text
    assert "written to lone: library.h5, keep.csv, contact-001.png" in text
    refused(run(*stamps), "lone: exists already; --overwrite replaces it")
    table = Table.read(tmp_path / "lone" / "keep.csv")
    kept = (table["keep"] == "yes").sum()
    table["keep"][np.flatnonzero(table["keep"] == "yes")[0]] = "no"
    table.write(tmp_path / "lone" / "keep.csv", overwrite=True)
    pair = ("pair", "lone", "--count", 5, "--crowding", "0.2,0.8")
    assert f"5 blends of {kept - 1} galaxies written to real" in succeeded(run(*pair, "--output", "real"))
    assert read_blends(tmp_path / "real").count.tolist().count(2) >= 1
    refused(run(*pair, "--output", "real"), "real: exists already")
    refused(run(*pair, "--output", "other", "--resume"), "other.partial: no unfinished set to go on from")
    refused(run("pair", "lone", "--output", "x", "--crowding", "a"), "crowding must be numbers separated by commas")
    text = succeeded(run("inspect", "real", "--output", "pictures"))
    assert "distinct real galaxies" in text
    assert "distance to the prior fitted to the published table" in text
    refused(run("inspect", "real", "--output", "pictures"), "pictures: exists already")


def test_mistakes_with_mosaics(run, mosaic, tmp_path):
    refused(run("stamps", "none.fits", "--output", "lone"), "none.fits: no such file")
    refused(run("stamps", mosaic, "--output", "lone", "--catalog", "catalog.csv"), "'magnitude' are missing")
    refused(run("stamps", mosaic, "--output", "lone", "--columns", "magnitude"), "columns must be NAME=COLUMN")
    refused(run("stamps", mosaic, "--output", "lone", "--magnitude", 10), "no galaxy is left to cut out")
    refused(run("pair", "lone", "--output", "x"), "lone: not a library of galaxies, it has no library.h5")
    refused(run("reobserve", "none.fits", "--output", "x"), "none.fits: no such file")
    refused(run("inspect", "none"), "none: no such set of blends")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["catalog.csv", mosaic]


def test_sets_that_are_smooth_white_or_crowded(run, tmp_path):
    options = ("--count", 12, "--renderer", "torch", "--smooth", "--white", "--crowding", "0.5,0.3,0.2")
    succeeded(run("simulate", "set", *options))
    blends = read_blends(tmp_path / "set")
    assert blends.flux.shape == (12, 3, 1)
    assert np.isfinite(blends.flux.numpy()).sum() == blends.count.sum()
    refused(run("train", "w.safetensors", "--data", "set", "--batch-size", 2), "blends must be pairs to train on")
    refused(run("evaluate", "set"), "blends must be pairs")
    refused(run("simulate", "y", "--crowding", "0.5,0.2"), "crowding must be up to 5 probabilities that sum to 1")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set"]


@pytest.mark.slow
def test_labels_from_the_command_line(run, tmp_path):
    succeeded(run("simulate", "set", "--count", 40, "--renderer", "torch", "--smooth", "--separation", "anywhere"))
    assert count_blends(tmp_path / "set") == 40
    text = succeeded(run("train-labels", "set", "--steps", 1, "--batch-size", 4))
    assert "overlap" in text
    assert (tmp_path / "labels.safetensors").is_file()
    refused(run("train-labels", "set", "--steps", 1), "labels.safetensors: exists already; --overwrite replaces it")


def test_data_and_library_exclude_each_other(run):
    refused(run("train", "w", "--data", "set", "--library", "lone"), "data and library exclude each other, got both")
