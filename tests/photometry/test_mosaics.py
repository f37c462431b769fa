"""Parts of mosaics."""

import numpy as np
import pytest
from astropy.io import fits

from probdeblend.photometry import open_mosaic
from probdeblend.photometry.images import uncovered


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


def test_parts(mosaic):
    path, image = mosaic
    with open_mosaic(path) as opened:
        assert (opened.name, opened.shape, opened.zero_point) == ("mosaic.fits", (50, 70), 26.0)
        assert opened.pixel_scale == pytest.approx(0.06)
        np.testing.assert_array_equal(opened.data[20:50, 10:40], image[20:50, 10:40])


def test_zeros_are_no_coverage(rng):
    """Blocks of exact zeros; single zeros are pixels."""
    image = rng.normal(size=(60, 60))
    image[:, :20] = 0
    image[30, 40] = 0
    np.testing.assert_array_equal(uncovered(image), np.arange(60)[None] < np.full((60, 1), 20))


def test_pixels_are_read_when_they_are_asked_for(mosaic, monkeypatch):
    """Those of the image, and those of the noise and the data quality that go along with it."""
    path, image = mosaic
    for name in ("ERR", "DQ"):
        fits.append(path, np.ones(image.shape, dtype=np.int16), fits.Header({"EXTNAME": name}))
    read, pixels = [], fits.Section.__getitem__
    monkeypatch.setattr(fits.Section, "__getitem__", lambda self, part: read.append(pixels(self, part)) or read[-1])
    with open_mosaic(path) as opened:
        assert not any(part.size for part in read)
        assert opened.data[:5, :5].shape == (5, 5)
        assert opened.noise[:2, 3:5].tolist() == [[1, 1], [1, 1]]
        assert opened.data[:2, 3:5].mask.all()
        assert max(part.size for part in read) <= 13**2


def test_a_mosaic_has_two_dimensions(tmp_path):
    fits.PrimaryHDU(np.zeros((2, 3, 4))).writeto(tmp_path / "cube.fits")
    opening = open_mosaic(tmp_path / "cube.fits")
    with (
        pytest.raises(ValueError, match=r"cube.fits: the image must have two dimensions \(y, x\), got shape"),
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
