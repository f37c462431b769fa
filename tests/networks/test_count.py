"""The network that counts galaxies: shapes, gradients, recentering, temperature."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from probdeblend.networks import Blend2Flux, Blend2Mask2Flux, CountNetwork
from probdeblend.networks.count import recenter

PLACES = torch.arange(128.0)


def tiny(**settings):
    torch.manual_seed(0)
    encoder = Blend2Mask2Flux(unet_filters=8, depth=3, first_filters=4, patch=4)
    return CountNetwork(encoder, **{"hidden": 16} | settings)


def spots(x, y, *, peak=30.0):
    """Light of round galaxies ``(..., y, x)``."""
    along_x, along_y = (torch.exp(-((PLACES - torch.as_tensor(at)[..., None]) ** 2) / 8) for at in (x, y))
    return peak * along_y[..., None] * along_x[..., None, :]


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
    logits = network.logits(network.encode(torch.rand(5, 1, 128, 128)))
    nn.functional.cross_entropy(logits, network.label(torch.tensor([1, 2, 3, 4, 1]))).backward()
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
    # Within 8 pixels of the middle also after the shift.
    image = spots([63.5, 61.0], [63.5, 66.0]) + spots([80.0, 20.0], [60.0, 90.0])
    image = image[:, None] + torch.randn(2, 1, 128, 128)
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
