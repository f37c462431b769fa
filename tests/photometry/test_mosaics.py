"""Windows of mosaics, and catalogs of any columns."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry import open_mosaic
from probdeblend.photometry.mosaics import read_columns


@pytest.fixture
def mosaic(tmp_path, rng):
    image = rng.normal(size=(50, 70)).astype(">f4")
    image[3, 4] = np.inf
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1, "CRPIX2": 1, "ABMAGZP": 26.0})
    header.update(
        {"CDELT1": -0.06 / 3600, "CDELT2": 0.06 / 3600, "CRVAL1": 53.0, "CRVAL2": -27.0, "BUNIT": "electron/s"}
    )
    fits.PrimaryHDU(image, header).writeto(tmp_path / "mosaic.fits")
    return tmp_path / "mosaic.fits", image


def test_windows(mosaic):
    path, image = mosaic
    with open_mosaic(path) as opened:
        assert (opened.name, opened.shape, opened.zero_point) == ("mosaic.fits", (50, 70), 26.0)
        assert opened.pixel_scale == pytest.approx(0.06)
        inside = opened.window(10, 20, 30)
        assert inside.dtype == np.float64
        np.testing.assert_array_equal(inside, image[20:50, 10:40])
        over = opened.window(-5, -3, 12)
        assert np.isnan(over[:3]).all()
        assert np.isnan(over[:, :5]).all()
        assert np.isnan(over[6, 9])  # an infinite pixel
        np.testing.assert_array_equal(over[3:6, 5:], image[:3, :7])
        assert np.isnan(opened.window(500, 0, 4)).all()


def test_zeros_are_no_coverage(tmp_path, rng):
    """Blocks of exact zeros, wherever a window ends; single zeros are pixels."""
    image = rng.normal(size=(60, 60))
    image[:, :20] = 0
    image[30, 40] = 0
    fits.PrimaryHDU(image).writeto(tmp_path / "drizzled.fits")
    with open_mosaic(tmp_path / "drizzled.fits") as opened:
        whole = opened.window(0, 0, 60)
        assert np.isnan(whole[:, :20]).all()
        assert whole[30, 40] == 0
        assert np.isfinite(whole[:, 20:]).all()
        for corner in (18, 19):
            np.testing.assert_array_equal(opened.window(corner, 5, 10), whole[5:15, corner : corner + 10])


def test_pixels_are_read_when_they_are_asked_for(mosaic):
    with open_mosaic(mosaic[0]) as opened:
        assert not opened.hdu._data_loaded
        opened.window(0, 0, 5)
        assert not opened.hdu._data_loaded


def test_a_mosaic_has_two_dimensions(tmp_path):
    fits.PrimaryHDU(np.zeros((2, 3, 4))).writeto(tmp_path / "cube.fits")
    opening = open_mosaic(tmp_path / "cube.fits")
    with (
        pytest.raises(ValueError, match=r"cube.fits: the mosaic must have two dimensions \(y, x\), got shape"),
        opening,
    ):
        pass
    opening = open_mosaic(tmp_path / "none.fits")
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"), opening:
        pass


def test_errors_while_a_mosaic_is_open_stay_what_they_are(mosaic):
    opening = open_mosaic(mosaic[0])
    with pytest.raises(OSError, match="disk"), opening:
        raise OSError("disk")


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv"])
def test_columns_get_our_names(tmp_path, suffix):
    path = tmp_path / f"catalog.{suffix}"
    Table({"ALPHA": [1.0, 2.0], "DELTA": [3.0, 4.0], "H": [20.0, 21.0], "id": [7, 8]}).write(path)
    names = {"ra": "ALPHA", "dec": "DELTA", "magnitude": "H"}
    table = read_columns(path, names, required=("magnitude",))
    assert {"ra", "dec", "magnitude", "id"} <= set(table.colnames)
    assert table["magnitude"].tolist() == [20.0, 21.0]


def test_missing_columns_are_named(tmp_path):
    path = tmp_path / "catalog.csv"
    Table({"X": [1.0], "Y": [2.0]}).write(path)
    message = r"the columns 'H_MAG' \(for magnitude\) are missing, there are X, Y"
    with pytest.raises(ValueError, match=message):
        read_columns(path, {"magnitude": "H_MAG"}, required=("magnitude",))
    with pytest.raises(ValueError, match=r"the columns 'magnitude' are missing"):
        read_columns(path, {}, required=("magnitude",))
    (tmp_path / "text.fits").write_text("no")
    with pytest.raises(ValueError, match=r"text.fits: not a catalog in FITS, ECSV or CSV"):
        read_columns(tmp_path / "text.fits", {})
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_columns(tmp_path / "none.csv", {})
