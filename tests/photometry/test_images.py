"""Images, maps and PSFs from files, and squares cut out of images."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry import images, read_image, read_psf
from probdeblend.photometry.images import cut_stamps


def write(path, data, *, name="", **cards):
    header = fits.Header()
    header.update(cards)
    fits.PrimaryHDU(data, header).writeto(path)
    return path


def tangent_plane(header, x, y):
    """Sky position by the header's CD matrix alone, with the formulae of the gnomonic projection."""
    offset = np.array([x + 1 - header["CRPIX1"], y + 1 - header["CRPIX2"]])
    matrix = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    xi, eta = np.radians(matrix @ offset)
    ra, dec = np.radians([header["CRVAL1"], header["CRVAL2"]])
    down = np.cos(dec) - eta * np.sin(dec)
    sky = ra + np.arctan2(xi, down), np.arctan2(np.sin(dec) + eta * np.cos(dec), np.hypot(xi, down))
    return np.degrees(sky)


@pytest.fixture
def pixels(rng):
    return rng.normal(size=(20, 30)).astype(np.float32)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">i4", "u1"])
def test_any_type_becomes_native_floats(tmp_path, dtype):
    data = np.arange(600).reshape(20, 30) % 200
    image = read_image(write(tmp_path / "x.fits", data.astype(dtype)))
    assert image.data.dtype == (np.float64 if dtype in (">f8", ">i4") else np.float32)
    assert image.data.dtype.isnative
    np.testing.assert_array_equal(image.data, data)
    assert torch.from_numpy(image.data).shape == (20, 30)
    assert (image.wcs, image.pixel_scale, image.zero_point, image.unit) == (None, None, None, "")


def test_bad_pixels_and_degenerate_axes(tmp_path, pixels):
    pixels[3, 4], pixels[5, 6] = np.nan, np.inf
    image = read_image(write(tmp_path / "x.fits", pixels[None, None]))
    assert image.data.shape == (20, 30)
    assert np.argwhere(~np.isfinite(image.data)).tolist() == [[3, 4], [5, 6]]


def test_compressed_files(tmp_path, pixels):
    plain = write(tmp_path / "x.fits", pixels)
    (tmp_path / "x.fits.gz").write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_image(tmp_path / "x.fits.gz").data, pixels)
    fits.CompImageHDU(pixels, name="SCI", quantize_level=0, compression_type="GZIP_1").writeto(tmp_path / "x.fz")
    np.testing.assert_array_equal(read_image(tmp_path / "x.fz").data, pixels)


def test_units_and_zero_points(tmp_path, pixels):
    hst = {"BUNIT": "ELECTRONS/S", "PHOTFLAM": 1.9106037e-20, "PHOTPLAM": 15369.18}
    image = read_image(write(tmp_path / "hst.fits", pixels, **hst))
    assert u.Unit(image.unit) == u.electron / u.s
    # The sum of the published formula: -21.1 AB at the pivot wavelength.
    assert image.zero_point == pytest.approx(-2.5 * np.log10(1.9106037e-20) - 5 * np.log10(15369.18) - 2.408)
    assert image.zero_point == pytest.approx(25.956, abs=1e-3)
    counts = read_image(write(tmp_path / "raw.fits", pixels, **(hst | {"BUNIT": "ELECTRONS"})))
    assert (counts.unit, counts.zero_point) == ("electron", None)
    assert read_image(write(tmp_path / "card.fits", pixels, **hst, MAGZERO=25.9463)).zero_point == 25.9463
    assert read_image(write(tmp_path / "e.fits", pixels, BUNIT="e-/s")).unit == "electron / s"
    assert read_image(write(tmp_path / "adu.fits", pixels, BUNIT="weird thing")).unit == "weird thing"


def test_choosing_an_hdu(tmp_path, pixels):
    path = tmp_path / "x.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(pixels, name="SCI"), fits.ImageHDU(2 * pixels, name="WHT")]
    fits.HDUList(hdus).writeto(path)
    for hdu in (1, "1", "SCI", "sci"):
        np.testing.assert_array_equal(read_image(path, hdu=hdu).data, pixels)
    chosen = read_image(path)
    np.testing.assert_array_equal(chosen.data, pixels)
    assert chosen.notes == (f"{path}: the image is SCI,1, one of 2",)
    images = r"1 or SCI,1 \(30 x 20\); 2 or WHT,1 \(30 x 20\)"
    with pytest.raises(ValueError, match=rf"x.fits: hdu must be one of {images}, got None"):
        read_image(path, kind="ERR")  # a weight may be anything
    for hdu in (0, 7, "MODEL", "SCI,2"):
        with pytest.raises(ValueError, match=rf"x.fits: hdu must be one of {images}, got {hdu}"):
            read_image(path, hdu=hdu)


