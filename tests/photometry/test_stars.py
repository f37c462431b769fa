"""The PSF of a field: against Moffat stars and galaxies of known profiles."""

from functools import lru_cache

import galsim
import numpy as np
import pytest
from astropy.io import fits

from probdeblend.photometry import measure_psf, subtract_sky

SIZE = 500
BETA = 3.0


def moffat(x, y, flux, fwhm, *, axis_ratio=1.0, angle=0.0, shape):
    columns, rows = np.meshgrid(np.arange(shape[1]) - x, np.arange(shape[0]) - y)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    major = fwhm / (2 * np.sqrt(2 ** (1 / BETA) - 1))
    squared = (along / major) ** 2 + (across / (axis_ratio * major)) ** 2
    return flux * (BETA - 1) / (np.pi * axis_ratio * major**2) * (1 + squared) ** -BETA


def put(image, x, y, *source, **shape):
    """Add a source within 50 pixels of its center."""
    rows, columns = (slice(max(int(at) - 50, 0), int(at) + 51) for at in (y, x))
    part = image[rows, columns]
    part += moffat(x - columns.start, y - rows.start, *source, **shape, shape=part.shape)


@lru_cache
def field(fwhm, *, stars=25, galaxies=60, seed=0):
    """Stars, and galaxies larger than they, with a sky noise of 1 and photon noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIZE, SIZE))
    for _ in range(stars):
        put(image, *rng.uniform(0, SIZE, 2), np.exp(rng.uniform(5, 10)), fwhm, axis_ratio=0.95, angle=1.0)
    for _ in range(galaxies):
        size = fwhm * np.hypot(1, np.exp(rng.normal(0.4, 0.4)))
        shape = {"axis_ratio": rng.uniform(0.4, 1), "angle": rng.uniform(0, np.pi)}
        put(image, *rng.uniform(0, SIZE, 2), np.exp(rng.uniform(5, 9)), size, **shape)
    return image + rng.normal(size=image.shape) * np.sqrt(1 + 0.02 * image)


def true_psf(fwhm, size=41):
    psf = moffat(size // 2, size // 2, 1.0, fwhm, axis_ratio=0.95, angle=1.0, shape=(size, size))
    return psf / psf.sum()


def fwhm_of(psf):
    return galsim.Image(psf, scale=1.0).calculateFWHM()


def encircled(psf, radius):
    rows, columns = np.indices(psf.shape) - len(psf) // 2
    return psf[np.hypot(rows, columns) <= radius].sum()


@pytest.mark.parametrize("fwhm", [1.8, 3.0, 5.0])
def test_psf_of_a_field(fwhm):
    """Also where its pixels are too coarse for it, and faint wings included."""
    psf, truth = measure_psf(field(fwhm), 1.0), true_psf(fwhm)
    assert psf.shape == (41, 41)
    assert psf.sum() == pytest.approx(1)
    assert psf.min() >= -0.01 * psf.max()
    assert fwhm_of(psf) == pytest.approx(fwhm_of(truth), rel=0.03)
    for radius in (2, 4, 8, 15):
        assert encircled(psf, radius) == pytest.approx(encircled(truth, radius), abs=0.012)
    assert np.abs(psf - truth).max() < 0.03 * truth.max()


def test_saturated_stars_and_bad_pixels_do_not_count():
    image = field(3.0)
    bad = np.random.default_rng(1).random(image.shape) < 0.001
    holed = np.where(image > 500, 500.0, image)
    holed[bad] = 1e4
    holed[bad | (holed >= 500)] = np.nan
    assert fwhm_of(measure_psf(holed, 1.0)) == pytest.approx(fwhm_of(true_psf(3.0)), rel=0.03)


def test_unit_and_noise_map_do_not_matter():
    image = field(3.0)
    psf = measure_psf(image, 1.0)
    np.testing.assert_allclose(measure_psf(1e-3 * image, np.full(image.shape, 1e-3)), psf, atol=1e-9)
    np.testing.assert_allclose(measure_psf(image.astype(">f4"), 1.0), psf, atol=1e-6)


def test_residual_sky_does_not_matter():
    image = field(3.0)
    np.testing.assert_allclose(measure_psf(image + 0.3, 1.0), measure_psf(image, 1.0), atol=2e-3)


@pytest.mark.parametrize("case", [{"stars": 0}, {"stars": 3, "galaxies": 0}, {"stars": 0, "galaxies": 0}])
@pytest.mark.parametrize("seed", [1, 3])
def test_fields_without_stars(case, seed):
    """Galaxies are not taken for stars, and a few stars are not enough."""
    with pytest.raises(
        ValueError, match=r"image must have at least 5 isolated, unsaturated stars .* to measure its PSF, got \d"
    ):
        measure_psf(field(3.0, seed=seed, **case), 1.0)


def test_image_without_good_pixels():
    with pytest.raises(ValueError, match=r"to measure its PSF, got 0"):
        measure_psf(np.full((50, 60), np.nan), 1.0)


@pytest.mark.slow
def test_psf_of_real_fields(data_dir):
    """Hyper Suprime-Cam in g, r and i: the seeing of the survey (Aihara et al. 2019, doi:10.1093/pasj/psz103)."""
    widths = {}
    for band in "GRI":
        image = fits.getdata(data_dir / "deepdisc_fields" / "hsc" / f"{band}-10054-0,2-c1_scarlet_img.fits")
        pixels, noise = subtract_sky(image)
        widths[band] = 0.168 * fwhm_of(measure_psf(pixels, noise))
    assert 0.5 < widths["I"] < 0.65
    assert widths["I"] < widths["R"] < widths["G"] < 0.85


def test_bright_stars_stand_out_of_many_small_galaxies():
    """Galaxies a little larger than stars are faint, and do not hide them."""
    rng = np.random.default_rng(5)
    image = field(3.0, galaxies=0).copy()
    for _ in range(60):
        put(image, *rng.uniform(0, SIZE, 2), np.exp(rng.uniform(6.2, 7.0)), 3.0 * rng.uniform(1.05, 1.4))
    assert fwhm_of(measure_psf(image, 1.0)) == pytest.approx(fwhm_of(true_psf(3.0)), rel=0.03)
