"""The commands that count galaxies."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS
from click.testing import CliRunner
from test_counting import SpotStream
from test_counts import Spots, tiny_deblender

from probdeblend.cli.counting import count, train_counts
from probdeblend.cli.options import Group
from probdeblend.deblending import counts, weights
from probdeblend.deblending.counts import (
    SETTINGS,
    count_stamps,
    count_table,
    load_counts,
    marginal_central_flux,
    save_counts,
)
from probdeblend.networks.count import CountNetwork

PROBABILITIES = ["probability_1", "probability_2", "probability_3_or_more"]
FLUXES = ["central_flux_16", "central_flux_50", "central_flux_84"]
FAST = ("--draws", 40, "--passes", 2)


@pytest.fixture(scope="module")
def deblender():
    return tiny_deblender()


@pytest.fixture(scope="module")
def network(deblender):
    torch.manual_seed(1)
    return CountNetwork(deblender.network, **SETTINGS).eval()


@pytest.fixture
def run(tmp_path, monkeypatch, deblender, network):
    """Invoke a command in a folder with stamps and a count network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "load", lambda path=None: deblender)
    save_counts(network, deblender, tmp_path / "own.safetensors", training={})
    write_stamps(tmp_path / "stamps.fits", stamps())
    group = Group("probdeblend", commands=[count, train_counts])

    def invoke(*arguments):
        return CliRunner().invoke(group, [str(argument) for argument in arguments])

    return invoke


def stamps():
    return SpotStream(size=3).blend(0).image[:, 0].numpy()


def write_stamps(path, pixels, *, scale=0.06):
    header = fits.Header({"BUNIT": "electron/s"})
    if scale:
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [-scale / 3600, scale / 3600]
        header.update(wcs.to_header())
    fits.PrimaryHDU(pixels, header).writeto(path)


def refused(result, message):
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]


def test_stamps_are_counted(run, network, tmp_path):
    result = run("count", "stamps.fits", "--rms", 2, "--counts", "own.safetensors", "--output", "x.ecsv")
    assert result.exit_code == 0, result.output
    table = QTable.read(tmp_path / "x.ecsv")
    assert table.colnames == ["blend", *PROBABILITIES]
    expected = count_stamps(stamps(), network, sky_rms=2)
    np.testing.assert_allclose(np.column_stack([table[name] for name in PROBABILITIES]), expected, rtol=1e-4)
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[0] == table.colnames
    assert rows[2:5] == [[str(row), *(f"{value:.4f}" for value in expected[row])] for row in range(3)]
    assert result.output.endswith("written to x.ecsv\n")


def test_the_flux_comes_from_the_posterior_of_pairs(run, deblender, network, tmp_path):
    options = ("--rms", 2, "--counts", "own.safetensors", "--flux", *FAST, "--seed", 3)
    assert run("count", "stamps.fits", *options).exit_code == 0
    table = QTable.read(tmp_path / "counts.ecsv")
    assert table.colnames == ["blend", *PROBABILITIES, *FLUXES]
    assert table["central_flux_50"].unit == "electron / s"
    posterior = deblender(stamps(), sky_rms=2, draws=40, passes=2, seed=3)
    draws = posterior.flux.values[..., 0].reshape(40, 3, 2)
    flux = marginal_central_flux(draws, count_stamps(stamps(), network, sky_rms=2), seed=3)
    np.testing.assert_allclose(table["central_flux_50"].value, np.median(flux, axis=0), rtol=1e-4)


def test_noise_is_measured_and_maps_are_scaled(run, network, tmp_path):
    """As `deblend --stamps` does: a map of any height is the same as the noise that is measured."""
    fits.PrimaryHDU(np.full((3, 128, 128), 7.0)).writeto(tmp_path / "map.fits")
    answers = {}
    for name, options in {
        "measured": (),
        "map": ("--rms", "map.fits"),
        "as it is": ("--rms", "map.fits", "--rms-as-is"),
        "number": ("--rms", 7),
    }.items():
        result = run("count", "stamps.fits", "--counts", "own.safetensors", "--overwrite", *options)
        assert result.exit_code == 0, result.output
        answers[name] = QTable.read(tmp_path / "counts.ecsv")["probability_1"]
    expected = count_table(count_stamps(stamps(), network, sky_rms=2))["probability_1"]
    np.testing.assert_allclose(answers["measured"], expected, atol=0.01)
    np.testing.assert_allclose(answers["map"], expected, atol=0.01)
    np.testing.assert_array_equal(answers["as it is"], answers["number"])
    assert np.abs(answers["number"] - expected).max() > 0.02


