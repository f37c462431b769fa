import json
from importlib.resources import files

import galsim
import numpy as np
import pytest
from astropy.io import fits

from probdeblend.scene import Instrument
from probdeblend.simulation import PsfModel, fit_psf, write_psf

TRUTH = PsfModel(
    obscuration=0.33,
    strut_width=0.05,
    strut_angle=20.0,
    jitter=0.025,
    aberrations=(0.04, 0.02, -0.02, 0.01, 0.0, 0.01, -0.01),
)


@pytest.fixture(scope="module")
def shipped():
    folder = files("probdeblend") / "data"
    numbers = json.loads((folder / "psf_f160w.json").read_text(encoding="utf-8"))
    with (folder / "psf_f160w.npy").open("rb") as file:
        return numbers, np.load(file)


def encircled(psf, pixel_scale, radius):
    rows, columns = np.indices(psf.shape) - (len(psf) - 1) / 2
    return psf[np.hypot(rows, columns) * pixel_scale < radius].sum() / psf.sum()


@pytest.fixture(scope="module")
def recovered():
    image = TRUTH.draw(0.06, 61, offset=(0.3, -0.2))
    return fit_psf(270 * image.astype(">f4"), 0.06)


@pytest.mark.slow
def test_fit_recovers_the_model_that_drew_the_image(recovered):
    model = recovered.model
    assert model.obscuration == pytest.approx(TRUTH.obscuration, abs=0.01)
    assert model.strut_width == pytest.approx(TRUTH.strut_width, abs=0.005)
    assert model.strut_angle == pytest.approx(TRUTH.strut_angle, abs=1.0)
    assert model.jitter == pytest.approx(TRUTH.jitter, abs=0.002)
    assert model.aberrations == pytest.approx(TRUTH.aberrations, abs=0.004)
    assert (recovered.x, recovered.y) == pytest.approx((0.3, -0.2), abs=0.01)


@pytest.mark.slow
def test_fit_quality_of_a_perfect_model(recovered):
    assert recovered.max_residual < 2e-3
    assert recovered.fwhm[0] == pytest.approx(recovered.fwhm[1], rel=2e-3)


@pytest.mark.slow
def test_fit_keeps_what_it_does_not_fit():
    start = PsfModel(wavelength=1250.0, pixfrac=1.0)
    fit = fit_psf(start.draw(0.06, 41), 0.06, start=start)
    assert (fit.model.wavelength, fit.model.pixfrac) == (1250.0, 1.0)
    assert fit.max_residual < 1e-3


def test_effective_holds_the_pixel_once():
    """The model through its own pixel equals the bare light averaged by a pixel when it is drawn."""
    effective = TRUTH.draw(0.06, 33)
    point = galsim.Convolve(TRUTH.effective(0.001), galsim.Pixel(0.06))
    averaged = point.drawImage(nx=33, ny=33, scale=0.06, method="no_pixel").array
    np.testing.assert_allclose(effective, averaged, atol=1e-3 * effective.max())
    assert TRUTH.effective(0.12).calculateFWHM() > TRUTH.effective(0.06).calculateFWHM()


def test_shipped_array_is_what_the_shipped_numbers_draw(shipped):
    numbers, array = shipped
    psf = PsfModel(**numbers["fit"]["model"]).draw(numbers["pixel_scale"], numbers["size"])
    np.testing.assert_allclose(array, psf / psf.sum(), atol=1e-7)
    assert numbers["light_outside"] == pytest.approx(1 - psf.sum(), abs=1e-6)


def test_shipped_array_is_a_psf(shipped):
    numbers, array = shipped
    assert array.dtype == np.float32
    assert array.shape == (numbers["size"],) * 2
    assert array.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert array.min() > 0
    middle = numbers["size"] // 2
    assert np.unravel_index(array.argmax(), array.shape) == (middle, middle)
    cross = array[middle - 1 : middle + 2, middle], array[middle, middle - 1 : middle + 2]
    for before, _, after in cross:
        assert before == pytest.approx(after, rel=0.02)
    instrument = Instrument.candels_f160w()
    assert instrument.pixel_scale == numbers["pixel_scale"]
    assert instrument.psf.shape == array.shape


