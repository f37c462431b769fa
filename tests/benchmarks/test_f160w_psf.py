"""The PSF of F160W that ships, and the fit that makes it."""

import json
from importlib.resources import files

import galsim
import numpy as np
import pytest
from astropy.io import fits

from benchmarks.f160w_psf import PsfModel, fit_psf, write_psf
from probdeblend.simulation import Camera


@pytest.fixture(scope="module")
def shipped():
    folder = files("probdeblend") / "data"
    numbers = json.loads((folder / "psf_f160w.json").read_text(encoding="utf-8"))
    with (folder / "psf_f160w.npy").open("rb") as file:
        return numbers, np.load(file)


def encircled(psf, pixel_scale, radius):
    rows, columns = np.indices(psf.shape) - (len(psf) - 1) / 2
    return psf[np.hypot(rows, columns) * pixel_scale < radius].sum() / psf.sum()


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
    camera = Camera.candels_f160w()
    assert camera.pixel_scale == numbers["pixel_scale"]
    assert camera.psf[0].shape == array.shape


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
    assert fit.max_residual < 0.06
    write_psf(fit, tmp_path)
    assert json.loads((tmp_path / "psf_f160w.json").read_text(encoding="utf-8"))["size"] == 65
    np.testing.assert_allclose(np.load(tmp_path / "psf_f160w.npy"), shipped[1], atol=1e-4 * shipped[1].max())
