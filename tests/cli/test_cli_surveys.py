"""From a mosaic to scenes of its isolated galaxies, on the command line."""

import math

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.simulation import Population, read_scenes, simulate

ZERO_POINT = 25.9463


@pytest.fixture
def mosaic(tmp_path):
    population = Population.published().replace(layout="anywhere", max_difference=math.inf)
    scene = simulate(1, population=population, size=400, number=12, seed=3)
    fits.PrimaryHDU(scene.image[0, 0].numpy(), fits.Header({"ABMAGZP": ZERO_POINT})).writeto(tmp_path / "mosaic.fits")
    magnitude = ZERO_POINT - 2.5 * np.log10(scene.flux[:, 0].numpy())
    Table({"x": scene.x.numpy(), "y": scene.y.numpy(), "H": magnitude}).write(tmp_path / "catalog.csv")
    return "mosaic.fits"


@pytest.mark.slow
def test_from_a_mosaic_to_scenes(run, mosaic, tmp_path):
    """Isolate, edit the list, inject."""
    isolate = ("isolate", mosaic, "--output", "isolated", "--catalog", "catalog.csv", "--columns", "magnitude=H")
    text = succeeded(run(*isolate))
    assert "kept" in text
    assert "written to isolated: library.h5, keep.csv, contact-001.png" in text
    refused(run(*isolate), "isolated: exists already; --overwrite replaces it")
    table = Table.read(tmp_path / "isolated" / "keep.csv")
    table["keep"][np.flatnonzero(table["keep"] == "yes")[0]] = "no"
    table.write(tmp_path / "isolated" / "keep.csv", overwrite=True)
    inject = ("inject", "isolated", "--count", 5, "--sources", 2)
    assert "5 scenes written to real" in succeeded(run(*inject, "--output", "real"))
    assert read_scenes(tmp_path / "real").count.tolist() == [2] * 5
    refused(run(*inject, "--output", "real"), "real: exists already")
    refused(run(*inject, "--output", "other", "--resume"), "there is nothing to resume: other.partial does not exist")
    refused(run("inject", "isolated", "--output", "x", "--sources", 99), "library must hold 99 galaxies to keep")


def test_mistakes_with_mosaics(run, mosaic, tmp_path):
    refused(run("isolate", "none.fits", "--output", "isolated"), "none.fits: no such file")
    refused(run("isolate", mosaic, "--output", "isolated", "--catalog", "catalog.csv"), "'magnitude' are missing")
    refused(run("isolate", mosaic, "--output", "isolated", "--columns", "magnitude"), "columns must be NAME=COLUMN")
    refused(run("isolate", mosaic, "--output", "isolated", "--magnitude", 10), "no galaxy is left to cut out")
    refused(run("inject", "isolated", "--output", "x"), "isolated: not a library of galaxies, it has no library.h5")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["catalog.csv", mosaic]
