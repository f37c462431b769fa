"""From files to libraries with contact sheets, on mosaics that the package simulates and on real ones."""

from collections import Counter

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.surveys import collect
from probdeblend.surveys.files import read_library
from probdeblend.surveys.selection import Selection


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    fitted = collect.fit_aperture_correction
    monkeypatch.setattr(collect, "fit_aperture_correction", lambda instrument: fitted(instrument, count=96))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    hst = Instrument.candels_f160w()
    image, catalog = simulate_mosaic(12, (400, 400), prior=Prior.published(), instrument=hst, seed=3)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1, "CRPIX2": 1, "ABMAGZP": 25.9463})
    header.update({"CDELT1": -0.06 / 3600, "CDELT2": 0.06 / 3600, "CRVAL1": 53.0, "CRVAL2": -27.0})
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(folder / "mosaic.fits")
    catalog.rename_column("magnitude", "H")
    catalog.write(folder / "catalog.csv")
    fits.PrimaryHDU(np.full((400, 400), 3e-3, dtype=np.float32)).writeto(folder / "rms.fits")
    return folder


def collected(survey, **options):
    settings = {"catalog": survey / "catalog.csv", "columns": {"magnitude": "H"}} | options
    return collect.collect_mosaics([survey / "mosaic.fits"], **settings)


def test_a_library_of_a_mosaic(survey, tmp_path):
    found = collected(survey, rms=survey / "rms.fits")
    assert len(found.library) >= 5
    assert np.isfinite(found.library.ra).all()
    assert np.abs(found.library.dec + 27).max() < 0.01
    names = collect.write_collection(tmp_path / "lone", found)
    assert names == ["library.h5", "keep.csv", "contact-001.png"]
    assert sorted(entry.name for entry in (tmp_path / "lone").iterdir()) == sorted(names)
    assert len(read_library(tmp_path / "lone")) == len(found.library)
    text = collect.report(found)
    assert f"{len(found.library)} galaxies cut out" in text
    assert sum(found.skipped.values()) + len(found.library) == 12
    with pytest.raises(FileExistsError, match="lone: exists already"):
        collect.write_collection(tmp_path / "lone", found)
    collect.write_collection(tmp_path / "lone", found, overwrite=True)
    both = collect.read_libraries([tmp_path / "lone", tmp_path / "lone"])
    assert len(set(both.identity)) == len(set(found.library.identity))


@pytest.mark.slow
def test_without_a_catalog(survey):
    found = collected(survey, catalog=None, columns=None)
    assert len(found.library) >= 5


@pytest.mark.slow
def test_fluxes_in_another_unit(survey, tmp_path):
    """The same image in nJy: fluxes times the ratio of the units, corrections and relative errors as before."""
    with fits.open(survey / "mosaic.fits") as hdus:
        factor = 10 ** (0.4 * (31.4 - 25.9463))
        hdus[0].header["ABMAGZP"] = 31.4
        fits.PrimaryHDU(hdus[0].data * factor, hdus[0].header).writeto(tmp_path / "mosaic.fits")
    options = {"catalog": survey / "catalog.csv", "columns": {"magnitude": "H"}}
    first = collected(survey).library
    second = collect.collect_mosaics([tmp_path / "mosaic.fits"], **options).library
    np.testing.assert_allclose(second.flux, factor * first.flux, rtol=1e-3)
    np.testing.assert_allclose(second.flux_error, factor * first.flux_error, rtol=1e-2)
    np.testing.assert_allclose(second.magnitude, first.magnitude, atol=2e-3)


def test_a_mapping_to_sky_positions_wins(survey):
    table = Table.read(survey / "catalog.csv")
    table["RA"] = 53.0 - table["x"] * 0.06 / 3600 / np.cos(np.radians(27.0))
    table["DEC"] = -27.0 + table["y"] * 0.06 / 3600
    table["x"] = 5000.0
    table.write(survey / "sky.csv", overwrite=True)
    columns = {"ra": "RA", "dec": "DEC", "magnitude": "H"}
    assert len(collected(survey, catalog=survey / "sky.csv", columns=columns).library) >= 5


