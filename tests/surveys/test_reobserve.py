"""Galaxies of other surveys and of simulations, observed again."""

from collections import Counter

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry.sky import dilate
from probdeblend.scene import Instrument
from probdeblend.surveys import Quality, reobserve, reobserve_galaxies
from probdeblend.surveys.reobserve import observe_real_galaxies, observe_stamps

HST = Instrument.candels_f160w()


def test_stamps_of_known_truth_are_observed_anew(hst):
    y, x = np.mgrid[:96, :96] - 47.5
    light = 400 * np.exp(-(x**2 + y**2) / (2 * 4.0**2)) / (2 * np.pi * 16)
    noise = np.random.default_rng(0).normal(size=light.shape)
    stamps = [light + level * noise for level in (0.01, 0.3)]
    skipped = Counter()
    magnitude = 28.0 - 2.5 * np.log10(400)
    table = Table({"mag_ab": [magnitude] * 2, "zero_point": [28.0] * 2, "pixel_scale": [0.06] * 2})
    found = list(observe_stamps(stamps, table, identity="one", instrument=hst, skipped=skipped))
    assert skipped == {"its own noise exceeds the instrument's": 1}
    galaxy, flux = found[0]
    assert (galaxy.identity, galaxy.galaxy_type) == ("one", -1)
    assert flux == pytest.approx(10 ** (-0.4 * (magnitude - hst.zero_point)))
    assert galaxy.auto_flux == pytest.approx(flux, rel=0.05)
    sky = galaxy.pixels[~(np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 30)]
    assert sky.std() == pytest.approx(hst.sky_rms, rel=0.1)


@pytest.mark.slow
def test_cosmos_galaxies_are_observed_anew(hst, data_dir):
    """Fluxes by their magnitudes, and the noise of a CANDELS image all over the stamp."""
    catalog = galsim.RealGalaxyCatalog("real_galaxy_catalog.fits", dir=str(data_dir / "cosmos_f814w"))
    skipped = Counter()
    found = list(observe_real_galaxies(catalog, instrument=hst, skipped=skipped))
    assert len(found) + skipped.total() == 100
    assert len(found) >= 5
    magnitude = dict(zip(map(str, catalog.ident), catalog.mag, strict=True))
    flagged = 0
    for galaxy in found:
        wanted = 10 ** (-0.4 * (magnitude[galaxy.identity.split(":")[1]] - hst.zero_point))
        assert 0.75 < galaxy.auto_flux / wanted < 1.1
        flagged += bool(galaxy.quality & Quality.TWO_NOISE_LEVELS)
        sky = galaxy.pixels[dilate(galaxy.segmentation.astype(np.int32)) == 0].reshape(-1)
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.06)
        # Around the galaxy, where its own old noise lies, as well.
        near = dilate(galaxy.segmentation.astype(np.int32), margin=14, growth=0.5) > 0
        ring = galaxy.pixels[near & (dilate(galaxy.segmentation.astype(np.int32)) == 0)]
        if not galaxy.quality:
            assert np.median(np.abs(ring - np.median(ring))) * 1.4826 == pytest.approx(hst.sky_rms, rel=0.25)
    assert flagged <= 1


def test_stamps_on_other_pixels_keep_the_noise_that_they_claim(hst):
    """Pixels half the size: the sum of four scatters twice as much as one."""
    y, x = np.mgrid[:256, :256] - 127.5
    light = 100 * np.exp(-(x**2 + y**2) / (2 * 8.0**2)) / (2 * np.pi * 64)
    stamp = light + 7e-4 * np.random.default_rng(0).normal(size=light.shape)
    magnitude = hst.zero_point - 2.5 * np.log10(100)
    table = Table({"mag_ab": [magnitude], "zero_point": [hst.zero_point], "pixel_scale": [0.03]})
    settings = {"identity": "one", "instrument": hst, "skipped": Counter()}
    galaxy, _ = next(iter(observe_stamps([stamp], table, **settings)))
    sky = galaxy.pixels[np.hypot(*(np.mgrid[:128, :128] - 63.5)) > 30]
    assert galaxy.sky_rms == hst.sky_rms
    assert sky.std() == pytest.approx(hst.sky_rms, rel=0.1)


def cube(path, *, columns=("mag_ab", "zero_point", "pixel_scale")):
    y, x = np.mgrid[:96, :96] - 47.5
    light = 60 * np.exp(-(x**2 + y**2) / 32) / (2 * np.pi * 16)
    pixels = light + 2e-3 * np.random.default_rng(0).normal(size=(3, 96, 96))
    values = {"mag_ab": 25.9463 - 2.5 * np.log10(60), "zero_point": 25.9463, "pixel_scale": 0.0606}
    table = Table({name: np.full(3, values[name]) for name in columns})
    fits.HDUList([fits.PrimaryHDU(pixels), fits.table_to_hdu(table)]).writeto(path)


@pytest.mark.slow
def test_a_cube_of_one_galaxy(tmp_path, monkeypatch, correction):
    monkeypatch.setattr(reobserve, "fit_aperture_correction", lambda instrument: correction)
    cube(tmp_path / "cube.fits")
    found = reobserve_galaxies(tmp_path / "cube.fits", instrument=HST, identity="it")
    assert found.library.identity.tolist() == ["it"] * 3
    assert set(found.library.flux_kind) == {"true"}
    np.testing.assert_allclose(found.library.flux, 60, rtol=1e-5)
    assert set(reobserve_galaxies(tmp_path / "cube.fits", instrument=HST).library.identity) == {"cube"}


@pytest.mark.slow
def test_files_that_hold_no_galaxies(tmp_path):
    cube(tmp_path / "cube.fits", columns=("mag_ab", "zero_point"))
    with pytest.raises(ValueError, match="the columns pixel_scale are missing, there are mag_ab, zero_point"):
        reobserve_galaxies(tmp_path / "cube.fits", instrument=HST)
    (tmp_path / "text.fits").write_text("no")
    with pytest.raises(ValueError, match=r"text.fits: not a FITS file, or damaged"):
        reobserve_galaxies(tmp_path / "text.fits", instrument=HST)
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"image.fits: neither GalSim's RealGalaxy catalog nor a cube"):
        reobserve_galaxies(tmp_path / "image.fits", instrument=HST)
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        reobserve_galaxies(tmp_path / "none.fits", instrument=HST)
