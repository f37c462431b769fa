"""The guide: moments of the light, answers, and files that stand on their weights."""

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from safetensors.torch import save_file

import probdeblend
from probdeblend.networks import Blend2Mask2Flux
from probdeblend.refinement import LATENTS, BlendModel, JointGuide, load_guide
from probdeblend.refinement.guide import light_moments, save_guide
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior


def test_moments_of_round_galaxies():
    places = torch.arange(64.0) - 31.5
    y, x = torch.meshgrid(places, places, indexing="ij")
    light = 100 * torch.exp(-((x - 4) ** 2 / 25 + (y + 6) ** 2 / 9) / 2)[None, None]
    found = dict(zip(LATENTS, light_moments(light, pixel_scale=0.06)[0, 0].tolist(), strict=True))
    assert found["x"] == pytest.approx(4, abs=0.01)
    assert found["y"] == pytest.approx(-6, abs=0.01)
    assert found["log_flux"] == pytest.approx(math.log(100 * 2 * math.pi * 15), abs=1e-3)
    assert found["stretch_plus"] == pytest.approx(16 / (34 - 2 * 1.7), abs=0.01)
    assert found["stretch_cross"] == pytest.approx(0, abs=1e-3)
    assert found["log_radius"] == pytest.approx(math.log(1.18 * 0.06 * math.sqrt(17 - 1.7)), abs=1e-3)


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(0)
    encoder = Blend2Mask2Flux(unet_filters=4, depth=2, first_filters=4, patch=4)
    return JointGuide(encoder, pixel_scale=0.06, hidden=16)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_guide_answers(guide, count):
    distribution = guide.eval()(torch.rand(count, 1, 128, 128))
    assert distribution.batch_shape == (count,)
    assert distribution.event_shape == (16,)
    assert distribution.sample().shape == (count, 16)


def test_a_gradient_reaches_the_guide_but_not_the_encoder(guide):
    guide.train()
    assert not guide.encoder.training
    loss = -guide(torch.rand(3, 1, 128, 128)).log_prob(torch.zeros(3, 16)).mean()
    guide.zero_grad()
    loss.backward()
    for name, parameter in guide.named_parameters():
        assert parameter.requires_grad != name.startswith("encoder"), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_the_program_has_the_sites_and_densities_of_guide_and_model(guide):
    """At the truth, where both are finite: what an ELBO is the mean of."""
    model = BlendModel(Prior.default(), Instrument.candels_f160w())
    observed, unknown = model.simulate(2, seed=1)
    given = {"sky_rms": observed.sky_rms, "exposure": observed.exposure}
    program = pyro.poutine.condition(guide.eval().program(model), data={"unknown": unknown[:, None]})
    found = pyro.poutine.trace(program).get_trace(observed.image, **given)
    density = guide(observed.image[:, None]).log_prob(unknown)
    torch.testing.assert_close(found.nodes["unknown"]["fn"].log_prob(unknown[:, None])[:, 0], density)
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, found)).get_trace(observed.image, **given)
    replayed.compute_log_prob()
    total = sum(node["log_prob"].sum() for node in replayed.nodes.values() if "log_prob" in node)
    wanted = (model.log_prior(unknown, observed) + model.log_likelihood(unknown, observed)).sum()
    assert bool(wanted.isfinite())
    torch.testing.assert_close(total, wanted)


@pytest.mark.slow
def test_the_encoder_that_ships_guesses_well():
    deblender = probdeblend.load()
    model = BlendModel(Prior.default(), deblender.instrument)
    observed, unknown = model.simulate(48, seed=3)
    guide = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale)
    _, start = guide.encode(observed.image[:, None])
    error = (start - unknown).abs().median(0).values
    assert float(error[[1, 2, 8, 9]].max()) < 0.8
    assert float(error[[0, 7]].max()) < 0.4


@pytest.fixture(scope="module")
def deblender(guide):
    return SimpleNamespace(network=guide.encoder, instrument=Instrument.candels_f160w(), encoder_digest="abc")


def test_a_guide_comes_back(guide, deblender, tmp_path):
    save_guide(guide, deblender, tmp_path / "guide", training={})
    again, image = load_guide(tmp_path / "guide", deblender), torch.rand(3, 1, 128, 128)
    assert again.settings == guide.settings == {"hidden": 16, "dropout": 0.1}
    assert not again.training
    answers = []
    for each in (guide.eval(), again):
        torch.manual_seed(0)
        answers.append(each(image).sample((4,)))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def test_guides_that_do_not_fit(guide, deblender, tmp_path):
    path = tmp_path / "guide"
    save_guide(guide, deblender, path, training={})
    other = SimpleNamespace(**vars(deblender) | {"encoder_digest": "xyz"})
    with pytest.raises(ValueError, match="the guide must be trained on encoder xyz, that of the weights, got abc"):
        load_guide(path, other)
    with pytest.raises(FileNotFoundError, match="no such guide"):
        load_guide(tmp_path / "none", deblender)
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load_guide(tmp_path / "bad", deblender)
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="guide"):
        load_guide(tmp_path / "other", deblender)
    fewer = JointGuide(deblender.network, pixel_scale=0.06)
    del fewer.readout
    save_guide(fewer, deblender, tmp_path / "fewer", training={})
    with pytest.raises(ValueError, match="tensors must match the stored description of the guide"):
        load_guide(tmp_path / "fewer", deblender)
