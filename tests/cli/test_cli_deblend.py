"""Deblend images from the command line."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table
from commands import plane, refused, stamp

from probdeblend.deblending import EXAMPLE_PATH
from probdeblend.posterior import Posterior

FILES = {"catalog.ecsv", "masks.fits", "blends.png"}


@pytest.fixture
def field(tmp_path, rng):
    """An image of four galaxies, two of which overlap."""
    rows, columns = np.mgrid[:200, :220]
    pixels = rng.normal(0, 3e-3, rows.shape)
    for x, y, flux in ((70, 80, 1.0), (83, 85, 0.6), (180, 40, 0.7), (150, 160, 0.5)):
        pixels += flux * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    header = fits.Header({"BUNIT": "electron/s", "ABMAGZP": 25.9463})
    header.update(plane().to_header())
    fits.PrimaryHDU(pixels.astype(np.float32), header).writeto(tmp_path / "field.fits")
    return tmp_path / "field.fits"


def test_without_an_image_the_example_is_deblended(run, fake, tmp_path):
    result = run("deblend", "--draws", 64, "--passes", 4, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "probdeblend-output").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["probdeblend-output"]
    assert fake.calls[0]["sky_rms"].item() == 3e-3
    assert fake.calls[0] | {"sky_rms": 0} == {"sky_rms": 0, "draws": 64, "passes": 4, "seed": 7}
    assert "electron / s" in result.output
    assert "sky rms of a pixel: 0.003" in result.output
    assert "written to probdeblend-output: blends.png, catalog.ecsv, masks.fits" in result.output
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert catalog["flux"].unit == "electron / s"
    np.testing.assert_allclose(catalog["mag"].value, 25.9463 - 2.5 * np.log10([100, 50]), atol=0.02)
    np.testing.assert_allclose(catalog["ra"].value, 53.1227, atol=1e-6)
    np.testing.assert_allclose(catalog["dec"].value, -27.8051, atol=1e-6)


def test_an_earlier_output_stays_unless_it_is_to_be_replaced(run, fake, tmp_path):
    assert run("deblend", "--draws", 64).exit_code == 0
    before = (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes()
    refused(run("deblend", "--seed", 1), "probdeblend-output: exists already; --overwrite replaces it")
    assert (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes() == before
    assert run("deblend", "--overwrite", "--draws", 64, "--seed", 1).exit_code == 0
    assert (tmp_path / "probdeblend-output" / "catalog.ecsv").read_bytes() != before
    (tmp_path / "probdeblend-output" / "mine.txt").touch()
    refused(run("deblend", "--overwrite"), "is not replaced, because it holds mine.txt")


def test_a_field_is_deblended(run, fake, field, tmp_path):
    result = run("deblend", field, "--draws", 64, "--output", "out/new", "--save-draws", "--no-background")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out" / "new").iterdir()} == FILES | {"field.png", "draws.nc"}
    catalog = QTable.read(tmp_path / "out" / "new" / "catalog.ecsv")
    assert catalog["method"].tolist() == ["network", "network", "sep", "sep"]
    assert not catalog["mag"].mask.any()
    posterior = Posterior.open(tmp_path / "out" / "new" / "draws.nc")
    assert posterior.dataset.attrs["zero_point"] == 25.9463
    assert posterior.flux.attrs["unit"] == "electron / s"
    assert "isolated" in result.output
    assert "SEP's errors of isolated sources are multiplied by" in result.output
    with fits.open(tmp_path / "out" / "new" / "masks.fits") as hdus:
        assert hdus["MASK"].data.shape == (1, 2, 128, 128)
        assert [hdus[0].header[f"CRVAL{axis}"] for axis in (1, 2)] == [150, 2]


def test_a_field_without_pairs_still_has_a_catalog(run, fake, field, tmp_path):
    with fits.open(field, mode="update") as hdus:
        hdus[0].data[:120, :130] = np.random.default_rng(1).normal(0, 3e-3, (120, 130))
        del hdus[0].header["ABMAGZP"]
    result = run("deblend", field, "--draws", 64)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "probdeblend-output").iterdir()} == {"catalog.ecsv", "field.png"}
    assert "no sources overlap: there are no masks" in result.output
    assert QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")["mag"].mask.all()


def test_an_rms_map_is_scaled_unless_it_is_taken_as_it_is(run, fake, field, tmp_path):
    fits.PrimaryHDU(np.full((200, 220), 6e-3)).writeto(tmp_path / "rms.fits")
    result = run("deblend", field, "--draws", 64, "--rms", "rms.fits")
    assert "the rms map rms.fits was multiplied by 0." in result.output
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(3e-3, rel=0.05)
    result = run("deblend", field, "--draws", 64, "--rms", "rms.fits", "--rms-as-is", "--overwrite")
    assert "multiplied by 0." not in result.output
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(6e-3)
    assert run("deblend", field, "--draws", 64, "--rms", "4e-3", "--overwrite").exit_code == 0
    assert fake.calls[-1]["sky_rms"].item() == pytest.approx(4e-3)


def test_a_cube_of_stamps_has_its_noise_measured(run, fake, tmp_path):
    pixels = fits.getdata(EXAMPLE_PATH).astype(float)
    stamp(tmp_path / "cube.fits", np.stack([pixels, 2 * pixels]))
    assert run("deblend", "cube.fits", "--stamps", "--draws", 64, "--zero-point", 27).exit_code == 0
    measured = fake.calls[0]["sky_rms"].ravel()
    assert measured[0] == pytest.approx(3e-3, rel=0.1)
    assert measured[1] == pytest.approx(2 * measured[0], rel=1e-3)
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert catalog["blend"].tolist() == [0, 0, 1, 1]
    assert "ra" not in catalog.colnames
    np.testing.assert_allclose(catalog["mag"].value[:2], 27 - 2.5 * np.log10([100, 50]), atol=0.02)


def test_a_map_for_stamps_is_scaled(run, fake, tmp_path):
    stamp(tmp_path / "stamp.fits")
    fits.PrimaryHDU(np.full((128, 128), 6e-3)).writeto(tmp_path / "rms.fits")
    assert run("deblend", "stamp.fits", "--stamps", "--draws", 64, "--rms", "rms.fits").exit_code == 0
    np.testing.assert_allclose(fake.calls[0]["sky_rms"], 3e-3, rtol=0.1)


def bad_image(path, kind):
    pixels = fits.getdata(EXAMPLE_PATH)
    if kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        path.write_bytes(EXAMPLE_PATH.read_bytes()[:30_000])
    elif kind == "table":
        table = fits.BinTableHDU(Table({"a": [1]}))
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    elif kind == "two":
        fits.HDUList([fits.PrimaryHDU(pixels), fits.ImageHDU(pixels, name="MODEL")]).writeto(path)
    else:
        pixels = {
            "one axis": pixels[0],
            "cube": np.stack([pixels, pixels]),
            "zero": 0 * pixels,
            "nan": np.nan * pixels,
            "small": pixels[:96, :96],
            "empty sky": np.random.default_rng(0).normal(0, 3e-3, (200, 200)),
        }[kind]
        fits.PrimaryHDU(pixels, plane().to_header()).writeto(path)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("text", [], "not a FITS file"),
        ("truncated", [], "truncated"),
        ("table", [], "no HDU holds an image"),
        ("two", [], "choose one of 0 PRIMARY (128 x 128), 1 MODEL (128 x 128)"),
        ("two", ["--hdu", 5], "HDU 5 holds no image"),
        ("one axis", [], "no HDU holds an image"),
        ("cube", [], "must have two dimensions (y, x), got shape (2, 128, 128)"),
        ("zero", [], "other than zero"),
        ("nan", [], "no finite pixel"),
        ("zero", ["--stamps"], "other than zero"),
        ("nan", ["--stamps"], "no finite pixel"),
        ("small", ["--stamps"], "stamps must have 128 x 128 pixels, got shape (96, 96)"),
        ("empty sky", [], "no source found"),
    ],
)
def test_images_that_are_refused(run, fake, tmp_path, kind, options, says):
    bad_image(tmp_path / "bad.fits", kind)
    refused(run("deblend", "bad.fits", *options), says)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fits"]


@pytest.mark.parametrize("stamps", [[], ["--stamps"]])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rms", "0"], "rms must be positive and finite, got 0"),
        (["--rms", "-1"], "rms must be positive and finite, got -1"),
        (["--rms", "nan"], "rms must be positive and finite, got nan"),
        (["--rms", "wrong.fits"], "wrong.fits: the rms map must have the image's shape"),
        (["--rms", "missing.fits"], "missing.fits: no such file"),
        (["--psf", "oblong.fits"], "oblong.fits: the PSF must be square, got shape (21, 25)"),
        (["--psf", "large.fits"], "large.fits: the PSF must not be larger than a stamp of 128 pixels, got 129"),
        (["--psf", "negative.fits"], "negative.fits: the PSF must have a positive sum"),
        (["--psf", "wide.fits"], "psf must have the width that the weights were trained for"),
        (["--pixel-scale", "0.03"], 'pixel_scale must be 0.06" within 2%'),
        (["--zero-point", "inf"], "zero_point must be finite, got inf"),
    ],
)
def test_options_that_are_refused(run, fake, tmp_path, stamps, options, says):
    grid = np.hypot(*np.mgrid[-20:21, -20:21])
    arrays = {
        "wrong": np.ones((20, 20)),
        "oblong": np.ones((21, 25)),
        "large": np.ones((129, 129)),
        "negative": -np.exp(-(grid**2)),
        "wide": np.exp(-((grid / 8) ** 2)),
    }
    for name, array in arrays.items():
        fits.PrimaryHDU(array).writeto(tmp_path / f"{name}.fits")
    stamp(tmp_path / "image.fits")
    refused(run("deblend", "image.fits", *stamps, *options), says)
    assert {path.suffix for path in tmp_path.iterdir()} == {".fits"}


def test_an_exposure_must_be_positive(run, fake, field):
    refused(run("deblend", field, "--exposure", "-1"), "exposure must be positive, got -1")


def test_a_missing_image_or_pixel_scale_is_refused(run, fake, tmp_path):
    refused(run("deblend", "missing.fits"), "missing.fits: no such file")
    stamp(tmp_path / "bare.fits", scale=None)
    refused(run("deblend", "bare.fits", "--stamps"), "pixel_scale must be given with --pixel-scale")
    assert run("deblend", "bare.fits", "--stamps", "--pixel-scale", "0.06", "--draws", 64).exit_code == 0


def test_a_constant_stamp_needs_its_noise(run, fake, tmp_path):
    stamp(tmp_path / "flat.fits", np.ones((128, 128)))
    refused(run("deblend", "flat.fits", "--stamps"), "rms must be given if the sky noise cannot be measured")


def test_weights_that_are_refused(run, tmp_path):
    refused(run("deblend", "--weights", "missing.safetensors"), "missing.safetensors: no such weights file")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    refused(run("deblend", "--weights", "damaged.safetensors"), "not a safetensors file, or damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.safetensors"]


def test_the_example_goes_through_the_weights_that_ship(run, tmp_path):
    result = run("deblend", "--draws", 64, "--passes", 4)
    assert result.exit_code == 0, result.output
    catalog = QTable.read(tmp_path / "probdeblend-output" / "catalog.ecsv")
    assert len(catalog) == 2
    assert (catalog["flux"] > 0).all()
