"""Mask probabilities that are too sharp or too soft, repaired and checked on other pixels."""

import numpy as np
import pytest
from scipy.special import expit, logit

from probdeblend.metrics import Reliability
from probdeblend.posterior import Calibrator, Posterior
from probdeblend.posterior.masks import MaskMap, mask_sums


def stamps(temperature, *, seed, blends=8):
    rng = np.random.default_rng(seed)
    right = rng.beta(0.5, 0.5, (blends, 2, 128, 128))
    target = rng.random(right.shape) < right
    return expit(logit(right) / temperature), target, np.full((blends, 128, 128), 3.0)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_repair(temperature):
    mapping = MaskMap.fit(mask_sums(*stamps(temperature, seed=1)))
    probability, target, _ = stamps(temperature, seed=2)
    assert Reliability.measure(probability, target).calibration_error > 0.04
    assert Reliability.measure(mapping(probability), target).calibration_error < 0.006


def test_maps_are_monotone_and_keep_the_type():
    mapping = MaskMap.fit(mask_sums(*stamps(0.5, seed=1)))
    values = mapping(np.linspace(0, 1, 1001, dtype=np.float32))
    assert values.dtype == np.float32
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1


def test_the_sky_does_not_teach():
    probability, target, snr = stamps(1.0, seed=1)
    snr[:, :64] = 0.0
    assert mask_sums(probability, target, snr).count.sum() == target.size / 2


def test_a_calibrator_repairs_masks_too():
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(5, 1, (300, 2, 1)))
    draws = truth * np.exp(0.1 * rng.normal(size=truth.shape) + 0.1 * rng.normal(size=(1, 50, *truth.shape)))
    probability, target, snr = stamps(0.5, seed=1, blends=300 // 60)
    named = {"flux_kind": "total", "method": "network"}
    fitted = Calibrator.fit(Posterior.from_draws(draws, **named), truth)
    calibrator = fitted.with_masks(mask_sums(probability, target, snr))
    posterior = Posterior.from_draws(draws[:, :, :5], mask=probability, **named)
    np.testing.assert_array_equal(calibrator(posterior).mask, calibrator.mask(probability))
    np.testing.assert_array_equal(fitted(posterior).mask, probability)
    assert Calibrator.parse(calibrator.describe()) == calibrator
    masks = dict(calibrator.summary().iterrows())["masks"]
    assert masks == "calibrated"


def test_information_keeps_its_share_of_the_entropy():
    rng = np.random.default_rng(1)
    truth = np.exp(rng.normal(5, 1, (150, 2, 1)))
    draws = truth * np.exp(0.1 * rng.normal(size=(1, 50, *truth.shape)))
    named = {"flux_kind": "total", "method": "network"}
    calibrator = Calibrator.fit(Posterior.from_draws(draws, **named), truth)
    calibrator = calibrator.with_masks(mask_sums(*stamps(0.5, seed=1)))
    mask = rng.uniform(0.01, 0.99, (2, 2, 128, 128)).astype(np.float32)
    mask[:, :, 0], share = 0.0, rng.uniform(size=mask.shape).astype(np.float32)
    before = Posterior.from_draws(draws[:, :, :2], mask=mask, **named)
    before = Posterior(before.dataset.assign(mask_information=share * before.mask_entropy))
    after = calibrator(before)
    assert float(abs(after.mask_entropy - before.mask_entropy).max()) > 0.1
    np.testing.assert_allclose(after.mask_information, share * after.mask_entropy * (mask > 0), atol=1e-6)
    assert after.mask_information.dtype == np.float32


def test_mistakes():
    probability, target, snr = stamps(1.0, seed=1, blends=1)
    with pytest.raises(ValueError, match="masks need at least 10000 pixels above the sky noise, got 0"):
        MaskMap.fit(mask_sums(probability, target, 0 * snr))
    with pytest.raises(ValueError, match="masks must have pixels inside and outside to be calibrated"):
        MaskMap.fit(mask_sums(probability, np.ones_like(target), snr))
