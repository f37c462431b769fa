"""Cameras: the ranges that they are drawn from, and what one of CANDELS is."""

import math
from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch

from probdeblend.scene import correlation_sum
from probdeblend.simulation import Camera, Cameras


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(9)
    return [Cameras(native_fraction=0.3).sample(rng) for _ in range(8)]


def test_candels_is_a_sampled_psf_with_drizzled_noise():
    camera = Camera.candels_f160w(sky_rms=4e-3)
    assert len(camera) == 1
    assert (camera.pixel_scale, camera.zero_point) == (0.06, (25.9463,))
    numbers = [float(value) for value in (camera.sky_rms, camera.exposure, camera.wavelength)]
    assert numbers == pytest.approx([4e-3, 3200.0, 1.54])
    assert camera.psf.dtype == torch.float32
    assert float(camera.psf.sum()) == pytest.approx(1, abs=1e-6)
    middle = camera.psf.shape[-1] // 2
    assert int(camera.psf.argmax()) == middle * camera.psf.shape[-1] + middle
    assert camera.noise_kernel.shape == (1, 3, 3)
    torch.testing.assert_close(camera.noise_kernel, camera.noise_kernel.rot90(dims=(1, 2)))
    assert float(camera.photon) == pytest.approx(1 / (3200 * 4e-3 * correlation_sum(camera.noise_kernel)))


@pytest.mark.parametrize("name", ["pixel_scale", "sky_rms", "exposure"])
@pytest.mark.parametrize("value", [0.0, -0.3, math.nan])
def test_numbers_of_a_camera_must_be_positive(name, value):
    wrong = value if name == "pixel_scale" else torch.tensor([value])
    with pytest.raises(ValueError, match=f"{name} must be positive.*, got .*{value}"):
        replace(Camera.candels_f160w(), **{name: wrong})


@pytest.mark.parametrize("name", ["psf", "sky_rms", "exposure", "wavelength", "noise_kernel"])
def test_conditions_are_one_for_each_band(name):
    wrong = torch.ones(1, 3) if name in ("psf", "noise_kernel") else torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=rf"{name} must begin with the axes \(., *\), got \("):
        replace(Camera.candels_f160w(), **{name: wrong})
    with pytest.raises(ValueError, match=r"zero_point one for each of 1 bands, got 0.06 and \(26.0, 26.0\)"):
        replace(Camera.candels_f160w(), zero_point=(26.0, 26.0))


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 3, 5)])
def test_psf_must_be_an_odd_square(shape):
    with pytest.raises(ValueError, match="psf must be a square with an odd side for each band, got shape"):
        replace(Camera.candels_f160w(), psf=torch.full(shape, 1 / math.prod(shape)))


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_psf_must_have_unit_sum(value):
    with pytest.raises(ValueError, match="psf must have unit sum, got "):
        replace(Camera.candels_f160w(), psf=torch.full((1, 3, 3), value))


def test_widths_are_those_asked_for(drawn):
    for camera in drawn:
        for psf in camera.psf:
            fwhm = galsim.Image(psf.numpy(), scale=1.0).calculateFWHM()
            assert 1.5 < fwhm < 5.6
            assert 0.03 <= camera.pixel_scale <= 0.3
    assert {camera.native for camera in drawn} == {True, False}
    assert {len(camera) for camera in drawn} == {1, 2, 3}


def test_narrow_psfs_come_in_finer_pixels(drawn):
    finer = [camera for camera in drawn if camera.fine_psf is not None]
    assert finer
    for camera in finer:
        assert camera.fine_psf.shape[-1] == 2 * camera.psf.shape[-1] - 1
        sampled = 4 * camera.fine_psf[..., ::2, ::2]
        torch.testing.assert_close(sampled, camera.psf, atol=0.02 * float(camera.psf.max()), rtol=0)


def test_noise_and_depth(drawn):
    for camera in drawn:
        assert camera.psf.sum((-2, -1)).sub(1).abs().max() < 1e-5
        if not camera.native:
            assert ((camera.photon > 0.99e-3) & (camera.photon < 0.201)).all()
            assert float(camera.sky_rms.log().mean()) == pytest.approx(0, abs=1e-5)
        assert bool((camera.wavelengths.diff() > 0).all())
    assert {bool(camera.wavelength.isfinite().all()) for camera in drawn} == {True, False}
    white = [bool((camera.noise_kernel.sum((-2, -1)) == 1).all()) for camera in drawn]
    assert {True, False} == set(white)


def test_same_generator_same_camera():
    first, again = (Cameras().sample(np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.psf, again.psf)
    assert torch.equal(first.exposure, again.exposure)


def test_the_psf_of_candels_varies_a_little():
    """Widths by up to 5 %, shears by up to 2 %."""
    rng = np.random.default_rng(2)
    psfs = [Camera.candels_f160w().psf[0], *(Cameras.native(rng).psf[0] for _ in range(12))]
    known, *found = (galsim.hsm.FindAdaptiveMom(galsim.Image(psf.numpy(), scale=1.0)) for psf in psfs)
    growth = np.array([moments.moments_sigma / known.moments_sigma for moments in found])
    assert (np.abs(growth - 1) < 0.055).all()
    assert growth.std() > 0.01
    shear = [abs((moments.observed_shape - known.observed_shape).g) for moments in found]
    assert 0.005 < max(shear) < 0.021


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt:RuntimeWarning")
def test_a_psf_whose_width_galsim_cannot_measure():
    """Its measurement is NaN for one in some thousand PSFs; the width is then that of the step before."""
    camera = Cameras().sample(np.random.default_rng((41, 1, 909)))
    assert bool(camera.psf.isfinite().all())
    assert 0.664 * camera.blur == pytest.approx(4.8, rel=0.1)
