"""Guides are trained, stored and loaded, on the weights that they stand on."""

from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from probdeblend.cli.counting import train_guide as command
from probdeblend.deblending import weights
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.heads import NormalHead
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.guides import load_guide, save_guide
from probdeblend.refinement.model import BlendModel
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior
from probdeblend.training.amortize import GuideLikelihood, encoded_blends, train_default_guide, train_guide


@pytest.fixture(scope="module")
def deblender():
    torch.manual_seed(1)
    network = Blend2Mask2Flux(unet_filters=4, depth=2, first_filters=4, patch=4).eval()
    return SimpleNamespace(network=network, instrument=Instrument.candels_f160w(), encoder_digest="abc")


@pytest.fixture(scope="module")
def trained(deblender, tmp_path_factory):
    path = tmp_path_factory.mktemp("guide") / "guide.safetensors"
    history = train_default_guide(deblender, path, blends=320, steps=40, progress=False)
    return path, history


@pytest.mark.slow
def test_training_learns_and_comes_back(deblender, trained):
    path, history = trained
    assert history.step == 40
    assert history.validation[-1][1] < history.validation[0][1] - 1
    guide = load_guide(path, deblender)
    model = BlendModel(Prior.default(), deblender.instrument)
    observed, _ = model.simulate(3, seed=9)
    answers = []
    for each in (guide, load_guide(path, deblender)):
        torch.manual_seed(0)
        answers.append(each(observed.image[:, None]).sample((4,)))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)
    assert not guide.training


def test_same_seed_same_features(deblender):
    guide = JointGuide(deblender.network, pixel_scale=0.06)
    model = BlendModel(Prior.default(), deblender.instrument)
    first, again = (encoded_blends(guide, model, 5, seed=2, progress=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].dtype == torch.float16
    loss = GuideLikelihood(guide)(*first)
    assert loss.ndim == 0
    with pytest.raises(ValueError, match="blends must be enough for a batch of 256 and a tenth to validate on, got 9"):
        train_guide(guide, model, blends=9)


def test_guides_that_do_not_fit(deblender, trained, tmp_path):
    path, _ = trained
    other = SimpleNamespace(**vars(deblender) | {"encoder_digest": "xyz"})
    with pytest.raises(ValueError, match="a guide on the encoder abc, got weights with the encoder xyz: train one"):
        load_guide(path, other)
    with pytest.raises(FileNotFoundError, match="no such guide"):
        load_guide(tmp_path / "none", deblender)
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load_guide(tmp_path / "bad", deblender)
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not a guide of probdeblend, or one of another version than 1"):
        load_guide(tmp_path / "other", deblender)
    fewer = JointGuide(deblender.network, pixel_scale=0.06)
    del fewer.readout
    save_guide(fewer, deblender, tmp_path / "fewer", training={})
    with pytest.raises(ValueError, match="tensors do not fit what the file says of them"):
        load_guide(tmp_path / "fewer", deblender)


def test_the_command(deblender, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "load", lambda path=None: deblender)
    options = ["--blends", "300", "--steps", "4", "--output", str(tmp_path / "guide.safetensors")]
    answer = CliRunner().invoke(command, options, catch_exceptions=False)
    assert "validation loss" in answer.output
    assert (tmp_path / "guide.safetensors").is_file()
    assert isinstance(CliRunner().invoke(command, options).exception, FileExistsError)


def test_a_guide_keeps_its_settings(deblender, tmp_path):
    """Learned dropout and width come back; a head that the file cannot name is refused."""
    guide = JointGuide(deblender.network, pixel_scale=0.06, hidden=16, concrete=True)
    save_guide(guide, deblender, tmp_path / "guide", training={})
    assert load_guide(tmp_path / "guide", deblender).settings == guide.settings
    with pytest.raises(ValueError, match="guide must have a StudentTHead to be stored, got a NormalHead"):
        save_guide(
            JointGuide(deblender.network, pixel_scale=0.06, head=NormalHead), deblender, tmp_path / "x", training={}
        )
