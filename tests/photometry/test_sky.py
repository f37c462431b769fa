"""Sky between sources: level, scatter, correlation and patches, on noise of known correlation."""

import numpy as np
import pytest
import torch
from scipy import signal

from probdeblend.photometry import sky

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


def test_scatter_sees_neither_sources_nor_wings_nor_bad_pixels(rng):
    image = 3 * drizzled(rng)
    segmentation = disks(image.shape, (100, 100, 10))
    image[disks(image.shape, (100, 100, 14)) > 0] += 1e4
    image[200:] = np.nan
    assert sky.sky_scatter(image, segmentation) == pytest.approx(3, rel=0.03)


def test_replaced_pixels_keep_the_correlation(rng):
    image = drizzled(rng)
    segmentation = disks(image.shape, *[(40 + 70 * i, 40 + 70 * j, 25) for i in range(4) for j in range(4)])
    image[segmentation > 0] += 100
    filled = sky.replace_with_sky(image, segmentation > 0, rng, blank=segmentation == 0, sky_rms=1.0)
    assert np.abs(filled).max() < 7
    np.testing.assert_array_equal(filled[segmentation == 0], image[segmentation == 0])
    inside = segmentation > 0
    neighbors = inside[:, 1:] & inside[:, :-1]
    correlation = np.corrcoef(filled[:, 1:][neighbors], filled[:, :-1][neighbors])[0, 1]
    assert correlation == pytest.approx((UNIT[:, 1:] * UNIT[:, :-1]).sum(), abs=0.05)
    assert filled[inside].std() == pytest.approx(1, rel=0.05)


def test_replacement_comes_from_nearby(rng):
    image = rng.normal(size=(200, 400)) * np.where(np.arange(400) < 200, 1, 10)
    mask = disks(image.shape, (60, 100, 10)) > 0
    assert np.abs(sky.replace_with_sky(image, mask, rng, blank=~mask, sky_rms=1.0)[mask]).max() < 6


def test_replacement_uses_only_blank_pixels(rng):
    image = rng.normal(size=(100, 100))
    image[:, 50:] = 1000
    mask = disks(image.shape, (20, 50, 8)) > 0
    blank = ~mask & (np.arange(100) < 50)
    assert np.abs(sky.replace_with_sky(image, mask, rng, blank=blank, sky_rms=1.0)[mask]).max() < 10


def test_replacement_copies_pieces_where_the_whole_does_not_fit(rng):
    image = drizzled(rng, 90)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:70] = True
    image[mask] = np.nan
    filled = sky.replace_with_sky(image, mask, rng, blank=~mask, sky_rms=1.0)
    assert np.isin(filled[mask], image[~mask]).all()


@pytest.mark.parametrize(("kernel", "correlation"), [(None, 0.0), (KERNEL, 0.52)])
def test_noise_is_drawn_where_there_is_no_sky(rng, kernel, correlation):
    image = np.full((300, 3), np.nan)
    kernel = None if kernel is None else torch.from_numpy(kernel)
    bad = np.isnan(image)
    filled = sky.replace_with_sky(image, bad, rng, blank=~bad, kernel=kernel, sky_rms=2.0)
    assert filled.std() == pytest.approx(2, rel=0.1)
    assert np.corrcoef(filled[:, 0], filled[:, 1])[0, 1] == pytest.approx(correlation, abs=0.2)


def test_noise_is_drawn_where_the_sky_is_too_patchy(rng):
    image = 5 * rng.normal(size=(101, 101))
    blank = np.zeros(image.shape, dtype=bool)
    blank[::2, ::2] = True  # sky that has no room for two pixels
    mask = disks(image.shape, (51, 51, 30)) > 0
    image[mask] = 1e6
    filled = sky.replace_with_sky(image, mask, rng, blank=blank & ~mask, sky_rms=5.0)
    assert filled[mask].std() == pytest.approx(5, rel=0.15)


def test_same_seed_same_sky():
    image = np.random.default_rng(1).normal(size=(50, 50))
    mask = disks(image.shape, (20, 20, 5)) > 0

    def replaced(mask):
        return sky.replace_with_sky(image, mask, np.random.default_rng(3), blank=~mask, sky_rms=1.0)

    first, second = replaced(mask), replaced(mask)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(replaced(np.zeros_like(mask)), image)


def test_sky_needs_an_image():
    with pytest.raises(ValueError, match=r"image must have the axes \(y, x\), got shape \(3,\)"):
        sky.sky_scatter(np.zeros(3), np.zeros(3, dtype=np.int32))


def test_scatter_needs_blank_sky():
    with pytest.raises(ValueError, match="segmentation must leave blank sky, got none"):
        sky.sky_scatter(np.zeros((8, 8)), np.ones((8, 8), dtype=np.int32))


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_kernel_of_the_noise(rng, strength):
    """A scatter of 0.02 in strength for white noise and 0.05 in CANDELS: four of them."""
    image = 0.003 * sky.draw_noise((64, 64), sky.drizzle_kernel(strength), rng)
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
