"""The recipe of the scene network: what it writes, resuming, and training further."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from bumps import Bumps
from torch import nn

from probdeblend.deblending import load
from probdeblend.simulation.bank import Templates
from probdeblend.simulation.stream import SceneStream
from probdeblend.surveys.library import Galaxy
from probdeblend.surveys.templates import RealGalaxies
from probdeblend.training import recipes, train

FEW = {"stream": Bumps(), "steps": 2, "workers": 0}


@pytest.fixture(autouse=True, scope="module")
def _little():
    """A quick stream, and few scenes to look at besides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "VALIDATION_SCENES", 4)
        patch.setattr(recipes, "FAMILIAR_SCENES", 4)
        patch.setattr(recipes, "VALIDATE_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def run(_little, tmp_path_factory):
    """A folder, and the table of the run that wrote weights ``w`` to it."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder / "w", **FEW)


@pytest.fixture
def weights(run):
    return run[0] / "w"


def test_weights_state_how_they_were_made(weights):
    deblender = load(weights)
    made = deblender.description.training
    assert made["command"] == "probdeblend train"
    assert (made["steps_done"], made["steps"], made["start"], made["trunk"]) == (2, 2, None, True)
    assert (made["stream"]["batch_size"], made["stream"]["seed"], made["stream"]["galaxies"]) == (2, 0, [])
    assert made["stream"]["templates"]["cameras"]["fwhm"] == [1.8, 5.0]
    low, high = deblender.description.fwhm
    assert low < 2.3548 * 2**0.5 < high
    assert deblender.description.brightest == 5.5
    assert [path.name for path in weights.parent.iterdir()] == ["w"]


def test_the_table_tells_the_parts_of_the_loss(run):
    table = run[1]
    assert table["step"].tolist() == [1, 2]
    assert {"flux", "share", "mask", "heat", "shape", "kind", "existence"} <= set(table.colnames)


def test_training_goes_on_where_it_was_killed(weights, tmp_path, monkeypatch):
    """A run that dies after its first step is resumed, and ends as the one that did not die; nothing global changes."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    steps, forward = [], recipes.SceneLoss.forward

    def dies(loss, *batch):
        steps.append(loss.training)
        if sum(steps) == 2:
            raise KeyboardInterrupt
        return forward(loss, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(recipes.SceneLoss, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "w", **FEW)
    assert not (tmp_path / "w").exists()
    with pytest.raises(FileExistsError, match="an interrupted run exists: resume continues it"):
        train(tmp_path / "w", **FEW)
    for other in ({"steps": 3}, {"stream": Bumps(seed=1)}, {"stream": Bumps(batch_size=3)}, {"start": weights}):
        with pytest.raises(ValueError, match="must be resumed with the settings it was begun with"):
            train(tmp_path / "w", **FEW | other, resume=True)
    train(tmp_path / "w", **FEW, resume=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert load(tmp_path / "w").digest == load(weights).digest


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_the_same_wherever_it_was_interrupted(tmp_path, monkeypatch, workers):
    """In the middle of writing each checkpoint and the weights, with dropout, and with the processes of a loader."""
    options, write = {"stream": Bumps(), "steps": 3, "workers": workers}, Path.write_bytes
    train(tmp_path / "whole", **options)
    for at in range(1, 5):
        numbers, output = count(1), tmp_path / f"again{at}"

        def dies(path, data, numbers=numbers, at=at):
            if next(numbers) == at:
                write(path, bytes(data)[: len(data) // 3])
                raise KeyboardInterrupt
            return write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", dies)
            with pytest.raises(KeyboardInterrupt):
                train(output, **options)
        assert not output.exists()
        assert [path.name for path in tmp_path.glob("*.partial")] == ([f"again{at}.partial"] if at > 1 else [])
        train(output, **options, resume=at > 1)
        assert load(output).digest == load(tmp_path / "whole").digest
        assert load(output).description == load(tmp_path / "whole").description
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again1", "again2", "again3", "again4", "whole"]


def test_weights_are_trained_further(weights, tmp_path):
    """A step of fine-tuning moves them, and by less than what a step from random weights would."""
    train(tmp_path / "further", **FEW, start=weights)
    one, other = load(weights), load(tmp_path / "further")
    assert other.description.training["start"] == one.digest
    moved = nn.utils.parameters_to_vector(other.network.parameters()) - nn.utils.parameters_to_vector(
        one.network.parameters()
    )
    assert 0 < moved.abs().max() <= 2.1 * recipes.FINE_TUNING


@pytest.fixture
def galaxy():
    """Of one pixel: the stream of these tests does not look at it."""
    pixel, one = np.ones((1, 1, 1), dtype=np.float32), np.ones(1)
    return Galaxy("one", "made", pixel, pixel[0] > 0, pixel, one, one, one, pixel_scale=0.06)


def test_only_what_follows_the_trunk_is_trained_on_real_galaxies(weights, galaxy, tmp_path):
    """So that its features have never seen them, and a few hundred of them are enough."""
    real = Bumps(Templates(sources=RealGalaxies([galaxy])))
    with pytest.raises(ValueError, match="start must be weights whose trunk is not to be trained, got None"):
        train(tmp_path / "further", **FEW, trunk=False)
    train(tmp_path / "further", **FEW | {"stream": real}, start=weights, trunk=False)
    one, other = load(weights), load(tmp_path / "further")
    moved = {
        name.split(".")[0]
        for name, value in other.network.state_dict().items()
        if not torch.equal(value, one.network.state_dict()[name])
    }
    assert moved
    assert "trunk" not in moved
    assert other.description.training["stream"]["galaxies"] == ["one"]


def test_refuses(weights, tmp_path):
    with pytest.raises(FileExistsError, match="w: exists already"):
        train(weights, **FEW)
    with pytest.raises(ValueError, match="there is nothing to resume"):
        train(tmp_path / "other", **FEW, resume=True)
    with pytest.raises(FileNotFoundError, match="none: no such weights file"):
        train(tmp_path / "other", **FEW, start=tmp_path / "none")


@pytest.mark.slow
def test_the_stream_of_scenes_is_what_it_trains_on(tmp_path):
    """A worker process makes the scenes of the bank; one step of them."""
    table = train(tmp_path / "w", stream=SceneStream(batch_size=2, bank=12), steps=1)
    assert len(table) == 1
    assert load(tmp_path / "w").description.training["stream"]["pairs"] == 0.5


@pytest.mark.gpu
def test_trains_on_a_gpu(tmp_path):
    train(tmp_path / "w", **FEW)
    assert next(load(tmp_path / "w").network.parameters()).device.type == "cpu"