def test_an_earlier_table_stays_unless_it_is_to_be_replaced(run, tmp_path):
    (tmp_path / "counts.ecsv").write_text("mine")
    options = ("count", "stamps.fits", "--counts", "own.safetensors")
    refused(run(*options), "counts.ecsv: exists already; --overwrite replaces it")
    assert (tmp_path / "counts.ecsv").read_text() == "mine"
    assert run(*options, "--overwrite").exit_code == 0
    assert len(QTable.read(tmp_path / "counts.ecsv")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.fits",), "none.fits: no such file"),
        (("field.fits",), "field.fits: stamps must have shape (128, 128) or (blend, 128, 128), got (128, 200)"),
        (("bare.fits",), "pixel_scale must be given with --pixel-scale where the header has none, got None"),
        (("bare.fits", "--pixel-scale", 0.03), 'pixel_scale must be 0.06" within 2%'),
        (("stamps.fits", "--psf", "wide.fits"), "psf must have the width that the weights were trained for"),
        (("flat.fits",), "rms must be given for a stamp whose sky does not scatter, got None"),
        (("stamps.fits", "--rms", 0), "sky_rms must be positive and finite, got 0"),
        (("stamps.fits", "--rms", "none.fits"), "none.fits: no such file"),
        (("stamps.fits", "--counts", "stamps.fits"), "stamps.fits: not a safetensors file, or damaged"),
        (("stamps.fits", "--counts", "none.safetensors"), "none.safetensors: no such count network"),
    ],
)
def test_count_refuses(run, tmp_path, arguments, message):
    write_stamps(tmp_path / "field.fits", np.ones((128, 200)))
    write_stamps(tmp_path / "bare.fits", stamps(), scale=None)
    write_stamps(tmp_path / "flat.fits", np.ones((128, 128)))
    wide = np.exp(-np.hypot(*np.mgrid[-20:21, -20:21]) / 5)
    fits.PrimaryHDU(wide).writeto(tmp_path / "wide.fits")
    before = set(tmp_path.iterdir())
    refused(run("count", "--counts", "own.safetensors", *arguments), message)
    assert set(tmp_path.iterdir()) == before


def test_without_a_network_there_is_no_count(run, monkeypatch, tmp_path):
    monkeypatch.setattr(counts, "DEFAULT", "none_f160w.safetensors")
    refused(run("count", "stamps.fits"), "none_f160w.safetensors: no such count network")
    assert not (tmp_path / "counts.ecsv").exists()


def test_a_network_of_other_weights_is_refused(run, monkeypatch, deblender):
    other = tiny_deblender(seed=4)
    monkeypatch.setattr(weights, "load", lambda path=None: other)
    message = f"own.safetensors: a count network on the encoder {deblender.encoder_digest}, got weights with"
    refused(run("count", "stamps.fits", "--counts", "own.safetensors"), message)


def test_train_and_count(run, deblender, monkeypatch, tmp_path):
    monkeypatch.setattr(counts, "SimulatedStream", Spots)
    options = ("train-counts", "--blends", 300, "--steps", 4, "--test-blends", 50, "--output", "new.safetensors")
    result = run(*options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("accuracy 0.")
    assert lines[0].endswith(", 50 blends")
    assert "expected calibration error 0." in lines[0]
    assert lines[1].split() == ["low", "high", "pairs", "probability_two", "unrecognized"]
    assert lines[-1] == "written to new.safetensors"
    assert load_counts(tmp_path / "new.safetensors", deblender).classes == 3
    assert run("count", "stamps.fits", "--counts", "new.safetensors").exit_code == 0
    refused(run(*options), "new.safetensors: exists already; --overwrite replaces it")


@pytest.mark.parametrize("command", ["count", "train-counts"])
def test_help_shows_an_example(run, command):
    assert f"Example:\n    probdeblend {command}" in run(command, "--help").output
