"""From a mosaic to scenes of its isolated galaxies, on the command line."""

import math

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.simulation import Camera, Population, read_scenes, simulate


@pytest.fixture
def mosaic(tmp_path):
    population = Population.published().replace(layout="anywhere", max_difference=math.inf)
    camera = Camera.candels_f160w()
    scene = simulate(1, population=population, camera=camera, size=400, number=12, seed=3)
    header = fits.Header({"ABMAGZP": 25.9463, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update(
        {"CRPIX1": 1, "CRPIX2": 1, "CDELT1": -0.06 / 3600, "CDELT2": 0.06 / 3600, "CRVAL1": 53.0, "CRVAL2": -27.0}
    )
    fits.PrimaryHDU(scene.image[0, 0].numpy(), header).writeto(tmp_path / "mosaic.fits")
    fits.PrimaryHDU(camera.psf[0].numpy()).writeto(tmp_path / "psf.fits")
    bright = np.argsort(-scene.flux[:, 0].numpy())[:5]
    Table({"x": scene.x.numpy()[bright], "y": scene.y.numpy()[bright]}).write(tmp_path / "catalog.csv")
    return "mosaic.fits"


@pytest.mark.slow
def test_from_a_mosaic_to_scenes(run, mosaic, tmp_path):
    """Isolate, edit the list, inject."""
    isolate = ("isolate", mosaic, "--psf", "psf.fits", "--output", "isolated")
    text = succeeded(run(*isolate))
    table = Table.read(tmp_path / "isolated" / "keep.csv")
    kept = np.flatnonzero(table["keep"] == "yes")
    assert f"{len(kept)} of {len(table)} galaxies to keep" in text
    assert "written to isolated: contact-001.png, keep.csv, library.h5" in text
    refused(run(*isolate), "isolated: exists already; --overwrite replaces it")
    assert all(name.startswith("mosaic:") for name in table["identity"])
    few = ("isolate", mosaic, "--psf", "psf.fits", "--positions", "catalog.csv", "--output", "few")
    assert "5 galaxies to keep" in succeeded(run(*few))
    assert len(kept) > 1
    table["keep"][kept[0]] = "no"
    table.write(tmp_path / "isolated" / "keep.csv", overwrite=True)
    inject = ("inject", "isolated", "--count", 5, "--sources", 2, "--size", 96)
    assert "5 scenes written to real" in succeeded(run(*inject, "--output", "real"))
    scenes = read_scenes(tmp_path / "real")
    assert scenes.count.tolist() == [2] * 5
    assert scenes.flux.isnan().all()
    assert scenes.auto_flux.isfinite().all()
    refused(run(*inject, "--output", "real"), "real: exists already")
    refused(run(*inject, "--output", "other", "--resume"), "there is nothing to resume: other.partial does not exist")


def test_mistakes_with_mosaics(run, mosaic, tmp_path):
    isolate, before = ("--psf", "psf.fits", "--output", "isolated"), sorted(tmp_path.iterdir())
    refused(run("isolate", "none.fits", *isolate), "none.fits: no such file")
    refused(run("isolate", mosaic, *isolate, "--positions", "none.csv"), "none.csv: no such file")
    refused(run("isolate", mosaic, *isolate, "--least-snr", 1e9), "image must hold a galaxy with a signal-to-noise")
    refused(run("isolate", mosaic, *isolate, "--least-snr", "nan"), "least_snr must be finite, got nan")
    refused(run("inject", "isolated", "--output", "x"), "isolated: not a library of galaxies, it has no library.h5")
    assert sorted(tmp_path.iterdir()) == before
