"""The forms in which users give PSFs, and what is wrong with some."""

import galsim
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.modeling.models import Gaussian2D
from photutils.psf import CircularGaussianPRF
from tiny_weights import PSF, light_of, noise_of

from probdeblend.deblending.inputs import observe
from probdeblend.simulation import Camera

IMAGE = noise_of((40, 40))
SIGMA = 1.3
INTRINSIC = np.sqrt(SIGMA**2 - 1 / 12)  # without the pixel


def psf_of(given, *, image=IMAGE, sky_rms=1.0):
    with observe(image, psf=given, sky_rms=sky_rms) as seen:
        return seen.psf.numpy()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("psf") / "psf.fits"
    fits.PrimaryHDU((5 * PSF).astype(">f4")).writeto(path)
    return path


FORMS = {
    "array": lambda path: PSF,
    "unnormalized": lambda path: 7 * PSF.astype(np.float32),
    "tensor": lambda path: torch.from_numpy(PSF),
    "small": lambda path: PSF[6:-6, 6:-6],
    "large": lambda path: np.pad(PSF, 10),
    "list": lambda path: PSF.tolist(),
    "path": lambda path: path,
    "name of a file": str,
    "one band": lambda path: PSF[None],
    "one in a list": lambda path: [path],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_give_the_same_psf(form, stored):
    np.testing.assert_allclose(psf_of(form(stored)), PSF[None] / PSF.sum(), atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [Gaussian2D(3.0, x_stddev=SIGMA, y_stddev=SIGMA), Gaussian2D(1, 5, 9, SIGMA, SIGMA),
     CircularGaussianPRF(flux=2, x_0=7, y_0=3, fwhm=2.3548 * INTRINSIC),
     galsim.Gaussian(sigma=INTRINSIC)],
)  # fmt: skip
def test_models_are_drawn_in_the_middle(model):
    np.testing.assert_allclose(psf_of(model)[0], PSF / PSF.sum(), atol=3e-3)


def test_cameras_have_names():
    camera = Camera.candels_f160w()
    with observe(IMAGE, psf="candels_f160w", sky_rms=1.0) as seen:
        cut = camera.psf[0, 12:-12, 12:-12]
        np.testing.assert_allclose(seen.psf[0], cut / cut.sum(), atol=1e-6)
        assert seen.pixel_scale == camera.pixel_scale
        assert seen.noise[0, 0] > 0.1


def test_bands_have_psfs_of_their_own(stored):
    wide = PSF + np.roll(PSF, 2, 0) + np.roll(PSF, -2, 0)
    for given in ([PSF, wide], [stored, wide], [torch.from_numpy(PSF), wide]):
        psf = psf_of(given, image=np.stack([IMAGE, IMAGE]))
        np.testing.assert_allclose(psf.sum((1, 2)), 1, rtol=1e-5)
        assert psf[1].max() < 0.8 * psf[0].max()
    assert len(psf_of(PSF, image=np.stack([IMAGE] * 3))) == 3


def test_stars_give_the_psf():
    rng = np.random.default_rng(6)
    grid = np.stack(np.meshgrid(np.arange(30, 290, 40), np.arange(30, 290, 40)), -1).reshape(-1, 2)
    x, y = (grid + rng.uniform(-3, 3, grid.shape)).T
    stars = light_of((310, 310), x, y, rng.uniform(3000, 9000, len(x)), sigma=1.5) + noise_of((310, 310))
    with observe(stars, sky_rms=1.0) as seen:
        expected = light_of((41, 41), [20], [20], [1.0], sigma=1.5)
        np.testing.assert_allclose(seen.psf[0], expected, atol=0.01)
        assert "the PSF was measured from stars of the image" in seen.notes


BROKEN = PSF.copy()
BROKEN[0, 0] = np.nan


@pytest.mark.parametrize(
    ("psf", "message"),
    [
        (None, r"psf must be given, as an array, a FITS file or the name of a camera \(candels_f160w\), where"),
        (PSF[:, :-1], r"psf must be square, got shape \(41, 40\)"),
        (PSF[:-1, :-1], r"psf must have an odd number of pixels on a side, got shape \(40, 40\)"),
        (PSF[0], r"psf must be square, got shape \(41,\)"),
        (3.0, r"psf must be square, got shape \(\)"),
        (BROKEN, "psf must be finite with a positive sum, got nan"),
        (-PSF, "psf must be finite with a positive sum, got -"),
        (np.roll(PSF, 3, 1), r"psf must have its brightest pixel within 1\.. of the middle, got 3 off"),
        ([PSF, PSF], "psf must be one or one for each of 1 bands, got 2"),
        (np.stack([PSF] * 3), "psf must be one or one for each of 1 bands, got 3"),
    ],
)
def test_bad_psfs(psf, message):
    with pytest.raises(ValueError, match=message):
        psf_of(psf)


def test_coma_may_move_the_peak_of_a_broad_psf():
    """By two pixels, of a width (FWHM) of five; not by more."""
    axis = np.arange(41) - 20
    broad = np.exp(-4 * np.log(2) * (axis**2 + axis[:, None] ** 2) / 25)
    assert psf_of(np.roll(broad, 2, 1)).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"psf must have its brightest pixel within 2\.. of the middle, got 3 off"):
        psf_of(np.roll(broad, 3, 1))


@pytest.mark.parametrize("psf", [object(), PSF.astype(complex), np.array([["a"]])])
def test_only_numbers_are_psfs(psf):
    with pytest.raises(TypeError, match="psf must be an array of numbers, got"):
        psf_of(psf)


def test_a_psf_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"hubble: no such file, nor a camera .* \(candels_f160w\)"):
        psf_of("hubble")
