"""Patches of a survey's own sky, and simulated pairs in them."""

import numpy as np
import pytest
import torch
from astropy.io import fits

from probdeblend.photometry import open_mosaic
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior
from probdeblend.surveys.sky_patches import magnitude_weights, simulated_in_sky, sky_patches

HST = Instrument.candels_f160w()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("survey")
    image, _ = small
    fits.PrimaryHDU(image.astype(np.float32), fits.Header({"ABMAGZP": 25.9463})).writeto(path / "mosaic.fits")
    return path


@pytest.fixture(scope="module")
def sky(folder):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        return sky_patches([mosaic], HST, count=12, seed=1)


def test_patches_are_sky(folder, sky):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        again = sky_patches([mosaic], HST, count=3, seed=1)
    assert sky.pixels.shape == (12, 128, 128)
    np.testing.assert_array_equal(sky.pixels[:3], again.pixels)
    # The noise that was put in is found again, without the galaxies.
    np.testing.assert_allclose(sky.sky_rms, HST.sky_rms, rtol=0.1)
    assert np.abs(np.median(sky.pixels, (1, 2))).max() < 0.2 * HST.sky_rms
    neighbor = (sky.pixels[:, :, 1:] * sky.pixels[:, :, :-1]).mean() / (sky.pixels**2).mean()
    assert neighbor == pytest.approx(0.44, abs=0.12)  # drizzled noise, not white


def test_blends_in_that_sky(sky):
    batches = list(simulated_in_sky(sky, 70, prior=Prior.published(), seed=2))
    assert [len(blend) for blend in batches] == [64, 6]
    blend = batches[0]
    assert len(torch.unique(torch.cat([batch.identity.ravel() for batch in batches]))) == 140
    left = (blend.image[:, 0] - blend.isolated[:, :, 0].sum(1)).double()
    faint = blend.isolated[:, :, 0].sum(1) < 0.1 * blend.sky_rms[:, None, None]
    scatter = left[faint].std()
    assert float(scatter) == pytest.approx(float(sky.sky_rms.mean()), rel=0.1)
    # Photons scatter more where the galaxies are bright.
    assert left[blend.isolated[:, :, 0].sum(1) > 30 * HST.sky_rms].std() > 1.2 * scatter


def test_simulated_magnitudes_are_those_of_the_survey(sky):
    rng = np.random.default_rng(1)
    target = rng.normal(22.5, 0.4, 2000)
    blends = simulated_in_sky(sky, 128, prior=Prior.default(), magnitudes=target, seed=2)
    flux = torch.cat([blend.flux[..., 0] for blend in blends]).double().numpy()
    found = HST.zero_point - 2.5 * np.log10(flux)
    # 128 pairs: four standard errors, and half a bin.
    assert found.mean() == pytest.approx(22.5, abs=0.15)
    assert found.std() == pytest.approx(0.43, abs=0.12)


def test_weights_match_the_magnitudes():
    rng = np.random.default_rng(0)
    sampled = rng.uniform(20, 25, (4000, 2))
    target = 25 - rng.exponential(1.0, 20_000)
    weight = magnitude_weights(sampled, target)
    assert weight.mean() == pytest.approx(1)
    edges = np.arange(20, 25.5, 0.5)
    found = np.histogram(sampled.ravel(), edges, weights=np.repeat(weight, 2))[0]
    wanted = np.histogram(target, edges)[0]
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=0.002)
    with pytest.raises(
        ValueError, match="the survey must have galaxies of magnitude 20 to 25, as the blends do, got none"
    ):
        magnitude_weights(sampled, [15.0])


def test_no_sky(tmp_path):
    fits.PrimaryHDU(np.ones((100, 100), dtype=np.float32)).writeto(tmp_path / "small.fits")
    with (
        open_mosaic(tmp_path / "small.fits") as mosaic,
        pytest.raises(ValueError, match="images must have a place of 128 x 128 covered pixels, 60% of them without"),
    ):
        sky_patches([mosaic], HST, count=2)
