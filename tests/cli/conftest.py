from importlib import import_module

import pytest
import torch
from click.testing import CliRunner
from commands import FakeDeblender

from probdeblend.cli import main
from probdeblend.deblending import Deblender, Description, save, weights
from probdeblend.networks import SceneNetwork
from probdeblend.networks.sources import TOKEN


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Invoke a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def drawing(monkeypatch):
    """Weights whose answer is known."""
    deblender = FakeDeblender()
    monkeypatch.setattr(weights, "load", lambda path=None, calibrator=None: deblender)
    return deblender


@pytest.fixture
def fake(drawing, monkeypatch):
    """Weights whose answer is known; and no figure is drawn."""
    monkeypatch.setattr(import_module("probdeblend.deblending.products"), "_draw", lambda *_: [])
    return drawing


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """A file of weights that have learned nothing, but find many sources."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SceneNetwork()
        tokens = torch.randn(500, TOKEN)
    torch.nn.init.constant_(network.trunk.heat[-1].bias, 1.0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save(Deblender(network, Description(), tokens=tokens), path)
    return path
