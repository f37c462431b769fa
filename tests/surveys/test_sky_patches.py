"""Patches of a survey's own sky, turned at random."""

import numpy as np
import pytest
from astropy.io import fits

from probdeblend.photometry import open_mosaic
from probdeblend.scene import Instrument
from probdeblend.surveys import sky_patches

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
    assert np.abs(np.median(sky.pixels, (1, 2))).max() < 0.3 * HST.sky_rms
    neighbor = (sky.pixels[:, :, 1:] * sky.pixels[:, :, :-1]).mean() / (sky.pixels**2).mean()
    assert neighbor == pytest.approx(0.44, abs=0.12)  # drizzled noise, not white


def test_draws_are_turned_patches(sky):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        patch, rms = sky.draw(rng)
        number = int(np.flatnonzero(sky.sky_rms == rms)[0])
        np.testing.assert_array_equal(np.sort(patch, axis=None), np.sort(sky.pixels[number], axis=None))
        seen.add(patch[0, 0])
    assert len(seen) > 20  # of 12 patches in 8 ways


def test_patches_of_another_size(folder):
    with open_mosaic(folder / "mosaic.fits") as mosaic:
        assert sky_patches([mosaic], HST, size=64, count=2).pixels.shape == (2, 64, 64)


def test_no_sky(tmp_path):
    fits.PrimaryHDU(np.ones((100, 100), dtype=np.float32)).writeto(tmp_path / "small.fits")
    with (
        open_mosaic(tmp_path / "small.fits") as mosaic,
        pytest.raises(ValueError, match="images must have a place of 128 x 128 covered pixels, 60% of them without"),
    ):
        sky_patches([mosaic], HST, count=2)