def test_of_many_hdus_some_are_named(tmp_path, pixels):
    path = tmp_path / "many.fits"
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(pixels) for _ in range(12))]).writeto(path)
    says = rf"hdu must be one of 1 \(30 x 20\); .*8 \(30 x 20\); 4 more, got None; write '{path}\[1\]'"
    with pytest.raises(ValueError, match=says):
        read_image(path)


def test_hdus_of_one_name_differ_in_their_version(tmp_path, pixels):
    path = tmp_path / "chips.fits"
    hdus = [fits.ImageHDU(version * pixels, name="SCI", ver=version) for version in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    for choice in ("[SCI,2]", "[sci, 2]", "[2]"):
        np.testing.assert_array_equal(read_image(f"{path}{choice}").data, 2 * pixels)
    np.testing.assert_array_equal(read_image(path, hdu="SCI,1").data, pixels)
    for hdu in (None, "SCI", "SCI,3"):
        with pytest.raises(ValueError, match=rf"hdu must be one of 1 or SCI,1 .*; 2 or SCI,2 .*, got {hdu}"):
            read_image(path, hdu=hdu)
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        read_image(f"{tmp_path}/none.fits[SCI]")
    path.rename(tmp_path / "chips.fits[1]")
    with pytest.raises(ValueError, match="got None"):  # it is the name of the file
        read_image(tmp_path / "chips.fits[1]")


def test_unreadable_files(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match=r"none.fits: no such file"):
        read_image(tmp_path / "none.fits")
    text = tmp_path / "text.fits"
    text.write_text("This is no image.\n" * 500)
    empty = tmp_path / "empty.fits"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(ValueError, match=rf"{path.name}: not a FITS file, or damaged"):
            read_image(path)
    whole = write(tmp_path / "whole.fits", rng.normal(size=(90, 90)))
    cut = tmp_path / "cut.fits"
    cut.write_bytes(whole.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"cut.fits: not a FITS file, or damaged \(File may have been truncated"):
        read_image(cut)
    tiles = tmp_path / "tiles.fits"
    fits.CompImageHDU(rng.normal(size=(90, 90)).astype("f4"), compression_type="GZIP_1").writeto(tiles)
    content = bytearray(tiles.read_bytes())
    content[-6000:-3000] = b"\x07" * 3000
    tiles.write_bytes(content)
    with pytest.raises(ValueError, match=r"tiles.fits: not a FITS file, or damaged"):
        read_image(tiles)


def test_what_is_packed_may_hold_as_much_as_can_be_read_at_once(tmp_path, pixels, monkeypatch):
    content = write(tmp_path / "x.fits", pixels).read_bytes()
    for number, pack in enumerate((gzip.compress, bz2.compress, lzma.compress)):
        path = tmp_path / f"{number}.fits"
        path.write_bytes(pack(content))
        np.testing.assert_array_equal(read_image(path).data, pixels)
    monkeypatch.setattr(images, "LARGEST_PACKED", 2**19)
    (tmp_path / "bomb.fits").write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(ValueError, match=r"bomb.fits: must be unpacked first, as it holds more than"):
        read_image(tmp_path / "bomb.fits")


@pytest.mark.parametrize("sides", [(0, 20), (-30, 20), (10**6, 1)])
def test_sides_that_no_image_has_are_refused(tmp_path, pixels, sides):
    content = write(tmp_path / "x.fits", pixels).read_bytes()
    for axis, size, claimed in ((1, 30, sides[0]), (2, 20, sides[1])):
        content = content.replace(b"NAXIS%d  =%21d" % (axis, size), b"NAXIS%d  =%21d" % (axis, claimed))
    with (tmp_path / "y.fits").open("wb") as file:
        file.write(content[:2880])
        file.truncate(2880 * (1 if min(sides) < 1 else 1390))
    with pytest.raises(ValueError, match=r"y.fits: the image must have sides of 1 to 262144, got shape \(") as refused:
        read_image(tmp_path / "y.fits")
    assert str(sides[::-1]) in str(refused.value)


def test_files_whose_checksums_are_not_verified_say_so(tmp_path, pixels, monkeypatch):
    fits.PrimaryHDU(pixels).writeto(tmp_path / "x.fits", checksum=True)
    assert read_image(tmp_path / "x.fits").notes == ()
    monkeypatch.setattr(images, "LARGEST_CHECKED", 100)
    assert "checksums are not verified" in read_image(tmp_path / "x.fits").notes[0]


def test_what_does_not_agree_with_its_checksum_is_refused(tmp_path, pixels):
    path = tmp_path / "x.fits"
    fits.PrimaryHDU(pixels).writeto(path, checksum=True)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_image(path).data, pixels)
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(ValueError, match=r"x.fits: not a FITS file, or damaged \(Checksum verification failed"):
        read_image(path)
    packed = gzip.compress(whole)
    damaged = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    for content in (damaged, packed[:-8], packed[:-2000]):
        (tmp_path / "x.fits.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.fits.gz: not a FITS file, or damaged \((CRC|Compressed file ended)"):
            read_image(tmp_path / "x.fits.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_small_file_that_claims_gigabytes_is_refused_before_they_are_allocated(tmp_path, pixels, pack):
    content = write(tmp_path / "x.fits", pixels).read_bytes()
    for axis, size in ((1, 30), (2, 20)):
        content = content.replace(b"NAXIS%d  =%21d" % (axis, size), b"NAXIS%d  =%21d" % (axis, 60000))
    (tmp_path / "y.fits").write_bytes(pack(content))
    with pytest.raises(ValueError, match=r"y.fits: not a FITS file, or damaged \((File may|buffer is too small)"):
        read_image(tmp_path / "y.fits")


def test_files_without_an_image(tmp_path):
    table = tmp_path / "table.fits"
    Table({"flux": [1.0]}).write(table)
    with pytest.raises(ValueError, match=r"table.fits: no HDU holds an image"):
        read_image(table)
    cube = write(tmp_path / "cube.fits", np.ones((3, 20, 30)))
    with pytest.raises(ValueError, match=r"cube.fits: the image must have two dimensions \(y, x\), got .*3, 20, 30"):
        read_image(cube)


LINEAR = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 53.1,
    "CRVAL2": -27.8,
    "CRPIX1": -3717.5,
    "CRPIX2": -1889.5,
    "CD1_1": -0.06 / 3600,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": 0.06 / 3600,
    "A_ORDER": 2,
    "B_ORDER": 2,
    "A_2_0": 1e-5,
    "B_0_2": 3e-5,
}


