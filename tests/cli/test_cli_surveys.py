"""From a mosaic to blends of its isolated galaxies, on the command line."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import read_blends


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


@pytest.mark.slow
def test_from_a_mosaic_to_blends(run, mosaic, tmp_path):
    """Isolate, edit the list, blend."""
    isolate = ("isolate", mosaic, "--output", "isolated", "--catalog", "catalog.csv", "--columns", "magnitude=H")
    text = succeeded(run(*isolate))
    assert "kept" in text
    assert "written to isolated: library.h5, keep.csv, contact-001.png" in text
    refused(run(*isolate), "isolated: exists already; --overwrite replaces it")
    table = Table.read(tmp_path / "isolated" / "keep.csv")
    kept = (table["keep"] == "yes").sum()
    table["keep"][np.flatnonzero(table["keep"] == "yes")[0]] = "no"
    table.write(tmp_path / "isolated" / "keep.csv", overwrite=True)
    inject = ("inject", "isolated", "--count", 5, "--crowding", "0.2,0.8")
    assert f"5 blends of {kept - 1} galaxies written to real" in succeeded(run(*inject, "--output", "real"))
    assert read_blends(tmp_path / "real").count.tolist().count(2) >= 1
    refused(run(*inject, "--output", "real"), "real: exists already")
    refused(run(*inject, "--output", "other", "--resume"), "there is nothing to resume: other.partial does not exist")
    refused(
        run("inject", "isolated", "--output", "x", "--crowding", "a"), "crowding must be numbers separated by commas"
    )


def test_mistakes_with_mosaics(run, mosaic, tmp_path):
    refused(run("isolate", "none.fits", "--output", "isolated"), "none.fits: no such file")
    refused(run("isolate", mosaic, "--output", "isolated", "--catalog", "catalog.csv"), "'magnitude' are missing")
    refused(run("isolate", mosaic, "--output", "isolated", "--columns", "magnitude"), "columns must be NAME=COLUMN")
    refused(run("isolate", mosaic, "--output", "isolated", "--magnitude", 10), "no galaxy is left to cut out")
    refused(run("inject", "isolated", "--output", "x"), "isolated: not a library of galaxies, it has no library.h5")
    refused(run("reobserve", "none.fits", "--output", "x"), "none.fits: no such file")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["catalog.csv", mosaic]
