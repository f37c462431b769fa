"""Cameras: the ranges that they are drawn from, and what one of CANDELS is."""

import math

import galsim
import numpy as np
import pytest
import torch

from probdeblend.photometry.noise import correlation_sum
from probdeblend.scene import Instrument
from probdeblend.simulation import Camera, Cameras


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(9)
    return [Cameras(native_fraction=0.3).sample(rng) for _ in range(8)]


def test_candels_is_the_instrument():
    camera, hst = Camera.candels_f160w(sky_rms=4e-3), Instrument.candels_f160w(sky_rms=4e-3)
    assert len(camera) == 1
    assert torch.equal(camera.psf[0], hst.psf)
    assert camera.zero_point == (hst.zero_point,)
    assert float(camera.photon) == pytest.approx(1 / (3200 * 4e-3 * correlation_sum(hst.noise_kernel)))
    white = Camera.of(hst.replace(noise_kernel=None, exposure=math.inf))
    assert float(white.photon) == 0
    assert white.noise_kernel is None


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