def test_sip_terms_count_only_where_announced(tmp_path, pixels):
    linear = read_image(write(tmp_path / "linear.fits", pixels, **LINEAR))
    assert linear.pixel_scale == pytest.approx(0.06, rel=1e-6)
    sky = linear.wcs.pixel_to_world(10, 12)
    np.testing.assert_allclose([sky.ra.deg, sky.dec.deg], tangent_plane(LINEAR, 10, 12), atol=1e-9)
    announced = LINEAR | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
    bent = read_image(write(tmp_path / "bent.fits", pixels, **announced))
    assert bent.wcs.pixel_to_world(10, 12).separation(sky) > 5 * u.arcsec


def with_card(path, pixels, name, text, **cards):
    """Write an image with one card as it stands, whatever astropy thinks of it."""
    content = write(path, pixels, **LINEAR | cards | {name: 1.5}).read_bytes()
    start = content.index(f"{name:8}=".encode())
    path.write_bytes(content[:start] + f"{name:8}= {text}".encode().ljust(80) + content[start + 80 :])
    return path


@pytest.mark.parametrize("text", ["25,9463", "T", "NaN", "0", "-25.", "'25.9 mag'", "'n/a'", "1E999"])
def test_zero_points_that_are_no_numbers_are_left_out_and_noted(tmp_path, pixels, text):
    image = read_image(with_card(tmp_path / "x.fits", pixels, "ABMAGZP", text))
    assert image.zero_point is None
    (note,) = image.notes
    assert "x.fits: ABMAGZP must be a positive number, got" in note
    flam = with_card(tmp_path / "y.fits", pixels, "PHOTFLAM", text, BUNIT="electron/s", PHOTPLAM=15369.18)
    assert read_image(flam).zero_point is None
    other = with_card(tmp_path / "z.fits", pixels, "ABMAGZP", text, MAGZPT=26.0)
    assert read_image(other).zero_point == 26


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("CRPIX1", "1O.5", "CRPIX1 must be a number, got '1O.5'"),
        ("CRVAL1", "'150.1'", "CRVAL1 must be a number, got '150.1'"),
        ("CRVAL2", "2,25", "CRVAL2 must be a number, got '2,25'"),
        ("CD1_1", "NaN", "CD1_1 must be a number, got 'NaN'"),
        ("CD2_2", "T", "CD2_2 must be a number, got True"),
        ("WCSAXES", "100000", "WCSAXES must be of at most 9 axes, got 100000"),
        ("CD1_9999", "1.0", "CD1_9999 must be of at most 9 axes, got 1"),
        ("BUNIT", "MJy/sr", r"not a FITS file, or damaged \(Unparsable card \(BUNIT\)"),
    ],
)
def test_cards_that_cannot_be_used_are_named(tmp_path, pixels, name, text, message):
    with pytest.raises(ValueError, match=f"x.fits: {message}"):
        read_image(with_card(tmp_path / "x.fits", pixels, name, text))


