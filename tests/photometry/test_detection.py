"""Detection and fluxes with SEP: against Gaussian galaxies, whose light is known in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import sep

from probdeblend.photometry import detection as photometry

SIZE = 128
SKY_RMS = 0.01
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(float)


def gaussian(x, y, flux, *, major=3.0, minor=3.0, angle=0.0):
    along = (COLUMNS - x) * np.cos(angle) + (ROWS - y) * np.sin(angle)
    across = (ROWS - y) * np.cos(angle) - (COLUMNS - x) * np.sin(angle)
    return flux * np.exp(-0.5 * ((along / major) ** 2 + (across / minor) ** 2)) / (2 * np.pi * major * minor)


def noise(rng):
    return SKY_RMS * rng.normal(size=(SIZE, SIZE))


@pytest.fixture
def pair(rng):
    return gaussian(50, 60, 20.0) + gaussian(75, 66, 10.0) + noise(rng)


def test_detection_describes_an_ellipse(rng):
    found = photometry.detect(gaussian(50.3, 70.8, 100, major=6, minor=3, angle=0.5) + noise(rng), SKY_RMS)
    assert len(found) == 1
    np.testing.assert_allclose([found.x[0], found.y[0]], [50.3, 70.8], atol=0.05)
    np.testing.assert_allclose([found.semi_major[0], found.semi_minor[0]], [6, 3], rtol=0.1)
    assert found.angle[0] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(found.label, [1])


@pytest.mark.parametrize("kind", [">f4", "<f8", ">f8", "float32"])
def test_byte_order_and_strides_do_not_matter(pair, kind):
    expected = photometry.detect(pair.astype(np.float32), SKY_RMS)
    given = np.asfortranarray(pair.astype(np.float32).astype(kind))
    found = photometry.detect(given, SKY_RMS)
    np.testing.assert_array_equal(found.segmentation, expected.segmentation)
    np.testing.assert_array_equal(
        photometry.kron_flux(given, found, SKY_RMS)[0],
        photometry.kron_flux(pair.astype(np.float32), expected, SKY_RMS)[0],
    )


def test_noise_map_acts_as_the_number(pair):
    constant = photometry.detect(pair, SKY_RMS)
    mapped = photometry.detect(pair, np.full(pair.shape, SKY_RMS))
    np.testing.assert_array_equal(mapped.segmentation, constant.segmentation)
    number, grid = (photometry.kron_flux(pair, constant, rms) for rms in (SKY_RMS, np.full(pair.shape, SKY_RMS)))
    np.testing.assert_allclose(number, grid, rtol=1e-6)


def test_blank_sky_holds_nothing(rng):
    found = photometry.detect_cold_hot(noise(rng), SKY_RMS)
    assert len(found) == 0
    assert [len(values) for values in photometry.kron_flux(noise(rng), found, SKY_RMS)] == [0, 0]


def test_cold_is_enough_for_two(pair):
    cold, both = photometry.detect(pair, SKY_RMS), photometry.detect_cold_hot(pair, SKY_RMS)
    assert len(cold) == 2
    np.testing.assert_array_equal(both.segmentation, cold.segmentation)


def test_hot_splits_what_cold_does_not():
    image = gaussian(63, 63, 100, major=6, minor=6) + gaussian(73, 63, 2.0, major=1, minor=1)
    assert len(photometry.detect(image, SKY_RMS)) == 1
    found = photometry.detect_cold_hot(image, SKY_RMS)
    assert len(found) == 2
    assert found.x[np.argmin(found.flux)] == pytest.approx(73, abs=1)


def test_hot_finds_what_is_too_faint_for_cold(rng):
    image = gaussian(63, 63, 1.6, major=2, minor=2) + 0.1 * noise(rng)
    assert len(photometry.detect(image, SKY_RMS)) == 0
    assert len(photometry.detect_cold_hot(image, SKY_RMS)) == 1


def test_bad_pixels_are_not_detected(pair):
    bad = np.hypot(ROWS - 66, COLUMNS - 75) < 12
    assert len(photometry.detect(np.where(bad, np.nan, pair), SKY_RMS)) == 1


def test_kron_flux_of_a_gaussian():
    image = gaussian(63.2, 63.7, 100, major=5, minor=3, angle=1.0)
    found = photometry.detect(image, SKY_RMS)
    flux, error = photometry.kron_flux(image, found, SKY_RMS)
    # A Gaussian's Kron radius is 1.25 and its aperture would be 3.1, less than the least one.
    assert flux == pytest.approx(100 * (1 - np.exp(-0.5 * 3.5**2)), rel=5e-3)
    area = np.pi * 3.5**2 * found.semi_major * found.semi_minor
    np.testing.assert_allclose(error, SKY_RMS * np.sqrt(area), rtol=0.01)
    _, with_photons = photometry.kron_flux(image, found, SKY_RMS, exposure=50)
    np.testing.assert_allclose(with_photons**2, error**2 + flux / 50, rtol=1e-3)


def test_kron_radius_grows_with_the_wings():
    radius = np.hypot(ROWS - 63.5, COLUMNS - 63.5)
    image = 100 * np.exp(-7.67 * (radius / 8) ** 0.25)  # de Vaucouleurs, without its cusp
    found = photometry.detect(image, SKY_RMS)
    flux, error = photometry.kron_flux(image, found, SKY_RMS)
    aperture = error / (SKY_RMS * np.sqrt(np.pi * found.semi_major * found.semi_minor))
    assert photometry.KRON_MINIMUM < aperture < photometry.KRON_FACTOR * photometry.KRON_EXTENT
    assert 0.6 < flux / image.sum() < 0.9


def test_neighbors_pixels_do_not_count():
    faint, bright = gaussian(50, 63, 10.0), gaussian(66, 63, 100.0)
    found = photometry.detect(faint + bright, SKY_RMS)
    flux, error = photometry.kron_flux(faint + bright, found, SKY_RMS)
    assert flux[np.argmin(found.x)] == pytest.approx(10, rel=0.1)
    unmasked = replace(found, segmentation=np.zeros_like(found.segmentation))
    flux, inflated = photometry.kron_flux(faint + bright, unmasked, SKY_RMS)
    assert flux[np.argmin(found.x)] > 30
    assert error[np.argmin(found.x)] < 0.7 * inflated[np.argmin(found.x)]  # as are the radii of the apertures


def test_bad_pixels_get_the_mean_of_the_aperture(rng):
    image = gaussian(63, 63, 100.0) + noise(rng)
    found = photometry.detect(image, SKY_RMS)
    whole, _ = photometry.kron_flux(image, found, SKY_RMS)
    holed = image.copy()
    holed[60:62, 66:68] = np.nan
    assert photometry.kron_flux(holed, found, SKY_RMS)[0] == pytest.approx(whole, rel=0.05)


def test_auto_flux_does_not_split_knots(rng):
    knots = sum(gaussian(57 + 5 * i, 63, 20.0, major=1.5, minor=1.5) for i in range(3))
    image = knots + noise(rng)
    assert len(photometry.detect(image, SKY_RMS)) > 1
    assert photometry.auto_flux(image, SKY_RMS) == pytest.approx(60, rel=0.03)


def test_auto_flux_is_that_of_the_brightest(rng):
    image = gaussian(63, 63, 50.0) + gaussian(20, 100, 10.0) + noise(rng)
    assert photometry.auto_flux(image, SKY_RMS) == pytest.approx(50, rel=0.02)


def test_auto_flux_of_the_faint_and_of_nothing(rng):
    faint = gaussian(63, 63, 1.6, major=2, minor=2)
    assert photometry.auto_flux(faint, SKY_RMS) == pytest.approx(1.6, rel=0.05)
    assert np.isnan(photometry.auto_flux(noise(rng), SKY_RMS))


def test_photometry_needs_an_image():
    with pytest.raises(ValueError, match=r"image must have the axes \(y, x\), got shape \(2, 8, 8\)"):
        photometry.detect(np.zeros((2, 8, 8)), 1.0)


@pytest.mark.parametrize("rms", [0.0, -1.0, np.nan, np.inf])
def test_sky_rms_is_positive(rms):
    with pytest.raises(ValueError, match="sky_rms must be positive and finite, got"):
        photometry.detect(np.zeros((8, 8)), rms)


def test_sky_rms_map_fits():
    with pytest.raises(ValueError, match=r"sky_rms must be a number or have the shape of image \(8, 8\)"):
        photometry.detect(np.zeros((8, 8)), np.ones((4, 4)))


def test_exposure_is_positive(pair):
    with pytest.raises(ValueError, match="exposure must be positive, got 0"):
        photometry.kron_flux(pair, photometry.detect(pair, SKY_RMS), SKY_RMS, exposure=0)


def test_image_that_is_all_source():
    with pytest.raises(ValueError, match="image must be sky-subtracted and not one crowded source, SEP reports"):
        photometry.detect(np.full((600, 600), 10.0), 0.1)


def test_sources_that_fill_the_buffer_of_sep_are_found():
    """With the limits of the process as they were."""
    rows, columns = np.indices((90, 90))
    image = np.exp(-((rows - 40) ** 2 + (columns - 50) ** 2) / 800) + 1e-3 * np.sin(rows * columns)
    usual = photometry.detect(image, 0.02)
    limit = sep.get_extract_pixstack()
    sep.set_extract_pixstack(2000)
    try:
        found = photometry.detect(image, 0.02)
        assert sep.get_extract_pixstack() == 2000
    finally:
        sep.set_extract_pixstack(limit)
    np.testing.assert_array_equal(found.segmentation, usual.segmentation)
    assert found.flux == pytest.approx(usual.flux)
