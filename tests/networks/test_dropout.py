import copy
import math

import pytest
import torch

from probdeblend.networks import Blend2Flux, Blend2Mask2Flux
from probdeblend.networks.dropout import draw
from probdeblend.networks.layers import dropout_passes
from probdeblend.scene import seed_of


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(2)
    return Blend2Mask2Flux(unet_filters=2, depth=2, first_filters=2, hidden=16, dropout=0.3)


def eager(network, factor=30.0):
    """Return a copy with larger logits: passes are sure of some pixels, and of opposites in others."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        network.unet.out.weight *= factor
        network.unet.out.bias[1] = factor / 2
    return network


def entropy(probability):
    """Bits, of double precision."""
    return sum(torch.special.entr(value) for value in (probability, 1 - probability)) / math.log(2)


@pytest.fixture(scope="module")
def image():
    return 3 * torch.randn(5, 1, 128, 128, generator=torch.Generator().manual_seed(0))


def test_shapes(network, image):
    answer = draw(network, image, draws=100, passes=8)
    assert answer.log_flux.shape == (8, 13, 5, 2)
    assert answer.mask.shape == answer.mask_std.shape == answer.mask_information.shape == (5, 2, 128, 128)
    assert answer.features.shape == (5, 16)
    empty = draw(network, image[:0], draws=100, passes=8)
    assert empty.log_flux.shape == (8, 13, 0, 2)
    alone = draw(Blend2Flux(first_filters=2), image, draws=10, passes=0)
    assert alone.log_flux.shape == (1, 10, 5, 2)
    assert alone.mask is alone.mask_std is alone.mask_information is None


def test_same_seed_same_draws_whatever_the_batch(network, image):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = draw(network, image, draws=64, passes=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    part = draw(network, image[2:4], draws=64, passes=4, seed=3, first=2)
    assert torch.allclose(whole.log_flux[:, :, 2:4], part.log_flux, atol=1e-4)
    assert torch.allclose(whole.mask[2:4], part.mask, atol=1e-5)
    other = draw(network, image, draws=64, passes=4, seed=4)
    assert not torch.allclose(whole.log_flux, other.log_flux)


def test_draws_follow_the_head(network, image):
    network.eval()
    with torch.no_grad():
        numbers = network.answer(network.encode(image)).flux
        exact = network.head.distribution(numbers)
    answer = draw(network, image, draws=20_000, passes=0)
    error = answer.log_flux[0].mean(0) - exact.mean
    standard = exact.variance.sqrt() / 20_000**0.5
    # Ten means; five standard errors each is a false alarm in 200,000.
    assert (error.abs() < 5 * standard).all()


def test_passes_spread(network, image):
    answer = draw(network, image, draws=3200, passes=32)
    between = answer.log_flux.mean(1).std(0)
    none = draw(network, image, draws=3200, passes=0)
    assert (between > 0).all()
    assert (answer.mask_std > 0).any()
    assert (none.mask_std == 0).all()


@pytest.mark.parametrize(("passes", "factor", "rarest"), [(4, 30, 1e-6), (32, 30, 1e-6), (120, 2, 0.3)])
def test_information_is_that_of_the_passes(network, image, passes, factor, rarest):
    network, image = eager(network, factor), image[:1]
    answer = draw(network, image, draws=2 * passes, passes=passes, seed=4)
    logits = []
    with dropout_passes(network), torch.no_grad():
        features = network.encode(image)
        for number in range(passes):
            torch.manual_seed(seed_of(4, 0, number))
            logits.append(network.answer(features).mask)
    probability = torch.stack(logits).double().sigmoid()
    assert float(probability.min()) < rarest
    assert float(probability.max()) > 1 - rarest
    torch.testing.assert_close(answer.mask.double(), probability.mean(0), atol=5e-6, rtol=0)
    exact = entropy(answer.mask.double()) - entropy(probability).mean(0)
    assert float(exact.max()) > 0.01
    torch.testing.assert_close(answer.mask_information.double(), exact.clamp(min=0), atol=1e-5, rtol=0)
    assert (answer.mask_information >= 0).all()
    assert (answer.mask_information <= entropy(answer.mask) + 1e-6).all()


def test_no_information_without_dropout(network, image):
    sure = eager(network)
    assert (draw(sure, image, draws=10, passes=0).mask_information == 0).all()
    sure.unet.dropout.probability = 0.0
    assert draw(sure, image, draws=20, passes=10).mask_information.max() < 3e-6


def test_errors(network, image):
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        draw(network, image, draws=1)
    for name in ("passes", "seed", "first"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
            draw(network, image, **{name: -1})
