"""Stamps and their sky noise."""

import numpy as np
import pytest
from astropy import units as u
from astropy.wcs import WCS

from probdeblend.deblending import EXAMPLE_PATH, deblend_stamps, sep_posterior
from probdeblend.deblending.stamps import stamp_noise
from probdeblend.photometry.images import read_stamps
from probdeblend.posterior.draws import Posterior

ROWS, COLUMNS = np.mgrid[:128, :128]
PAIR = sum(flux * np.exp(-((COLUMNS - x) ** 2 + (ROWS - 64) ** 2) / 18) for x, flux in ((63, 1.0), (77, 0.5)))


@pytest.fixture
def stamps(rng):
    """Two stamps of a pair in white noise, the second one three times as noisy."""
    return PAIR + np.array([0.01, 0.03])[:, None, None] * rng.normal(size=(2, 128, 128))


def deblender(stamps, *, sky_rms, draws=10, passes=1, seed=0):
    flux = sep_posterior(np.asarray(stamps), sky_rms, draws=draws, seed=seed).flux.values
    unit = str(getattr(stamps, "unit", ""))
    x, y = np.full((2, len(stamps), 2), 63.5)
    return Posterior.from_draws(flux, flux_kind="auto", method="sep", flux_unit=unit, x=x, y=y)


def test_noise_is_measured_in_each_stamp(stamps):
    noise, factor = stamp_noise(stamps)
    np.testing.assert_allclose(noise, [0.01, 0.03], rtol=0.05)
    assert factor == 1


def test_noise_that_is_known(stamps):
    assert stamp_noise(stamps, 0.02)[0] == 0.02
    rms = np.ones_like(stamps) * np.array([0.02, 0.06])[:, None, None]
    scaled, factor = stamp_noise(stamps, rms)
    assert factor == pytest.approx(0.5, rel=0.05)
    np.testing.assert_allclose(scaled, factor * rms)
    as_is, factor = stamp_noise(stamps, rms, rms_as_is=True)
    np.testing.assert_array_equal(as_is, rms)
    assert factor == 1
    with pytest.raises(ValueError, match="rms must be given if the sky noise cannot be measured, got None"):
        stamp_noise(np.zeros((1, 128, 128)))


def test_stamps_become_one_catalog(stamps):
    result = deblend_stamps(stamps * u.nJy, deblender, zero_point=31.4, draws=20, seed=3)
    assert len(result.posterior) == 2
    assert result.posterior.flux.sizes["draw"] == 20
    assert result.catalog["blend"].tolist() == [0, 0, 1, 1]
    assert result.catalog["flux"].unit == u.nJy
    np.testing.assert_allclose(result.catalog["mag"].value, 31.4 - 2.5 * np.log10(result.catalog["flux"].value))
    assert result.corners["x0"].tolist() == [0, 0]
    assert result.sky_rms == pytest.approx(0.02, rel=0.05)
    assert result.image is result.noise_factor is result.detection is None


def test_the_example_has_its_noise_and_its_place():
    found = read_stamps(EXAMPLE_PATH)
    assert found.data.shape == (1, 128, 128)
    result = deblend_stamps(found.data, deblender, wcs=found.wcs)
    assert result.sky_rms == pytest.approx(0.003, rel=0.1)
    assert isinstance(found.wcs, WCS)
    np.testing.assert_allclose(result.catalog["ra"].to_value("deg"), 53.1227, atol=1e-3)