def test_shipped_fit_is_good(shipped):
    fit = shipped[0]["fit"]
    assert fit["max_residual"] < 0.06
    assert fit["rms_residual"] < 0.002
    assert fit["fwhm"] == pytest.approx([0.182, 0.182], abs=0.005)
    for measured, fitted in fit["encircled_energy"].values():
        assert fitted == pytest.approx(measured, rel=0.01)


def test_shipped_array_against_the_measured_psf(shipped, data_dir):
    """The file's own pixel is taken out and that of the array put in, without the model."""
    numbers, array = shipped
    image = fits.getdata(data_dir / "psf" / "f160w.fits").astype(float)
    measured = galsim.InterpolatedImage(galsim.Image(image / image.sum(), scale=0.04), x_interpolant="quintic")
    pixels = galsim.Convolve(galsim.Deconvolve(galsim.Pixel(0.04)), galsim.Pixel(0.06))
    offset = [-numbers["fit"][axis] * 0.04 / 0.06 for axis in "xy"]
    rescaled = galsim.Convolve(measured, pixels).drawImage(
        nx=len(array), ny=len(array), scale=0.06, method="no_pixel", offset=offset
    )
    psf = rescaled.array / rescaled.array.sum()
    assert np.abs(psf - array).max() < 0.05 * array.max()
    for radius in (0.2, 0.5, 1.0):
        assert encircled(array, 0.06, radius) == pytest.approx(encircled(psf, 0.06, radius), rel=0.01)


@pytest.mark.slow
def test_fit_of_the_measured_psf_gives_the_shipped_numbers(shipped, data_dir, tmp_path):
    fit = fit_psf(fits.getdata(data_dir / "psf" / "f160w.fits"), 0.04)
    array_path, _ = write_psf(fit, tmp_path)
    np.testing.assert_allclose(np.load(array_path), shipped[1], atol=1e-4 * shipped[1].max())


@pytest.mark.slow
def test_write_and_read(recovered, tmp_path):
    array_path, numbers_path = write_psf(recovered, tmp_path / "new", name="test")
    numbers = json.loads(numbers_path.read_text(encoding="utf-8"))
    assert PsfModel(**numbers["fit"]["model"]) == recovered.model
    psf = recovered.model.draw(0.06, 65)
    np.testing.assert_allclose(np.load(array_path), psf / psf.sum(), atol=1e-7)


@pytest.mark.parametrize(
    ("image", "pixel_scale", "message"),
    [
        (np.ones((8, 9)), 0.06, r"image must be a square PSF, got shape \(8, 9\)"),
        (np.ones(9), 0.06, r"image must be a square PSF, got shape \(9,\)"),
        (np.full((9, 9), np.nan), 0.06, "image must be finite, got 81 non-finite pixels"),
        (np.zeros((9, 9)), 0.06, "image must have a positive sum, got 0"),
        (
            np.eye(1, 81, 40).reshape(9, 9),
            0.06,
            "image must have at least 6 pixels above half its peak, got 1",
        ),
        (np.ones((9, 9)), -0.06, "pixel_scale must be positive, got -0.06"),
    ],
)
def test_bad_images(image, pixel_scale, message):
    with pytest.raises(ValueError, match=message):
        fit_psf(image, pixel_scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obscuration": 1.2}, "obscuration must be at least 0 and below 1, got 1.2"),
        ({"strut_width": 0.0}, "strut_width must be positive, got 0.0"),
        ({"jitter": -0.1}, "jitter must be positive, got -0.1"),
        ({"pixfrac": np.nan}, "pixfrac must be positive, got nan"),
        ({"aberrations": (0.1, 0.2)}, "aberrations must be seven numbers, got 2"),
    ],
)
def test_bad_models(changes, message):
    with pytest.raises(ValueError, match=message):
        PsfModel(**changes)


def test_bad_drawing():
    with pytest.raises(ValueError, match="pixel_scale must be positive, got 0"):
        TRUTH.effective(0)