def test_files_that_do_not_fit(survey, tmp_path):
    mosaic = survey / "mosaic.fits"
    with pytest.raises(ValueError, match="a catalog and an rms map belong to one image, got 2 images"):
        collect.collect_mosaics([mosaic, mosaic], catalog=survey / "catalog.csv")
    with pytest.raises(ValueError, match="the columns 'magnitude' are missing, there are id, x, y, H"):
        collected(survey, columns={})
    with pytest.raises(ValueError, match="no galaxy is left to cut out: 12 too faint"):
        collected(survey, selection=Selection(10.0))
    Table({"x": [], "y": [], "magnitude": []}).write(tmp_path / "empty.ecsv")
    with pytest.raises(ValueError, match="the catalog must have rows, got none"):
        collected(survey, catalog=tmp_path / "empty.ecsv", columns={})
    fits.PrimaryHDU(np.ones((10, 10))).writeto(tmp_path / "small.fits")
    with pytest.raises(ValueError, match=r"the rms map must have the mosaic's shape \(400, 400\), got \(10, 10\)"):
        collected(survey, rms=tmp_path / "small.fits")
    with fits.open(mosaic) as hdus:
        hdus[0].header["CDELT2"] = 0.2 / 3600
        hdus[0].header["CDELT1"] = -0.2 / 3600
        hdus.writeto(tmp_path / "coarse.fits")
    with pytest.raises(ValueError, match=r'coarse.fits: pixels must be 0.06" within 2%, got 0.2"'):
        collect.collect_mosaics([tmp_path / "coarse.fits"])


def test_sky_positions_need_coordinates(survey, tmp_path):
    with fits.open(survey / "mosaic.fits") as hdus:
        fits.PrimaryHDU(hdus[0].data).writeto(tmp_path / "bare.fits")
    Table({"ra": [53.0], "dec": [-27.0], "magnitude": [20.0]}).write(tmp_path / "sky.csv")
    with pytest.raises(ValueError, match=r"bare.fits: has no world coordinates, so the catalog must give x and y"):
        collect.collect_mosaics([tmp_path / "bare.fits"], catalog=tmp_path / "sky.csv")


def cube(path, *, columns=("mag_ab", "zero_point", "pixel_scale")):
    y, x = np.mgrid[:96, :96] - 47.5
    light = 60 * np.exp(-(x**2 + y**2) / 32) / (2 * np.pi * 16)
    pixels = light + 2e-3 * np.random.default_rng(0).normal(size=(3, 96, 96))
    values = {"mag_ab": 25.9463 - 2.5 * np.log10(60), "zero_point": 25.9463, "pixel_scale": 0.0606}
    table = Table({name: np.full(3, values[name]) for name in columns})
    fits.HDUList([fits.PrimaryHDU(pixels), fits.table_to_hdu(table)]).writeto(path)


@pytest.mark.slow
def test_a_cube_of_one_galaxy(tmp_path):
    cube(tmp_path / "cube.fits")
    found = collect.collect_reobserved(tmp_path / "cube.fits", identity="it")
    assert found.library.identity.tolist() == ["it"] * 3
    assert set(found.library.flux_kind) == {"true"}
    np.testing.assert_allclose(found.library.flux, 60, rtol=1e-5)
    assert set(collect.collect_reobserved(tmp_path / "cube.fits").library.identity) == {"cube"}


@pytest.mark.slow
def test_files_that_hold_no_galaxies(tmp_path):
    cube(tmp_path / "cube.fits", columns=("mag_ab", "zero_point"))
    with pytest.raises(ValueError, match="the columns pixel_scale are missing, there are mag_ab, zero_point"):
        collect.collect_reobserved(tmp_path / "cube.fits")
    (tmp_path / "text.fits").write_text("no")
    with pytest.raises(ValueError, match=r"text.fits: not a FITS file, or damaged"):
        collect.collect_reobserved(tmp_path / "text.fits")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"image.fits: neither GalSim's RealGalaxy catalog nor a cube"):
        collect.collect_reobserved(tmp_path / "image.fits")
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        collect.collect_reobserved(tmp_path / "none.fits")


@pytest.mark.slow
def test_lone_galaxies_of_candels(data_dir):
    """Of the seven cut-outs: at least ten galaxies, some kept and some rejected, and the two depths are seen."""
    paths = sorted((data_dir / "candels_f160w").glob("*.fits"))
    found = collect.collect_mosaics(paths, hdu="1", selection=Selection(24.7))
    assert len(found.library) >= 10
    assert 5 <= found.library.keep.sum() < len(found.library)
    reasons = Counter(found.library.quality.tolist())
    straddling = found.library.origin == "gds_H.gf18160.fits"
    assert (found.library.quality[straddling] & 32 > 0).all()
    assert reasons[0] == found.library.keep.sum()
    assert ((found.library.sky_rms > 1.5e-3) & (found.library.sky_rms < 9e-3)).all()