CDELT = {f"CD{i}_{j}": None for i in (1, 2) for j in (1, 2)}


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        ({"CD1_1": 0.0, "CD2_2": 0.0}, "that have no meaning (PCi_ja matrix is singular)"),
        ({"CD1_2": LINEAR["CD1_1"], "CD2_1": LINEAR["CD2_2"]}, "without a pair of celestial axes of any scale"),
        (CDELT | {"CDELT1": 0.0, "CDELT2": 1e-5}, "that have no meaning (PCi_ja matrix is singular)"),
        (CDELT, "without CDELT1, CDELT2"),
        ({"CRVAL1": None, "CRVAL2": None}, "without CRVAL1, CRVAL2"),
        ({"CRPIX2": None}, "without CRPIX2"),
        ({"CTYPE2": None}, "that have no meaning (Unmatched celestial axes)"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "without a pair of celestial axes"),
        ({"CRVAL1": 1e300}, "without a pair of celestial axes of any scale"),
        ({"CUNIT1": "furlong"}, "that have no meaning"),
    ],
)
def test_world_coordinates_that_cannot_be_used_are_left_out_and_noted(tmp_path, pixels, cards, reason):
    known = {card: value for card, value in (LINEAR | cards).items() if value is not None}
    image = read_image(write(tmp_path / "x.fits", pixels, **known))
    assert (image.wcs, image.pixel_scale) == (None, None)
    (note,) = image.notes
    assert note.startswith(f"{tmp_path}/x.fits: world coordinates ")
    assert reason in note
    assert note.endswith(" are not used")


@pytest.mark.parametrize(
    ("cards", "gain"),
    [
        ({"BUNIT": "ELECTRONS", "EXPTIME": 500.0}, 1),
        ({"BUNIT": "ELECTRONS/S", "EXPTIME": 500.0}, 500),
        ({"BUNIT": "ELECTRONS/S"}, None),
        ({"BUNIT": "electron/s", "EXPTIME": "500 s"}, None),
        ({"BUNIT": "adu", "GAIN": 2.0, "EXPTIME": 500.0}, 2),
        ({"BUNIT": "DN/SEC", "GAIN": 2.0, "EXPTIME": 500.0}, 1000),
        ({"BUNIT": "counts/s", "EXPTIME": 500.0}, None),
        ({"BUNIT": "uJy", "GAIN": 2.0, "EXPTIME": 500.0}, None),
        ({"GAIN": 2.0, "EXPTIME": 500.0}, None),
    ],
)
def test_cards_may_state_a_gain(tmp_path, pixels, cards, gain):
    image = read_image(write(tmp_path / "x.fits", pixels, **cards))
    assert image.gain == gain
    assert image.notes == ()


@pytest.mark.parametrize(
    ("unit", "zero_point"),
    [
        ("nJy", 31.4),
        ("uJy/pix", 23.9),
        ("Jy", 8.9),
        ("10.0*nanoJansky", 28.9),
        ("nanomaggy", 22.5),
        ("DN/s", None),
        ("DN/pix", None),
    ],
)
def test_units_fix_the_zero_point(tmp_path, pixels, unit, zero_point):
    path = write(tmp_path / "x.fits", pixels, BUNIT=unit)
    assert read_image(path).zero_point == (zero_point and pytest.approx(zero_point, abs=1e-3))
    other = read_image(write(tmp_path / "other.fits", pixels, BUNIT=unit, MAGZERO=25.0))
    assert other.zero_point == pytest.approx(zero_point or 25, abs=1e-3)
    assert len(other.notes) == (zero_point is not None)


