"""The likelihood of correlated noise on a cut stamp."""

import math

import pytest
import torch

from probdeblend.photometry.noise import autocorrelation
from probdeblend.refinement.likelihood import NoisyImage, expected_periodogram, whitened
from probdeblend.scene import Instrument

KERNEL = Instrument.candels_f160w().noise_kernel


def dark(count, size, kernel=KERNEL):
    return NoisyImage(torch.zeros(count, size, size), torch.zeros(count), torch.full((count,), 12.0), kernel=kernel)


@pytest.mark.parametrize("size", [24, 64])
def test_chi_square_of_pure_noise_is_one(size):
    torch.manual_seed(0)
    images = dark(600, size).sample()
    chi_square = whitened(images, expected_periodogram(KERNEL, size)).square().sum((-3, -2, -1)) / size**2
    error = chi_square.std() / len(chi_square) ** 0.5
    assert error < 0.003
    assert abs(chi_square.mean() - 1) < 0.01


def test_the_power_of_the_field_is_not_that_of_the_stamp():
    """Without the cut taken into account chi-square is wrong by nine percent."""
    torch.manual_seed(0)
    images = dark(300, 24).sample()
    correlation = autocorrelation(KERNEL)
    reach = len(correlation) // 2
    field = torch.zeros(24, 24)
    lags = torch.arange(-reach, reach + 1)
    field[lags[:, None] % 24, lags % 24] = correlation
    naive = torch.fft.fft2(field).real
    assert whitened(images, naive).square().sum((-3, -2, -1)).mean() / 24**2 > 1.05


def test_white_noise_is_exact():
    torch.manual_seed(0)
    light = 30 * torch.rand(5, 16, 16)
    noisy = NoisyImage(light, torch.full((5,), 0.3), torch.full((5,), 4.0), kernel=None)
    images = noisy.sample()
    exact = torch.distributions.Normal(light + 0.3, (1 + light / 4).sqrt()).log_prob(images).sum((-2, -1))
    torch.testing.assert_close(noisy.log_prob(images), exact, rtol=1e-4, atol=1e-2)


def test_close_to_the_exact_likelihood():
    """Of differences between parameters it is right to a fraction of one: here those of a source's flux."""
    size, count = 20, 300
    torch.manual_seed(1)
    places = torch.arange(size) - size / 2
    source = torch.exp(-(places[:, None] ** 2 + places**2) / 8)
    images = dark(count, size).sample()
    correlation = autocorrelation(KERNEL).double()
    reach = len(correlation) // 2
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    dy, dx = y[:, None] - y, x[:, None] - x
    near = (dy.abs() <= reach) & (dx.abs() <= reach)
    covariance = torch.zeros(size**2, size**2, dtype=torch.float64)
    covariance[near] = correlation[dy[near] + reach, dx[near] + reach]
    exact = torch.distributions.MultivariateNormal(torch.zeros(size**2).double(), covariance)
    whittle = [dark(count, size).log_prob(images - flux * source) for flux in (0.0, 0.5)]
    right = [exact.log_prob((images - flux * source).flatten(1).double()) for flux in (0.0, 0.5)]
    found, wanted = whittle[1] - whittle[0], right[1] - right[0]
    assert float((found - wanted).std() / wanted.std()) < 0.15
    assert abs(float((found - wanted).mean())) < 0.2 * float(wanted.std())


def test_photon_noise_and_batches():
    light = torch.full((2, 1, 16, 16), 100.0)
    noisy = NoisyImage(light, torch.zeros(2, 1), torch.tensor([[1e9], [25.0]]), kernel=None)
    assert noisy.standard_deviation[0].max() == pytest.approx(1, abs=1e-3)
    assert noisy.standard_deviation[1].max() == pytest.approx(math.sqrt(5))
    assert noisy.sample((3,)).shape == (3, 2, 1, 16, 16)
    assert noisy.log_prob(torch.zeros(3, 2, 1, 16, 16)).shape == (3, 2, 1)
    assert noisy.expand(torch.Size([4, 2, 1])).batch_shape == (4, 2, 1)


def test_stamps_that_are_too_small():
    with pytest.raises(ValueError, match="size must be more than 4 pixels, the reach of the correlation, got 4"):
        expected_periodogram(KERNEL, 4)
    assert expected_periodogram(None, 4).eq(1).all()
