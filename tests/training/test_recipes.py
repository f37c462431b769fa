"""The recipe of the scene network: what it writes, resuming, and training further."""

from dataclasses import dataclass, field
from itertools import count

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from probdeblend.deblending import load
from probdeblend.simulation.bank import Templates
from probdeblend.simulation.stream import SceneBatch, SceneStream
from probdeblend.training import recipes, train

FEW = {"steps": 2, "batch_size": 2, "workers": 0}


@dataclass(eq=False)
class Bumps(IterableDataset):
    """A stream of two round sources and a place where there is none, instead of the bank's, which takes seconds."""

    templates: Templates = field(default_factory=Templates)
    batch_size: int = 2
    seed: int = 0
    first: int = 0

    def __iter__(self):
        yield from map(self.batch, count(self.first))

    def batch(self, number):
        generator = torch.Generator().manual_seed(1000 * self.seed % 10**9 + number)
        place = torch.arange(32.0)
        x, y = (4 + 24 * torch.rand(self.batch_size, 3, generator=generator) for _ in range(2))
        squared = (place - x[..., None]).square()[..., None, :] + (place - y[..., None]).square()[..., None]
        light = 10 * torch.exp(-squared / 8)[:, :2, None]
        psf = torch.exp(-((torch.arange(41.0) - 20).square() + (torch.arange(41.0)[:, None] - 20).square()) / 4)
        image = light.sum(1) + torch.randn(self.batch_size, 1, 32, 32, generator=generator)
        return SceneBatch(
            image=image,
            good=torch.ones_like(image),
            psf=(psf / psf.sum()).expand(self.batch_size, 1, 41, 41),
            noise=torch.zeros(self.batch_size, 1, 5),
            x=x,
            y=y,
            light=light,
            rest=torch.zeros_like(image),
            log_flux=torch.full((self.batch_size, 2, 1, 2), 5.5),
            shape=torch.full((self.batch_size, 2, 6), torch.nan),
            kind=torch.zeros(self.batch_size, 2, dtype=torch.long),
            heat=torch.zeros(self.batch_size, 3, 16, 16),
        )


@pytest.fixture(autouse=True, scope="module")
def _little():
    """A quick stream, and few scenes to look at besides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "SceneStream", Bumps)
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
    assert (made["steps_done"], made["steps"], made["batch_size"], made["seed"], made["start"]) == (2, 2, 2, 0, None)
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
    with pytest.raises(ValueError, match="must be resumed with the settings it was begun with"):
        train(tmp_path / "w", **FEW | {"steps": 3}, resume=True)
    train(tmp_path / "w", **FEW, resume=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert load(tmp_path / "w").digest == load(weights).digest


def test_weights_are_trained_further(weights, tmp_path):
    """A step of fine-tuning moves them, and by less than what a step from random weights would."""
    train(tmp_path / "further", **FEW, start=weights)
    one, other = load(weights), load(tmp_path / "further")
    assert other.description.training["start"] == one.digest
    moved = nn.utils.parameters_to_vector(other.network.parameters()) - nn.utils.parameters_to_vector(
        one.network.parameters()
    )
    assert 0 < moved.abs().max() <= 2.1 * recipes.FINE_TUNING


def test_refuses(weights, tmp_path):
    with pytest.raises(FileExistsError, match="w: exists already"):
        train(weights, **FEW)
    with pytest.raises(ValueError, match="there is nothing to resume"):
        train(tmp_path / "other", **FEW, resume=True)
    with pytest.raises(FileNotFoundError, match="none: no such weights file"):
        train(tmp_path / "other", **FEW, start=tmp_path / "none")


@pytest.mark.slow
def test_the_stream_of_scenes_is_what_it_trains_on(tmp_path, monkeypatch):
    """A worker process makes the scenes of the bank; one step of them."""
    monkeypatch.setattr(recipes, "SceneStream", SceneStream)
    monkeypatch.setattr("probdeblend.simulation.stream.BANK", 12)
    table = train(tmp_path / "w", steps=1, batch_size=2, workers=1)
    assert len(table) == 1
    assert load(tmp_path / "w").description.training["stream"]["pairs"] == 0.5


@pytest.mark.gpu
def test_trains_on_a_gpu(tmp_path):
    train(tmp_path / "w", **FEW)
    assert next(load(tmp_path / "w").network.parameters()).device.type == "cpu"