def test_surface_brightness_has_the_zero_point_of_its_solid_angle(tmp_path, pixels):
    jwst = read_image(write(tmp_path / "x.fits", pixels, BUNIT="MJy/sr", **LINEAR))
    area = (0.06 / 3600 * np.pi / 180) ** 2
    assert jwst.zero_point == pytest.approx(-2.5 * np.log10(1e6 * area / 3631), abs=1e-3)
    assert read_image(write(tmp_path / "plain.fits", pixels, BUNIT="MJy/sr")).zero_point is None


@pytest.mark.parametrize("name", ["egs_H.gf10518", "egs_H.gf12782", "gds_H.gf16440"])
def test_sky_positions_of_candels(data_dir, name, capfd):
    image = read_image(data_dir / "candels_f160w" / f"{name}.fits", hdu=1)
    assert "A_ORDER" in image.header
    assert capfd.readouterr() == ("", "")
    assert image.pixel_scale == pytest.approx(0.06, rel=1e-4)
    assert image.unit == "electron / s"
    sky = image.wcs.pixel_to_world(80, 70)
    np.testing.assert_allclose([sky.ra.deg, sky.dec.deg], tangent_plane(image.header, 80, 70), atol=1e-8)
    center = SkyCoord(214.9, 52.9, unit="deg") if name.startswith("egs") else SkyCoord(53.12, -27.8, unit="deg")
    assert sky.separation(center) < 0.4 * u.deg


def test_psf(tmp_path):
    grid = np.arange(41) - 20
    gaussian = 3 * np.exp(-(grid**2 + grid[:, None] ** 2) / 8)
    psf = read_psf(write(tmp_path / "odd.fits", gaussian, PIXSCALE=0.0601), pixel_scale=0.06)
    assert psf.shape == (41, 41)
    assert psf.sum() == pytest.approx(1)
    for number, window in enumerate([np.s_[1:, 1:], np.s_[:-1, :-1], np.s_[1:, :-1]]):
        even = read_psf(write(tmp_path / f"even{number}.fits", gaussian[window]))
        np.testing.assert_allclose(even, gaussian[1:-1, 1:-1] / gaussian[1:-1, 1:-1].sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda psf: psf[1:], r"the PSF must be square, got shape \(40, 41\)"),
        (lambda psf: np.where(psf > 0.9, np.nan, psf), "the PSF must be finite with a positive sum, got nan"),
        (lambda psf: psf - 1, "the PSF must be finite with a positive sum, got -"),
        (
            lambda psf: np.roll(psf, 3, axis=1),
            r"the PSF must have its brightest pixel within 2\.. of the middle, got 3 off",
        ),
    ],
)
def test_psf_that_is_none(tmp_path, change, message):
    grid = np.arange(41) - 20
    gaussian = np.exp(-(grid**2 + grid[:, None] ** 2) / 8)
    with pytest.raises(ValueError, match=rf"psf.fits: {message}"):
        read_psf(write(tmp_path / "psf.fits", change(gaussian)))


def test_psf_of_another_scale(tmp_path):
    psf = np.zeros((11, 11))
    psf[5, 5] = 1
    path = write(tmp_path / "psf.fits", psf, PIXSCL=0.04)
    with pytest.raises(ValueError, match=r'psf.fits: the PSF must be sampled at 0.06" per pixel, got 0.04"'):
        read_psf(path, pixel_scale=0.06)
    with pytest.raises(ValueError, match=r"text.fits: PIXSCL must be a positive number, got '0.06 arcsec'"):
        read_psf(write(tmp_path / "text.fits", psf, PIXSCL="0.06 arcsec"), pixel_scale=0.06)


def test_squares_reach_over_the_edges(tmp_path, pixels):
    """From an array and from a file, in any type; NaN beyond the edges."""
    corners = [(3, 2), (-4, -2), (26, 15), (300, 0)]
    with fits.open(write(tmp_path / "x.fits", pixels.astype(">i2"))) as hdus:
        read = cut_stamps(hdus[0].section, corners, 8)
    stamps = cut_stamps(pixels, corners, 8)
    padded = np.pad(pixels, 300, constant_values=np.nan)
    for (x0, y0), stamp in zip(corners, stamps, strict=True):
        np.testing.assert_array_equal(stamp, padded[y0 + 300 : y0 + 308, x0 + 300 : x0 + 308])
    np.testing.assert_array_equal(read, np.trunc(stamps))
    assert stamps.dtype == read.dtype == np.float32
    assert cut_stamps(pixels, np.empty((0, 2), dtype=int), 8).shape == (0, 8, 8)
