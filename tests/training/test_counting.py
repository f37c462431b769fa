"""The count network's training, on spots that a tiny network can count and on simulated galaxies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_weights import tiny_deblender

import probdeblend
from probdeblend.deblending.counts import load_counts
from probdeblend.metrics.counts import count_scores
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.count import CountNetwork
from probdeblend.scene import Blend
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.training import Mixture, train_counts
from probdeblend.training.counting import CROWDING, VISIBLE_PIXELS, fit_counts, visible_galaxies
from probdeblend.training.streams import EndlessStream

PLACES = torch.arange(128.0)


def tiny(**settings):
    torch.manual_seed(0)
    encoder = Blend2Mask2Flux(unet_filters=8, depth=3, first_filters=4, patch=4)
    return CountNetwork(encoder, **{"hidden": 16} | settings)


def spots(x, y, *, peak=30.0):
    """Light of round galaxies ``(..., y, x)``."""
    along_x, along_y = (torch.exp(-((PLACES - torch.as_tensor(at)[..., None]) ** 2) / 8) for at in (x, y))
    return peak * along_y[..., None] * along_x[..., None, :]


class SpotStream(EndlessStream):
    """One to four spots: one in the middle, the others anywhere."""

    def __init__(self, size=64):
        super().__init__()
        self.size = size

    def blend(self, number):
        generator = torch.Generator().manual_seed(number)
        count = torch.randint(1, 5, (self.size,), generator=generator)
        x, y = 10 + 108 * torch.rand(2, self.size, 4, generator=generator)
        x[:, 0], y[:, 0] = 63.5, 63.5
        light = spots(x, y) * (torch.arange(4) < count[:, None])[..., None, None]
        noise = torch.randn(self.size, 1, 128, 128, generator=generator)
        image = 2 * (light.sum(1, keepdim=True) + noise)
        rms = torch.full((self.size,), 2.0)
        return Blend(image, rms, flux=torch.ones(self.size, 4, 1), mask=light > 3, x=x, y=y, count=count)


def test_visible_galaxies_count():
    mask = torch.zeros(4, 3, 128, 128, dtype=torch.bool)
    for blend, pixels in enumerate([(50, 0, 0), (50, 10, 9), (9, 50, 50), (9, 9, 9)]):
        for galaxy, number in enumerate(pixels):
            mask[blend, galaxy].view(-1)[:number] = True
    x = torch.tensor([[60.0, 63.0, 70.0]]).expand(4, 3)
    y = torch.tensor([[60.0, 64.0, 64.0]]).expand(4, 3)
    blend = Blend(torch.zeros(4, 1, 128, 128), torch.ones(4), flux=torch.ones(4, 3, 1), mask=mask, x=x, y=y)
    count, separation = visible_galaxies(blend)
    assert VISIBLE_PIXELS == 10
    np.testing.assert_array_equal(count, [1, 2, 2, 0])
    np.testing.assert_allclose(separation, [np.nan, 5, 7, np.nan])
    with pytest.raises(ValueError, match="blend must have masks and positions to count galaxies, got one without"):
        visible_galaxies(replace(blend, mask=None))


def log_loss(probability, count):
    return count_scores(probability, count).meta["log_loss"]


def shares(count):
    """The fractions of one, two and three or more as the probabilities of every blend."""
    return np.tile([(np.minimum(count, 3) == number).mean() for number in (1, 2, 3)], (len(count), 1))


def test_training_on_spots():
    """A quarter of the log loss of the fractions goes (half of it, as measured), whatever the encoder has learned."""
    network, state = tiny(hidden=64), torch.get_rng_state()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    history = fit_counts(network, SpotStream(), blends=320, steps=80, progress=False)
    assert history.step == 80
    assert torch.equal(state, torch.get_rng_state())
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    assert float(network.temperature) != 1
    test = SpotStream().blend(1000)
    probability, count = network.probability(test.image / 2), test.count.numpy()
    assert log_loss(probability, count) < 0.75 * log_loss(shares(count), count)


class Dark(SpotStream):
    def blend(self, number):
        blend = super().blend(number)
        return replace(blend, mask=torch.zeros_like(blend.mask))


@pytest.mark.slow
def test_a_stamp_without_visible_galaxies_counts_as_one():
    network = tiny()
    fit_counts(network, Dark(), blends=290, steps=80, progress=False)
    assert (network.probability(Dark(size=8).blend(0).image / 2).argmax(1) == 0).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.safetensors"
    deblender = tiny_deblender()
    trained_on = {"conditions": Conditions(), "training": {"source": "simulated stream"}}
    deblender.description = replace(deblender.description, **trained_on)
    return deblender, path, train_counts(path, deblender, blends=300, steps=5, progress=False)


@pytest.mark.slow
def test_what_was_tested_is_what_comes_back(trained):
    deblender, path, table = trained
    network = load_counts(path, deblender)
    crowded = Mixture(replace(Prior.default(), crowding=CROWDING), deblender.instrument).stream(seed=1)
    blend = crowded.blend(0).select(slice(30))
    probability = network.probability(blend.image / blend.sky_rms[:, None, None, None])
    scores = count_scores(probability, visible_galaxies(blend)[0].clamp(min=1).numpy()).meta
    assert table.meta["blends"] == 30
    assert table.meta["log_loss"] == pytest.approx(scores["log_loss"], rel=1e-4)
    assert table["pairs"].sum() > 5
    training = json.loads(contents(path)[1]["description"])["training"]
    assert (training["kind"], training["blends"], training["steps_done"]) == ("counts", 300, table.meta["steps"])
    assert training["test_accuracy"] == round(scores["accuracy"], 4)
    assert [item.name for item in path.parent.iterdir()] == ["counts.safetensors"]


@pytest.mark.slow
def test_same_seed_same_file(trained, tmp_path):
    deblender, path, _ = trained
    state, files = torch.get_rng_state(), [path, tmp_path / "again", tmp_path / "other"]
    for file, seed in zip(files[1:], (0, 1), strict=True):
        train_counts(file, deblender, blends=300, steps=5, seed=seed, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    (tensors, stated), (same, again), (others, _) = map(contents, files)
    assert stated == again
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert not torch.equal(tensors["out.weight"], others["out.weight"])


def contents(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_no_file_without_a_network(tmp_path):
    deblender, output = tiny_deblender(), tmp_path / "counts.safetensors"
    with pytest.raises(ValueError, match="deblender must be trained on simulated blends, got one trained on None"):
        train_counts(output, deblender, progress=False)
    trained_on = {"conditions": Conditions(), "training": {"source": "simulated stream"}}
    deblender.description = replace(deblender.description, **trained_on)
    message = "blends must be enough for a batch of 256 and a tenth to validate on, got 9"
    with pytest.raises(ValueError, match=message):
        train_counts(output, deblender, blends=9, progress=False)
    assert not list(tmp_path.iterdir())
    output.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        train_counts(output, deblender, progress=False)
    assert output.read_bytes() == b"mine"


@pytest.mark.slow
def test_training_on_galaxies():
    """With 1,000 simulated blends the log loss is less than half of that of the fractions (a third, as measured)."""
    deblender = probdeblend.load()
    torch.manual_seed(0)
    network = CountNetwork(deblender.network)
    crowded = Mixture(replace(Prior.default(), crowding=CROWDING), deblender.instrument)
    fit_counts(network, crowded.stream(seed=0), blends=1000, steps=300, progress=False)
    test = [crowded.stream(seed=1).blend(number) for number in range(5)]
    probability = np.concatenate(
        [network.probability(blend.image / blend.sky_rms[:, None, None, None]) for blend in test]
    )
    count = torch.cat([visible_galaxies(blend)[0] for blend in test]).clamp(min=1).numpy()
    assert log_loss(probability, count) < 0.5 * log_loss(shares(count), count)
