import pytest
import torch

from probdeblend.infer import draw
from probdeblend.nn.composite import Blend2Flux, Blend2Mask2Flux


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(2)
    return Blend2Mask2Flux(unet_filters=2, depth=2, first_filters=2, hidden=16, dropout=0.3)


@pytest.fixture(scope="module")
def image():
    return 3 * torch.randn(5, 1, 128, 128, generator=torch.Generator().manual_seed(0))


def test_shapes(network, image):
    answer = draw(network, image, draws=100, passes=8)
    assert answer.log_flux.shape == (8, 13, 5, 2)
    assert answer.mask.shape == answer.mask_std.shape == (5, 2, 128, 128)
    assert answer.features.shape == (5, 16)
    empty = draw(network, image[:0], draws=100, passes=8)
    assert empty.log_flux.shape == (8, 13, 0, 2)
    alone = draw(Blend2Flux(first_filters=2), image, draws=10, passes=0)
    assert alone.log_flux.shape == (1, 10, 5, 2)
    assert alone.mask is None


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


def test_errors(network, image):
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        draw(network, image, draws=1)
    for name in ("passes", "seed", "first"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
            draw(network, image, **{name: -1})
