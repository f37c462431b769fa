"""Stamps of a simulated galaxy of known flux, observed as CANDELS F160W would."""

from collections import Counter

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import vela
from probdeblend.scene import Instrument
from probdeblend.surveys import read_library

HST = Instrument.candels_f160w()


def gaussian(side, flux, width):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return flux * np.exp(-(x**2 + y**2) / (2 * width**2)) / (2 * np.pi * width**2)


def observed(stamps, **columns):
    table, skipped = Table({name: [value] * len(stamps) for name, value in columns.items()}), Counter()
    return list(vela.observe_stamps(stamps, table, instrument=HST, skipped=skipped)), skipped


def cube(path, *, columns=("mag_ab", "zero_point", "pixel_scale")):
    pixels = gaussian(96, 60, 4) + 2e-3 * np.random.default_rng(0).normal(size=(3, 96, 96))
    values = {"mag_ab": 25.9463 - 2.5 * np.log10(60), "zero_point": 25.9463, "pixel_scale": 0.0606}
    table = Table({name: np.full(3, values[name]) for name in columns})
    fits.HDUList([fits.PrimaryHDU(pixels), fits.table_to_hdu(table)]).writeto(path)


def test_stamps_of_known_truth_are_observed_anew():
    light = gaussian(96, 400, 4)
    noise = np.random.default_rng(0).normal(size=light.shape)
    magnitude = 28.0 - 2.5 * np.log10(400)
    stamps = [light + 0.01 * noise, light + 0.3 * noise, np.full_like(light, np.nan)]
    found, skipped = observed(stamps, mag_ab=magnitude, zero_point=28.0, pixel_scale=0.06)
    assert skipped == {"its own noise exceeds the instrument's": 1, "missing pixels": 1}
    galaxy, flux = found[0]
    assert galaxy.galaxy_type == -1
    assert flux == pytest.approx(10 ** (-0.4 * (magnitude - HST.zero_point)))
    assert galaxy.auto_flux == pytest.approx(flux, rel=0.05)
    sky = galaxy.pixels[~(np.hypot(*(np.mgrid[:128, :128] - 63.5)) < 30)]
    assert sky.std() == pytest.approx(HST.sky_rms, rel=0.1)


def test_stamps_on_other_pixels_keep_the_noise_that_they_claim():
    """Pixels half the size: the sum of four scatters twice as much as one."""
    stamp = gaussian(256, 100, 8) + 7e-4 * np.random.default_rng(0).normal(size=(256, 256))
    magnitude = HST.zero_point - 2.5 * np.log10(100)
    found, _ = observed([stamp], mag_ab=magnitude, zero_point=HST.zero_point, pixel_scale=0.03)
    galaxy = found[0][0]
    sky = galaxy.pixels[np.hypot(*(np.mgrid[:128, :128] - 63.5)) > 30]
    assert galaxy.sky_rms == HST.sky_rms
    assert sky.std() == pytest.approx(HST.sky_rms, rel=0.1)


@pytest.mark.slow
def test_a_cube_of_one_galaxy(tmp_path):
    cube(tmp_path / "it.fits")
    options = [str(tmp_path / "it.fits"), "--output", str(tmp_path / "vela")]
    answer = CliRunner().invoke(vela.main, options, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    library = read_library(tmp_path / "vela")
    assert library.identity.tolist() == ["it"] * 3
    assert library.origin.tolist() == ["it.fits"] * 3
    assert set(library.flux_kind) == {"true"}
    assert (library.flux_error == 0).all()
    np.testing.assert_allclose(library.flux, 60, rtol=1e-5)


def test_files_that_hold_no_galaxies(tmp_path):
    cube(tmp_path / "cube.fits", columns=("mag_ab", "zero_point"))
    with pytest.raises(ValueError, match="the columns pixel_scale are missing, there are mag_ab, zero_point"):
        vela.read_cube(tmp_path / "cube.fits")
    (tmp_path / "text.fits").write_text("no")
    with pytest.raises(ValueError, match=r"text.fits: not a FITS file, or damaged"):
        vela.read_cube(tmp_path / "text.fits")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"image.fits: must hold a cube of stamps and their table, got other HDUs"):
        vela.read_cube(tmp_path / "image.fits")
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        vela.read_cube(tmp_path / "none.fits")
