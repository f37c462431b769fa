"""Errors of reconstructed images: exact small examples, and what the conventions of the Blending ToolKit cannot see."""

import numpy as np
import pytest

from probdeblend.metrics import reconstruction
from probdeblend.metrics.reconstruction import mse, psnr, rmse, toolkit_mse, toolkit_psnr

METRICS = [getattr(reconstruction, name) for name in reconstruction.__all__]


@pytest.fixture
def images(rng):
    """Two galaxies in one band, and their reconstructions."""
    y, x = np.indices((16, 16))
    truth = np.stack([peak * np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 8) for peak in (10.0, 400.0)])[:, None]
    return truth + rng.uniform(0, 1, size=truth.shape), truth


def test_errors_of_an_offset():
    truth = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    estimate = truth + np.array([0.0, 2.0])[:, None, None]
    np.testing.assert_allclose(mse(estimate, truth), [0, 4])
    np.testing.assert_allclose(rmse(estimate, truth), [0, 2])
    np.testing.assert_allclose(psnr(estimate, truth), [np.inf, 10 * np.log10(8**2 / 4)])


def test_one_number_an_image(images):
    assert all(metric(*images).shape == (2, 1) for metric in METRICS)
    estimate, truth = images
    for metric in METRICS:
        np.testing.assert_allclose(metric(estimate, truth)[1, 0], metric(estimate[1, 0], truth[1, 0]))


def test_any_dtype():
    truth = np.array([[0, 1], [2, 200]], dtype=np.uint8)
    estimate = np.array([[1, 0], [2, 200]], dtype=np.uint8)
    np.testing.assert_allclose(mse(estimate, truth), 0.5)
    np.testing.assert_allclose(psnr(estimate, truth.astype(">f4")), 10 * np.log10(200**2 / 0.5))


def test_errors_are_those_of_any_unit(images):
    """In another unit the error scales, and the ratio of peak to noise stays."""
    estimate, truth = images
    np.testing.assert_allclose(mse(7 * estimate, 7 * truth), 49 * mse(estimate, truth))
    for ratio in (psnr, toolkit_psnr):
        np.testing.assert_allclose(ratio(7 * estimate, 7 * truth), ratio(estimate, truth))


def test_toolkit_mse_is_a_root(images):
    np.testing.assert_allclose(toolkit_mse(*images) ** 2, mse(*images))


def test_toolkit_psnr_cannot_see_the_flux(images):
    """Half of the flux is a perfect image to the ToolKit; to the common peak it is 20 log10(2 / rms of the image)."""
    _, truth = images
    assert (toolkit_psnr(0.5 * truth, truth) > 250).all()
    rms = np.sqrt((truth**2).mean((-2, -1))) / truth.max((-2, -1))
    np.testing.assert_allclose(psnr(0.5 * truth, truth), 20 * np.log10(2 / rms))


def test_toolkit_psnr_of_equal_peaks_is_psnr(images):
    estimate, truth = images
    estimate = estimate * truth.max((-2, -1), keepdims=True) / estimate.max((-2, -1), keepdims=True)
    np.testing.assert_allclose(toolkit_psnr(estimate, truth), psnr(estimate, truth))


def test_images_without_an_answer(images):
    estimate, truth = images
    missed = np.full_like(truth, np.nan)
    assert all(np.isnan(metric(missed, truth)).all() for metric in METRICS)
    assert np.isnan(psnr(estimate, 0 * truth)).all()
    assert np.isnan(toolkit_psnr(0 * estimate, truth)).all()
    assert np.isfinite(psnr(0 * estimate, truth)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_images_need_their_truth(metric):
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3, 3\), got \(2, 2\)"):
        metric(np.ones((2, 2)), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"truth must have the axes \(\.\.\., y, x\), got shape \(3,\)"):
        metric(np.ones(3), np.ones(3))


def test_toolkit_refuses_negative_pixels():
    good, bad = np.ones((2, 2)), np.array([[1.0, -0.5], [1.0, 1.0]])
    with pytest.raises(ValueError, match=r"estimate must not be negative, got -0\.5"):
        toolkit_psnr(bad, good)
    with pytest.raises(ValueError, match=r"truth must not be negative, got -0\.5"):
        toolkit_psnr(good, bad)
    assert np.isfinite(psnr(bad, good))
