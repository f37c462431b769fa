"""Simulate, train, and fit a PSF from the command line."""

import json

import numpy as np
import pytest
from astropy.io import fits
from commands import refused, succeeded

import probdeblend
from probdeblend.refinement import load_guide
from probdeblend.simulation.sets import count_blends, read_blends, read_instrument


@pytest.mark.parametrize("renderer", ["galsim", "torch"])
def test_simulate_writes_a_set(run, tmp_path, renderer):
    options = ["--count", 3, "--seed", 5, "--renderer", renderer, "--separation", "anywhere", "--exposure", "inf"]
    result = run("simulate", "set", *options, "--prior", "default", "--sky-rms", 0.004)
    assert result.exit_code == 0, result.output
    assert "3 blends written to set" in result.output
    assert count_blends(tmp_path / "set") == 3
    assert read_blends(tmp_path / "set").flux.shape == (3, 2, 1)
    instrument = read_instrument(tmp_path / "set")
    assert (instrument.sky_rms, instrument.exposure) == (0.004, np.inf)
    answer = run("simulate", "set", *options)
    assert answer.exit_code == 1
    assert "set: exists already; --overwrite replaces it" in answer.stderr


def test_simulate_refuses_what_makes_no_sense(run, tmp_path):
    refused(run("simulate", "set", "--resume"), "there is nothing to resume: set.partial does not exist")
    refused(run("simulate", "set", "--sky-rms", -1), "sky_rms must be positive, got -1")
    refused(run("simulate", "set", "--separation", "far"), "separation must be one of published, anywhere, close")
    assert run("simulate", "set", "--count", 0).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_fit_psf_writes_the_model(run, monkeypatch, tmp_path):
    from probdeblend.simulation import psf as optics

    model = optics.PsfModel()
    fit = optics.OpticsFit(model, 0.0, 0.0, 0.01, 0.001, (0.18, 0.181), {0.2: (0.5, 0.5)})
    monkeypatch.setattr(optics, "fit_psf", lambda image, pixel_scale: fit)
    fits.PrimaryHDU(model.draw(0.06, 31)).writeto(tmp_path / "psf.fits")
    result = run("fit-psf", "psf.fits", "--pixel-scale", 0.06, "--output", "out")
    assert result.exit_code == 0, result.output
    assert 'FWHM 0.181" (measured 0.180")' in result.output
    stored = json.loads((tmp_path / "out" / "psf_f160w.json").read_text(encoding="utf-8"))
    assert optics.PsfModel(**stored["fit"]["model"]) == model
    refused(run("fit-psf", "psf.fits", "--pixel-scale", 0.06, "--output", "out"), "out: exists already")
    refused(run("fit-psf", "missing.fits", "--pixel-scale", 0.06), "missing.fits: no such file")


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


def test_data_and_library_exclude_each_other(run):
    refused(
        run("train", "w", "--data", "set", "--library", "lone"), "data and library are mutually exclusive, got both"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blends", 500), "blends must not be given with --kind weights, got 500"),
        (("--weights", "w"), "weights must not be given with --kind weights, got w"),
        (("--kind", "guide", "--data", "set"), "data must not be given with --kind guide, got set"),
        (("--kind", "counts", "--batch-size", 8), "batch_size must not be given with --kind counts, got 8"),
        (("--kind", "readout", "--weights", "none"), "none: no such weights file"),
        (("--library", "none"), "none: not a library"),
        (("--resume",), "there is nothing to resume: weights.safetensors.partial does not exist"),
    ],
)
def test_train_refuses(run, tmp_path, options, message):
    refused(run("train", *options), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "readout", "guide", "counts"])
def test_train_writes_what_can_be_loaded(run, tmp_path, kind):
    """Each kind in a few steps; what it writes is taken by the command that uses it."""
    size = ("--batch-size", 2) if kind == "weights" else ("--blends", 600)
    text = succeeded(run("train", "new.safetensors", "--kind", kind, "--steps", 2, *size))
    assert "validation_loss" in text
    assert text.endswith("written to new.safetensors\n")
    assert [path.name for path in tmp_path.iterdir()] == ["new.safetensors"]
    refused(run("train", "new.safetensors", "--kind", kind), "new.safetensors: exists already; --overwrite replaces it")
    fast = ("--draws", 40, "--passes", 2, "--output", "out")
    if kind in ("weights", "readout"):
        succeeded(run("deblend", "--weights", "new.safetensors", *fast))
    elif kind == "counts":
        succeeded(run("deblend", "--count", "--counts", "new.safetensors", *fast))
    else:
        assert load_guide(tmp_path / "new.safetensors", probdeblend.load()).numbers is not None
