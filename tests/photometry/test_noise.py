"""Noise of drizzled images: its correlation, and the Poisson scatter of a galaxy."""

import math

import pytest
import torch
from scipy.stats import chi2

from probdeblend.photometry import add_noise, autocorrelation
from probdeblend.photometry.noise import correlated_noise, noise_numbers
from probdeblend.scene import correlation_sum
from probdeblend.simulation import Camera

MEASURED = {(1, 0): 0.52, (1, 1): 0.30, (2, 0): 0.08, (2, 1): 0.05, (2, 2): 0.02}
"""Correlation of the pixels of CANDELS F160W mosaics by lag."""


@pytest.fixture(scope="module")
def candels():
    return Camera.candels_f160w().noise_kernel[0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def variance_limits(count, false_alarm):
    """Limits on the ratio of a sample's variance to the true one."""
    return [chi2.ppf(p, count) / count for p in (false_alarm / 2, 1 - false_alarm / 2)]


@pytest.mark.parametrize("lag", MEASURED)
def test_kernel_has_the_correlation_of_candels(candels, lag):
    dy, dx = lag
    rho = autocorrelation(candels)
    assert rho.shape == (5, 5)
    for y, x in ((dy, dx), (dx, dy), (-dy, dx), (dy, -dx)):
        assert float(rho[2 + y, 2 + x]) == pytest.approx(MEASURED[lag], abs=0.02)


@pytest.mark.parametrize("lag", [(0, 0), *MEASURED, (3, 0), (0, 7)])
def test_drawn_noise_has_the_correlation_of_the_kernel(candels, lag):
    dy, dx = lag
    field = correlated_noise((16, 256, 256), candels, generator=seeded())
    rho = autocorrelation(candels)
    expected = float(rho[2 + dy, 2 + dx]) if max(lag) <= 2 else 0.0
    shifted = field[:, dy:, dx:] * field[:, : 256 - dy, : 256 - dx]
    # A million pixels, each of which shares its noise with about five others.
    assert float(shifted.mean()) == pytest.approx(expected, abs=0.01)


def test_sums_scatter_as_in_drizzled_mosaics(candels):
    sums = correlated_noise((200, 80, 80), candels, generator=seeded(1))
    sums = sums.unfold(1, 10, 10).unfold(2, 10, 10).sum((-1, -2))
    assert 2.0 < float(sums.std()) / 10 < 2.3
    assert math.sqrt(correlation_sum(candels)) == pytest.approx(2.25, abs=0.02)


def spectrum(rho):
    height, width = rho.shape
    padded = torch.nn.functional.pad(rho.double(), (0, 64 - width, 0, 64 - height))
    return torch.fft.fft2(padded.roll((-(height // 2), -(width // 2)), (0, 1))).real


def test_covariance_is_positive_definite(candels):
    assert float(spectrum(autocorrelation(candels)).min()) > 0


def test_white_noise():
    field = correlated_noise((8, 128, 128), torch.ones(1, 1), generator=seeded(2))
    assert field.shape == (8, 128, 128)
    assert float(field.std()) == pytest.approx(1, abs=0.01)
    assert float((field[:, 1:] * field[:, :-1]).mean()) == pytest.approx(0, abs=0.01)
    assert correlation_sum(torch.ones(1, 1)) == 1
    torch.testing.assert_close(autocorrelation(torch.ones(1, 1)), torch.ones(1, 1))


@pytest.mark.parametrize("shape", [(5, 5), (0, 8, 8), (1, 8, 9), (7, 2, 1, 16, 8)])
def test_any_leading_shape(candels, shape):
    assert correlated_noise(shape, candels).shape == shape


@pytest.mark.parametrize("shape", [(2, 3), (3, 4)])
def test_kernel_must_have_odd_sides(shape):
    with pytest.raises(ValueError, match=rf"kernel must have odd sides, got shape \({shape[0]}, {shape[1]}\)"):
        correlated_noise((8, 8), torch.ones(shape))


def test_noise_level_adds_sky_and_photons():
    light = torch.tensor([-1.0, 0.0, 16.0])[:, None, None, None].expand(3, 1, 8, 8)
    white = torch.randn(light.shape, generator=seeded(2))
    for exposure, rms in ((1.0, [3.0, 3.0, 5.0]), (math.inf, [3.0, 3.0, 3.0])):
        levels = {"sky_rms": torch.full((3, 1), 3.0), "exposure": torch.full((3, 1), exposure)}
        noisy = add_noise(light, **levels, noise_kernel=torch.ones(3, 1, 1, 1), generator=seeded(2))
        torch.testing.assert_close(noisy, light + torch.tensor(rms)[:, None, None, None] * white)


def gaussian_light(flux, size=64, sigma=8.0):
    axis = torch.arange(size) - (size - 1) / 2
    profile = torch.exp(-0.5 * (axis / sigma).square())
    return flux * profile[:, None] * profile / profile.sum() ** 2


@pytest.mark.parametrize("drizzled", [True, False])
def test_flux_of_a_galaxy_has_poisson_scatter(candels, drizzled, false_alarm):
    """Whatever the correlation of the pixels, a galaxy's counts scatter as their square root."""
    flux, exposure, count = 20.0, 100.0, 3000
    kernel = (candels if drizzled else torch.ones(1, 1)).expand(count, 1, -1, -1)
    light = gaussian_light(flux).expand(count, 1, -1, -1)
    levels = {"sky_rms": torch.full((count, 1), 1e-6), "exposure": torch.full((count, 1), exposure)}
    total = add_noise(light, **levels, noise_kernel=kernel, generator=seeded(3)).sum((1, 2, 3))
    low, high = variance_limits(count, false_alarm)
    # The light's slope over the kernel's width lowers the variance by a percent.
    assert 0.98 * low < float(total.var()) / (flux / exposure) < high
    assert float(total.mean()) == pytest.approx(flux, abs=5 * math.sqrt(flux / exposure / count))


def test_each_band_has_its_own_levels_and_correlation(candels):
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[..., 1, 1] = 1
    kernel[1, 0] = candels
    levels = {"sky_rms": torch.tensor([[1.0, 10.0], [3.0, 1.0]]), "exposure": torch.full((2, 2), math.inf)}
    noisy = add_noise(torch.zeros(2, 2, 256, 256), **levels, noise_kernel=kernel, generator=seeded(4))
    for index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels = noisy[index]
        assert float(pixels.std()) == pytest.approx(float(levels["sky_rms"][index]), rel=0.03)
        neighbors = float((pixels[1:] * pixels[:-1]).mean() / pixels.square().mean())
        assert neighbors == pytest.approx(0.52 if index == (1, 0) else 0.0, abs=0.03)


def test_same_generator_same_bits_and_the_global_one_untouched(candels):
    levels = {"sky_rms": torch.ones(2, 1), "exposure": torch.ones(2, 1), "noise_kernel": torch.rand(2, 1, 3, 3)}
    light, before = torch.rand(2, 1, 16, 16), torch.random.get_rng_state()
    first, second, other = (add_noise(light, **levels, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.dtype == light.dtype


def test_numbers_of_the_noise_for_a_network(candels):
    """Correlation of next pixels, ln of the excess scatter of sums, photon noise, color, and whether it is known."""
    photon, wavelength = torch.tensor([[0.0, 0.1]]), torch.tensor([[0.8, math.nan]])
    white = noise_numbers(torch.ones(1, 2, 1, 1), photon, wavelength)
    assert white.shape == (1, 2, 5)
    torch.testing.assert_close(white[0, :, :2], torch.zeros(2, 2))
    torch.testing.assert_close(white[0, :, 3:], torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert white[0, :, 2].tolist() == pytest.approx([math.log(1e-3) / 3 + 1, math.log(0.101) / 3 + 1])
    drizzled = noise_numbers(candels.expand(1, 2, 3, 3), photon, wavelength)
    assert drizzled[0, 0, :2].tolist() == pytest.approx([0.52, math.log(2.25)], abs=0.02)
    torch.testing.assert_close(drizzled[..., 2:], white[..., 2:])
