"""Simulate and train from the command line."""

from functools import partial

import numpy as np
import pytest
from astropy.table import Table
from commands import refused, succeeded

from probdeblend.simulation import Cameras, count_scenes, read_scenes, stream
from probdeblend.training import recipes


def test_simulate_writes_a_set(run, tmp_path):
    options = ("--count", 3, "--seed", 5, "--size", 96)
    assert "3 scenes written to set" in succeeded(run("simulate", "set", *options))
    assert count_scenes(tmp_path / "set") == 3
    scene = read_scenes(tmp_path / "set")
    assert scene.image.shape == (3, 1, 96, 96)
    assert scene.count.tolist() == [2, 2, 2]
    assert scene.sky_rms.flatten().tolist() == pytest.approx([0.003] * 3, rel=1e-3)
    refused(run("simulate", "set", *options), "set: exists already; --overwrite replaces it")


def test_any_number_of_sources_and_any_camera(run, tmp_path):
    crowded = ("--population", "default", "--camera", "random", "--count", 2, "--size", 64)
    succeeded(run("simulate", "five", *crowded, "--sources", 5))
    scene = read_scenes(tmp_path / "five")
    camera = Cameras(native_fraction=0.0).sample(np.random.default_rng(0))
    assert scene.image.shape == (2, len(camera), 64, 64)
    assert scene.pixel_scale == camera.pixel_scale
    assert scene.count.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "there is nothing to resume: set.partial does not exist"),
        (("--camera", "random"), "camera must have zero points for a population whose fluxes follow from magnitudes"),
    ],
)
def test_simulate_refuses_what_makes_no_sense(run, tmp_path, options, message):
    refused(run("simulate", "set", *options), message)
    assert not list(tmp_path.iterdir())


def test_train_hands_its_options_on(run, monkeypatch):
    calls = []

    def train(output, **options):
        calls.append({"output": str(output)} | options)
        return Table({"step": [7]}, meta={"steps": 7, "validation_loss": -1.25})

    monkeypatch.setattr(recipes, "train", train)
    text = succeeded(run("train", "new", "--steps", 7, "--batch-size", 4, "--workers", 2, "--start", "w", "--resume"))
    assert text == "steps 7, validation_loss -1.25\nwritten to new\n"
    stream = calls[0].pop("stream")
    assert (stream.batch_size, stream.seed, stream.templates.seed) == (4, 0, 0)
    assert {name: str(value) for name, value in calls[0].items()} == {
        "output": "new", "steps": "7", "workers": "2", "start": "w", "trunk": "True", "resume": "True",
        "overwrite": "False",
    }  # fmt: skip


def test_train_refuses(run, tmp_path):
    refused(run("train", "w", "--start", "none"), "none: no such weights file")
    refused(run("train", "w", "--resume"), "there is nothing to resume: w.partial does not exist")
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").touch()
    refused(run("train", "new"), "new: exists already; --overwrite replaces it")


@pytest.mark.slow
def test_train_writes_what_can_be_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SceneStream", partial(stream.SceneStream, bank=12))
    succeeded(run("train", "new", "--steps", 1, "--batch-size", 2))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    succeeded(run("deblend", "--weights", "new", "--draws", 40, "--passes", 2, "--output", "out"))
