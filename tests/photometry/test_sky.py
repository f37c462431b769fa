"""Sky between sources: level, scatter and correlation, on noise of known correlation."""

import numpy as np
import pytest
import torch
from scipy import signal

from probdeblend.photometry import sky
from probdeblend.photometry.noise import correlated_noise

KERNEL = np.array([[0.1252, 0.2910, 0.1252], [0.2910, 1.0, 0.2910], [0.1252, 0.2910, 0.1252]])
UNIT = KERNEL / np.sqrt((KERNEL**2).sum())


def drizzled(rng, size=300):
    return signal.fftconvolve(rng.normal(size=(size + 2, size + 2)), UNIT, mode="valid")


def disks(shape, *disks):
    """Label map with a disk (x, y, radius) a source."""
    rows, columns = np.indices(shape)
    labels = np.zeros(shape, dtype=np.int32)
    for label, (x, y, radius) in enumerate(disks, start=1):
        labels[np.hypot(columns - x, rows - y) <= radius] = label
    return labels


def test_dilation_grows_large_sources_more():
    segmentation = disks((200, 200), (50, 50, 4), (140, 140, 20))
    grown = sky.dilate(segmentation)
    radii = [np.sqrt((grown == label).sum() / np.pi) for label in (1, 2)]
    np.testing.assert_allclose(radii, [4 + 4 + 2, 20 + 4 + 10], atol=0.6)
    np.testing.assert_array_equal(grown[segmentation > 0], segmentation[segmentation > 0])


def test_dilated_sources_share_the_pixels_between_them():
    grown = sky.dilate(disks((60, 60), (24, 30, 4), (36, 30, 4)))
    assert grown[30, 29] == 1
    assert grown[30, 31] == 2


def test_dilation_of_nothing():
    assert not sky.dilate(np.zeros((5, 5), dtype=np.int32)).any()


def test_sky_needs_an_image():
    with pytest.raises(ValueError, match=r"image must have the axes \(y, x\), got shape \(3,\)"):
        sky.subtract_sky(np.zeros(3))


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_kernel_of_the_noise(rng, strength):
    """A scatter of 0.02 in strength for white noise and 0.05 in CANDELS: four of them."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    image = 0.003 * correlated_noise((64, 64), sky.drizzle_kernel(strength).double(), generator=generator).numpy()
    kernel = sky.estimate_noise_kernel(image)
    assert kernel[1, 1] == 1
    np.testing.assert_allclose(kernel, sky.drizzle_kernel(strength), atol=0.2910 * (0.08 + 0.12 * strength))


def test_kernel_of_the_noise_beside_sources_and_bad_pixels(rng):
    """Bad pixels do not count, and a few faint sources hardly change the answer."""
    image = drizzled(rng)
    image += 3 * (disks(image.shape, *[(20 + 60 * i, 40 + 60 * j, 2) for i in range(5) for j in range(4)]) > 0)
    bright = disks(image.shape, (100, 100, 20)) > 0
    image[bright] += 1e3
    image[50, :] = np.nan
    np.testing.assert_allclose(sky.estimate_noise_kernel(image), KERNEL, atol=0.03)


def test_kernel_of_the_noise_finds_the_sources(rng):
    """Else their light would correlate the pixels."""
    sources = [(40 + 70 * i, 60 + 80 * j, 2e4, 12) for i in range(4) for j in range(3)]
    image = drizzled(rng) + noisy(rng, *sources, size=300)
    np.testing.assert_allclose(sky.estimate_noise_kernel(image), KERNEL, atol=0.04)


def test_kernel_of_the_noise_needs_blank_sky(rng):
    with pytest.raises(ValueError, match=r"image must have 500 pairs of neighboring pixels of blank sky, got 90"):
        sky.estimate_noise_kernel(rng.normal(size=(10, 10)))


def noisy(rng, *sources, size=128):
    """Sky noise with Gaussian sources: x, y, flux, width."""
    rows, columns = np.indices((size, size))
    image = 0.01 * rng.normal(size=(size, size))
    for x, y, flux, width in sources:
        image += flux * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2)) / (2 * np.pi * width**2)
    return image


def test_a_slope_below_sources_is_subtracted(rng):
    slope = 0.5 + 0.0003 * np.arange(256)
    image = slope + noisy(rng, (80, 100, 50.0, 3), (200, 180, 500.0, 6), size=256)
    pixels, scatter = sky.subtract_sky(image)
    found = image - pixels
    assert np.abs(found - slope)[32:-32, 32:-32].max() < 0.02
    assert np.abs(found - slope).mean() < 0.005
    np.testing.assert_allclose(scatter, 0.01, rtol=0.4)


def test_sky_under_bad_pixels(rng):
    image = 1 + noisy(rng)
    image[:30, :30] = np.nan
    image[100:, 100:] = np.inf
    pixels, _ = sky.subtract_sky(image)
    good = np.isfinite(image)
    np.testing.assert_allclose(image[good] - pixels[good], 1, atol=0.01)
    assert np.isnan(pixels[:30, :30]).all()


def test_sky_where_sources_fill_the_image(rng):
    pixels, scatter = sky.subtract_sky(noisy(rng, (63, 63, 1e6, 30)))
    assert np.isfinite(pixels).all()
    assert (scatter > 0).all()


def test_sky_scatters_at_least_a_tenth_of_its_median(rng):
    image = noisy(rng, size=256)
    image[:64, :64] *= 1e-3
    _, scatter = sky.subtract_sky(image)
    assert scatter.min() == pytest.approx(0.1 * np.median(scatter))


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_sky_needs_pixels_that_differ(value):
    with pytest.raises(ValueError, match="image must have good pixels that differ, got none"):
        sky.subtract_sky(np.full((64, 64), value))
