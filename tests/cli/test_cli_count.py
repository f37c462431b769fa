"""Count galaxies from the command line, with the network that ships."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from commands import EXAMPLE_PATH, plane, refused, succeeded

import probdeblend
from probdeblend.deblending.counts import count_stamps, default_counts

PROBABILITIES = ["probability_1", "probability_2", "probability_3_or_more"]
FLUXES = ["central_flux_16", "central_flux_50", "central_flux_84"]
NOISE = 3e-3


@pytest.fixture
def stamps(tmp_path):
    """The example, and the same twice as bright under twice the noise."""
    pixels = fits.getdata(EXAMPLE_PATH).astype(float)
    cube = np.stack([pixels, 2 * pixels])
    header = plane().to_header()
    header["BUNIT"] = "electron/s"
    fits.PrimaryHDU(cube, header).writeto(tmp_path / "stamps.fits")
    fits.PrimaryHDU(pixels[:100], header).writeto(tmp_path / "short.fits")
    fits.PrimaryHDU(pixels).writeto(tmp_path / "bare.fits")
    fits.PrimaryHDU(np.ones((128, 128)), header).writeto(tmp_path / "flat.fits")
    fits.PrimaryHDU(np.exp(-np.hypot(*np.mgrid[-20:21, -20:21]) / 5)).writeto(tmp_path / "wide.fits")
    fits.PrimaryHDU(np.ones((2, 128, 128)) * np.array([7.0, 14.0])[:, None, None]).writeto(tmp_path / "map.fits")
    return cube


def counted(path):
    table = QTable.read(path)
    return np.column_stack([table[name] for name in PROBABILITIES])


def test_stamps_are_counted(run, stamps, tmp_path):
    text = succeeded(run("count", "stamps.fits", "--rms", NOISE, "--output", "x.ecsv"))
    expected = count_stamps(stamps, default_counts(), sky_rms=NOISE)
    np.testing.assert_allclose(counted(tmp_path / "x.ecsv"), expected, rtol=1e-3)
    assert (expected[:, 1] > 0.9).all()  # it is a pair
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["blend", *PROBABILITIES]
    assert text.endswith("written to x.ecsv\n")


def test_the_flux_comes_from_the_posterior_of_pairs(run, stamps, tmp_path):
    succeeded(run("count", "stamps.fits", "--rms", NOISE, "--flux", "--draws", 64, "--passes", 4))
    table = QTable.read(tmp_path / "counts.ecsv")
    assert table.colnames == ["blend", *PROBABILITIES, *FLUXES]
    assert table["central_flux_50"].unit == "electron / s"
    posterior = probdeblend.load()(stamps, sky_rms=NOISE, draws=64, passes=4)
    single = np.median(posterior.draws("blend", "galaxy", "band")[:, 0, 0], axis=-1)
    np.testing.assert_allclose(table["central_flux_50"].value, single, rtol=0.02)  # two galaxies are all but certain


def test_noise_is_measured_and_maps_are_rescaled(run, stamps, tmp_path):
    """As with `deblend --stamps`: a map of any height is the same as the measured noise."""
    found = {}
    for name, options in {
        "measured": (),
        "map": ("--rms", "map.fits"),
        "as it is": ("--rms", "map.fits", "--rms-as-is"),
        "number": ("--rms", 7),
    }.items():
        succeeded(run("count", "stamps.fits", "--overwrite", *options))
        found[name] = counted(tmp_path / "counts.ecsv")
    np.testing.assert_allclose(found["map"], found["measured"], atol=0.02)
    np.testing.assert_allclose(found["measured"][0], found["measured"][1], atol=1e-3)  # the unit does not matter
    np.testing.assert_array_equal(found["as it is"][0], found["number"][0])
    assert np.abs(found["number"] - found["measured"]).max() > 0.02


def test_an_earlier_table_stays_unless_it_is_to_be_replaced(run, stamps, tmp_path):
    (tmp_path / "counts.ecsv").write_text("mine")
    refused(run("count", "stamps.fits"), "counts.ecsv: exists already; --overwrite replaces it")
    assert (tmp_path / "counts.ecsv").read_text() == "mine"
    succeeded(run("count", "stamps.fits", "--overwrite"))
    assert len(QTable.read(tmp_path / "counts.ecsv")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.fits",), "none.fits: no such file"),
        (("short.fits",), "short.fits: stamps must have 128 x 128 pixels, got shape (100, 128)"),
        (("bare.fits",), "pixel_scale must be given with --pixel-scale where the header has none, got None"),
        (("bare.fits", "--pixel-scale", 0.03), 'pixel_scale must be 0.06" within 2%'),
        (("stamps.fits", "--psf", "wide.fits"), "psf must have the width that the weights were trained for"),
        (("flat.fits",), "rms must be given if the sky noise cannot be measured, got None"),
        (("stamps.fits", "--rms", 0), "sky_rms must be positive and finite, got 0"),
        (("stamps.fits", "--rms", "none.fits"), "none.fits: no such file"),
        (("stamps.fits", "--counts", "stamps.fits"), "stamps.fits: not a safetensors file, or damaged"),
        (("stamps.fits", "--counts", "none.safetensors"), "none.safetensors: no such count network"),
    ],
)
def test_count_refuses(run, stamps, tmp_path, arguments, message):
    before = set(tmp_path.iterdir())
    refused(run("count", *arguments), message)
    assert set(tmp_path.iterdir()) == before
