"""Weights, readouts and guides are trained, resumed, and written with what they were trained on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from probdeblend.deblending.deblender import Deblender, Description
from probdeblend.deblending.weights import load
from probdeblend.refinement.guide import load_guide
from probdeblend.refinement.model import BlendModel
from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends
from probdeblend.training import Mixture, train_guide, train_readout, train_weights
from probdeblend.training.features import FeatureLikelihood
from probdeblend.training.fit import Schedule
from probdeblend.training.recipes import fit_flux_readout
from probdeblend.training.streams import SimulatedStream

SHORT = {"steps": 2, "batch_size": 2, "progress": False}
MIXTURE = Mixture(
    replace(Prior.published(), magnitude_range=(19.0, 22.0), max_difference=1.0),
    Instrument.candels_f160w().replace(zero_point=24.0),
    Conditions(sky_rms=(1e-4, 4e-4), exposure=(100.0, 200.0), psf_growth=(1.0, 1.2), psf_shear=0.05),
)
"""Not the default: deeper images, other magnitudes, another zero point."""


class StoppedError(Exception):
    pass


def failing(patch, *, seed, number):
    """Let the stream of simulated blends fail once, at a batch of a seed."""
    make, failed = SimulatedStream.blend, []

    def blend(stream, which):
        if (stream.seed, which) == (seed, number) and not failed:
            failed.append(which)
            raise StoppedError
        return make(stream, which)

    patch.setattr(SimulatedStream, "blend", blend)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    return path, train_weights(path, source=(MIXTURE, MIXTURE), **SHORT)


def test_weights_state_what_they_were_trained_on(weights):
    path, table = weights
    deblender = load(path)
    described = deblender.description
    assert table.meta["steps"] == described.training["steps_done"] == 2
    assert described.training["validation_loss"] == round(table.meta["validation_loss"], 4)
    assert described.training["source"] == "simulated stream"
    assert described.conditions == MIXTURE.conditions
    assert Prior.parse(described.prior) == MIXTURE.prior
    assert described.max_difference == 1.0
    assert deblender.instrument.zero_point == 24.0
    brightest, faintest = (10 ** (0.4 * (24.0 - magnitude)) for magnitude in (19.0, 22.0))
    np.testing.assert_allclose(described.flux_range, (faintest / 4e-4, brightest / 1e-4))
    assert deblender.flux_prior == MIXTURE.prior.flux_prior((1e-4, 4e-4), 24.0)
    assert [item.name for item in path.parent.iterdir()] == ["w.safetensors"]
    with pytest.raises(FileExistsError, match="exists already"):
        train_weights(path, **SHORT)


def test_interrupted_training_of_weights(weights, tmp_path, monkeypatch):
    """The network that was trained is not trained again; its usual features were missing."""
    state = torch.get_rng_state()
    failing(monkeypatch, seed=2, number=0)
    path = tmp_path / "again.safetensors"
    with pytest.raises(StoppedError):
        train_weights(path, source=(MIXTURE, MIXTURE), **SHORT)
    assert not path.exists()
    with pytest.raises(FileExistsError, match="resume continues it, overwrite starts over"):
        train_weights(path, source=(MIXTURE, MIXTURE), **SHORT)
    with pytest.raises(ValueError, match="must be resumed with the settings it was begun with"):
        train_weights(path, source=(MIXTURE, MIXTURE), resume=True, **SHORT | {"steps": 3})
    train_weights(path, source=(MIXTURE, MIXTURE), resume=True, **SHORT)
    assert torch.equal(state, torch.get_rng_state())
    assert load(path).digest == load(weights[0]).digest
    assert [item.name for item in tmp_path.iterdir()] == ["again.safetensors"]
    with pytest.raises(ValueError, match="there is nothing to resume"):
        train_weights(tmp_path / "other", resume=True, **SHORT)


def test_training_on_a_stored_set(tmp_path):
    blend = Mixture().stream(batch_size=40, seed=2).blend(0)
    write_blends(tmp_path / "set", [blend], instrument=Instrument.candels_f160w())
    train_weights(tmp_path / "w.safetensors", source=tmp_path / "set", **SHORT)
    trained = load(tmp_path / "w.safetensors")
    assert trained.description.training["source"] == "set"
    ratio = blend.flux[..., 0] / blend.sky_rms[:, None]
    np.testing.assert_allclose(trained.description.flux_range, (float(ratio.min()), float(ratio.max())), rtol=1e-6)
    assert trained.description.conditions is trained.description.prior is trained.flux_prior is None
    for train in (train_readout, train_guide):
        with pytest.raises(ValueError, match="deblender must be trained on simulated blends, got one trained on set"):
            train(tmp_path / "new", trained)


def tiny_deblender(prior=MIXTURE.prior, **training):
    settings = {"unet_filters": 4, "depth": 2, "first_filters": 4, "patch": 4, "hidden": 8}
    training = {"source": "simulated stream"} | training
    family = {"prior": prior.describe(), "conditions": MIXTURE.conditions, "training": training}
    description = Description("Blend2Mask2Flux", "StudentTHead", settings, (100.0, 1e6), 2.0, **family)
    torch.manual_seed(3)
    return Deblender(description.build(), MIXTURE.instrument, description, features=torch.randn(500, 8))


OPTIONS = {"blends": 290, "steps": 3, "progress": False}


@pytest.fixture(scope="module")
def readout(tmp_path_factory):
    """A readout whose training was interrupted and resumed."""
    path, deblender = tmp_path_factory.mktemp("readout") / "new.safetensors", tiny_deblender(note="kept")
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, seed=0, number=3)
        with pytest.raises(StoppedError):
            train_readout(path, deblender, **OPTIONS)
        with pytest.raises(ValueError, match="must be resumed with the settings it was begun with"):
            train_readout(path, deblender, seed=1, resume=True, **OPTIONS)
        return path, train_readout(path, deblender, resume=True, **OPTIONS)


@pytest.mark.slow
def test_a_readout_keeps_the_encoder_alone(readout):
    path, table = readout
    old, new = tiny_deblender(note="kept"), load(path)
    before, after = old.network.state_dict(), new.network.state_dict()
    same = {name for name in before if name in after and torch.equal(before[name], after[name])}
    assert same == {name for name in after if name.startswith(("unet.", "cnn.convolutions."))}
    assert new.encoder_digest == old.encoder_digest
    made = new.description.training
    assert made["encoder"] == old.description.training
    assert (made["close_fraction"], made["steps_done"]) == (0.1, table.meta["steps"]) == (0.1, 3)
    assert new.description.close_fraction == 0.1
    assert new.description.encoder_close_fraction == 0
    assert new.description.conditions == MIXTURE.conditions
    assert new.flux_prior == old.flux_prior
    assert [item.name for item in path.parent.iterdir()] == ["new.safetensors"]


@pytest.mark.slow
def test_same_seed_same_readout_interrupted_or_not(readout, tmp_path):
    for seed in (0, 1):
        train_readout(tmp_path / f"{seed}", tiny_deblender(note="kept"), seed=seed, **OPTIONS)
    digests = [load(path).digest for path in (tmp_path / "0", readout[0], tmp_path / "1")]
    assert digests[0] == digests[1] != digests[2]


def test_too_few_blends(tmp_path):
    for train in (train_readout, train_guide):
        with pytest.raises(
            ValueError, match="blends must be enough for a batch of 256 and a tenth to validate on, got 9"
        ):
            train(tmp_path / "new", tiny_deblender(), blends=9)
    assert not list(tmp_path.iterdir())


def test_a_readout_finds_what_features_say():
    """Of blends whose log-fluxes are their features, the loss goes from that of a guess to that of knowing."""
    torch.manual_seed(0)
    network = replace(tiny_deblender().description, head="TotalRatioHead", settings={"hidden": 4}).build()
    network.cnn.dense = torch.nn.Identity()
    known = torch.randn(400, 4)
    data = known, torch.zeros(400, 2), network.head.division(known[:, :2]).detach()
    loss = FeatureLikelihood(network.head, network.head)
    before = float(loss(*data).detach())
    fit_flux_readout(network, data, schedule=Schedule(200, learning_rate=0.05), progress=False)
    assert float(loss(*data).detach()) < before - 5


@pytest.mark.slow
def test_a_guide_learns_and_comes_back(tmp_path):
    deblender, paths = tiny_deblender(Prior.default()), [tmp_path / name for name in ("guide", "again", "other")]
    work = {"blends": 320, "steps": 40, "progress": False}
    tables = [train_guide(path, deblender, seed=seed, **work) for path, seed in zip(paths, (0, 0, 1), strict=True)]
    assert tables[0].meta["steps"] == 40
    assert tables[0]["validation"][-1] < tables[0]["validation"][0] - 1
    observed, _ = BlendModel(MIXTURE.prior, deblender.instrument).simulate(3, seed=9)
    answers = []
    for path in paths:
        torch.manual_seed(0)
        answers.append(load_guide(path, deblender)(observed.image[:, None]).sample((4,)))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    with safe_open(paths[0], framework="pt") as file:
        training = json.loads(file.metadata()["description"])["training"]
    assert (training["kind"], training["blends"], training["steps_done"]) == ("guide", 320, 40)
