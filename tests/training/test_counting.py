"""How many galaxies: the network, its training, and the flux whatever the number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import probdeblend
from probdeblend.deblending.counts import marginal_central_flux
from probdeblend.metrics.counts import count_scores
from probdeblend.networks.composite import Blend2Flux, Blend2Mask2Flux
from probdeblend.networks.count import CountNetwork, recenter
from probdeblend.scene import Blend
from probdeblend.simulation.prior import Prior
from probdeblend.training.counting import (
    CROWDING,
    VISIBLE_PIXELS,
    CountLikelihood,
    counted_blends,
    train_counts,
    visible_galaxies,
)
from probdeblend.training.streams import EndlessStream, SimulatedStream

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


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_network_answers(count):
    network = tiny(classes=4).eval()
    image = torch.rand(count, 1, 128, 128)
    logits = network(image)
    assert logits.shape == (count, 4)
    assert torch.equal(logits, network(image))
    probability = network.probability(image)
    assert probability.shape == (count, 4)
    assert probability.dtype == np.float64
    np.testing.assert_allclose(probability.sum(1), 1)


def test_a_gradient_reaches_the_hidden_layers_but_not_the_encoder():
    network = tiny().train()
    assert not network.encoder.training
    assert network.readout.training
    CountLikelihood(network)(network.encode(torch.rand(5, 1, 128, 128)), torch.tensor([1, 2, 3, 4, 1])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith("encoder"), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_a_saved_network_gives_the_same_probabilities():
    first, second = tiny(), tiny()
    first.readout.normalize(first.encode(torch.randn(20, 1, 128, 128)))
    first.fit_temperature(torch.randn(20, len(first.readout.mean)), torch.randint(1, 4, (20,)))
    for parameter in first.readout.parameters():
        nn.init.normal_(parameter)
    image = torch.rand(70, 1, 128, 128)  # more than a chunk
    assert not np.allclose(first.probability(image[:3]), second.probability(image[:3]))
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(first.probability(image), second.probability(image))
    np.testing.assert_allclose(first.probability(image)[65:], first.probability(image[65:]), rtol=1e-4)


def test_classes_of_numbers():
    np.testing.assert_array_equal(tiny().label(torch.tensor([1, 2, 3, 4, 9])), [0, 1, 2, 2, 2])


def test_light_is_moved_to_the_middle():
    x, y = torch.tensor([63.5, 66.5, 60.5, 63.5]), torch.tensor([63.5, 61.5, 57.5, 63.5])
    image = spots(x, y)[:, None]
    image[3] += spots(69.5, 63.5)  # a companion six pixels away: the light of both is the light of a blend
    moved = recenter(image)
    for one in moved[:3, 0]:
        torch.testing.assert_close(one, image[0, 0], atol=0.01, rtol=0)
    torch.testing.assert_close(moved[3], moved[3].flip(-1), atol=0.01, rtol=0)
    torch.testing.assert_close(moved.flatten(1).sort(-1).values, image.flatten(1).sort(-1).values)


def test_the_place_of_the_stamp_does_not_matter():
    network = tiny().eval()
    image = SpotStream().blend(0).image / 2
    torch.testing.assert_close(network(image.roll((2, -3), (-2, -1))), network(image))


def test_light_far_away_is_left_there():
    image = spots(torch.tensor([80.5]), torch.tensor([63.5]))[:, None]
    column = int(recenter(image)[0, 0].sum(0).argmax())
    assert 80 - 8 <= column <= 81


def test_the_temperature_is_found(false_alarm):
    generator = torch.Generator().manual_seed(1)
    logits = 1.2 * torch.randn(20_000, 3, generator=generator)
    probability = logits.softmax(1)
    count = 1 + torch.multinomial(probability, 1, generator=generator)[:, 0]
    network = tiny()
    network.readout, network.out = nn.Identity(), nn.Identity()
    found = network.fit_temperature(2 * logits, count)
    mean = (probability * logits).sum(1)
    information = float(((probability * logits.square()).sum(1) - mean.square()).sum())
    assert found == float(network.temperature)
    assert abs(np.log(found / 2)) < stats.norm.isf(false_alarm / 2) / np.sqrt(information)
    # Fitted again, it does not depend on the one before.
    assert network.fit_temperature(2 * logits, count) == pytest.approx(found, rel=1e-6)


def test_mistakes_of_the_network():
    with pytest.raises(TypeError, match="encoder must be a Blend2Mask2Flux, which has a U-Net, got Blend2Flux"):
        CountNetwork(Blend2Flux(first_filters=2))
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        tiny(classes=1)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        tiny(hidden=0)


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


def test_blends_are_counted():
    network, stream = tiny(), SpotStream()
    counted = counted_blends(network, stream, 70, progress=False)
    assert counted.features.shape == (70, len(network.readout.mean))
    second = stream.blend(1)
    np.testing.assert_array_equal(counted.count[64:], second.count[:6])
    torch.testing.assert_close(counted.features[64:], network.encode(second.image / 2)[:6])
    assert torch.equal(counted.separation.isnan(), counted.count == 1)
    with pytest.raises(ValueError, match="blends must be at least 1, got 0"):
        counted_blends(network, stream, 0)


class Dark(SpotStream):
    def blend(self, number):
        blend = super().blend(number)
        return replace(blend, mask=torch.zeros_like(blend.mask))


def test_a_stamp_without_visible_galaxies_counts_as_one():
    np.testing.assert_array_equal(counted_blends(tiny(), Dark(), 5, progress=False).count, 1)


def log_loss(probability, count):
    return count_scores(probability, count).meta["log_loss"]


def shares(count):
    """The shares of one, two and three or more as the probabilities of every blend."""
    return np.tile([(np.minimum(count, 3) == number).mean() for number in (1, 2, 3)], (len(count), 1))


def test_training_on_spots():
    """A quarter of the log loss of the shares goes (half of it, as measured), whatever the encoder has learned."""
    network, state = tiny(hidden=64), torch.get_rng_state()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    history = train_counts(network, SpotStream(), blends=320, steps=80, batch_size=64, progress=False)
    assert history.step == 80
    assert torch.equal(state, torch.get_rng_state())
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    assert float(network.temperature) != 1
    test = SpotStream(size=128).blend(1000)
    probability, count = network.probability(test.image / 2), test.count.numpy()
    assert log_loss(probability, count) < 0.75 * log_loss(shares(count), count)


def test_same_seed_same_network():
    image, networks = torch.rand(3, 1, 128, 128), [tiny(), tiny(), tiny()]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        train_counts(network, SpotStream(), blends=64, steps=3, batch_size=16, seed=seed, progress=False)
    first, second, other = (network.probability(image) for network in networks)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("blends", [9, 70])
def test_too_few_blends(blends):
    message = f"blends must be enough for a batch of 64 and a tenth to validate on, got {blends}"
    with pytest.raises(ValueError, match=message):
        train_counts(tiny(), SpotStream(), blends=blends, batch_size=64)


@pytest.mark.slow
def test_training_on_galaxies():
    """With 1,000 simulated blends the log loss is less than half of that of the shares (a third, as measured)."""
    deblender = probdeblend.load()
    torch.manual_seed(0)
    network = CountNetwork(deblender.network)
    prior = replace(Prior.default(), crowding=CROWDING)
    stream, unseen = (SimulatedStream(prior, deblender.instrument, batch_size=50, seed=seed) for seed in (0, 1))
    train_counts(network, stream, blends=1000, steps=300, batch_size=128, progress=False)
    counted = counted_blends(network, unseen, 300, progress=False)
    with torch.no_grad():
        probability = network.logits(counted.features).softmax(1).numpy()
    count = counted.count.numpy()
    assert log_loss(probability, count) < 0.5 * log_loss(shares(count), count)


@pytest.mark.parametrize("single", [0.0, 0.3, 0.8, 1.0])
def test_marginal_flux_is_the_mixture(single, false_alarm):
    rng = np.random.default_rng(3)
    mean, covariance = [50.0, 20.0], [[16.0, -6.0], [-6.0, 9.0]]
    draws = rng.multivariate_normal(mean, covariance, (40_000, 1))
    flux = marginal_central_flux(draws, [[single, 0.7 * (1 - single), 0.3 * (1 - single)]], seed=5)
    assert flux.shape == (40_000, 1)
    means, variances = np.array([70.0, 50.0]), np.array([16 + 9 - 12, 16.0])
    share = np.array([single, 1 - single])
    center = share @ means
    variance = share @ (variances + (means - center) ** 2)
    fourth = share @ (3 * variances**2 + 6 * variances * (means - center) ** 2 + (means - center) ** 4)
    sigmas = stats.norm.isf(false_alarm / 2)
    assert abs(flux.mean() - center) < sigmas * np.sqrt(variance / 40_000)
    assert abs(flux.var() - variance) < sigmas * np.sqrt((fourth - variance**2) / 40_000)


def test_marginal_flux_of_certain_numbers_and_of_parts():
    draws = np.random.default_rng(0).lognormal(size=(50, 4, 2))
    probability = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.3, 0.2]])
    flux = marginal_central_flux(draws, probability)
    np.testing.assert_array_equal(flux[:, 0], draws[:, 0].sum(1))
    np.testing.assert_array_equal(flux[:, 1:3], draws[:, 1:3, 0])
    np.testing.assert_array_equal(marginal_central_flux(draws[:, :3], probability[:3]), flux[:, :3])
    assert not np.array_equal(marginal_central_flux(draws, probability, seed=1), flux)
    assert marginal_central_flux(draws[:, :0], probability[:0]).shape == (50, 0)


def test_mistakes():
    good = [[0.5, 0.5], [0.2, 0.8]]
    with pytest.raises(ValueError, match=r"draws must have the shape \(draw, blend, 2\), got \(5, 2, 3\)"):
        marginal_central_flux(np.ones((5, 2, 3)), good)
    with pytest.raises(ValueError, match=r"probability must have the shape \(3, class >= 2\), got \(2, 2\)"):
        marginal_central_flux(np.ones((5, 3, 2)), good)
