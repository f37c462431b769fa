"""The likelihood of an image, given its expected light."""

import pytest
import torch

from probdeblend.photometry.noise import correlated_noise
from probdeblend.refinement.likelihood import NoisyImage, expected_periodogram, whitened

DRIZZLED = torch.tensor([[0.13, 0.29, 0.13], [0.29, 1.0, 0.29], [0.13, 0.29, 0.13]])
SHAPE = (24, 31)


def noisy(light, kernel, *, photon=0.0, good=None):
    power = expected_periodogram(kernel, SHAPE).float()[None]
    good = torch.ones(1, *SHAPE) if good is None else good
    return NoisyImage(light, torch.zeros(1), photon=torch.tensor([photon]), power=power, good=good)


@pytest.mark.parametrize("kernel", [torch.ones(1, 1), DRIZZLED])
def test_chi_square_of_noise_is_one_per_pixel(kernel):
    """In cutouts of noise that does not repeat at their edges; the standard error of the mean is 0.002 to 0.004."""
    generator = torch.Generator().manual_seed(1)
    residual = correlated_noise((400, *SHAPE), kernel, generator=generator)
    chi_square = whitened(residual, expected_periodogram(kernel, SHAPE)).square().sum((-3, -2, -1))
    assert float(chi_square.mean()) / (SHAPE[0] * SHAPE[1]) == pytest.approx(1.0, abs=0.015)


def test_density_of_white_noise_is_normal():
    light = 20 * torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    found = noisy(light, torch.ones(1, 1), photon=0.05)
    value = light + 1.5
    expected = torch.distributions.Normal(light, (1 + 0.05 * light).sqrt()).log_prob(value).sum()
    assert float(found.log_prob(value)) == pytest.approx(float(expected), rel=1e-4)


def test_draws_have_the_noise_of_sky_and_photons():
    light = torch.full((1, *SHAPE), 30.0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = noisy(light, DRIZZLED, photon=0.1).sample((200,)) - light
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.02)
    neighbor = (drawn[..., 1:] * drawn[..., :-1]).mean() / drawn.square().mean()
    assert 0.4 < float(neighbor) < 0.6


def test_bad_pixels_do_not_count():
    good = torch.ones(1, *SHAPE)
    good[0, 3, 4] = 0
    found = noisy(torch.zeros(1, *SHAPE), DRIZZLED, good=good)
    value = torch.zeros(1, *SHAPE)
    spoiled = value.clone()
    spoiled[0, 3, 4] = 1e3
    assert float(found.log_prob(spoiled)) == float(found.log_prob(value))


def test_cutout_smaller_than_the_correlation_is_refused():
    with pytest.raises(ValueError, match="image must have more than 4 pixels"):
        expected_periodogram(DRIZZLED, (4, 30))
