"""Mask probabilities that are right, and some that are not."""

import numpy as np
import pytest

from probdeblend.metrics.reliability import Reliability


def pixels(count=200_000, *, sharpen=1.0, seed=0):
    rng = np.random.default_rng(seed)
    right = rng.beta(0.5, 0.5, count)
    odds = (right / (1 - right)) ** sharpen
    return odds / (1 + odds), rng.random(count) < right


def test_right_probabilities():
    sums = Reliability.measure(*pixels())
    # Twenty bins of 10,000 pixels: their noise alone gives a mean absolute difference of about 0.003.
    assert sums.calibration_error < 0.008
    curve = sums.curve(level=0.9999)
    assert ((curve["observed"] >= curve["low"]) & (curve["observed"] <= curve["high"])).mean() > 0.9


@pytest.mark.parametrize("sharpen", [0.4, 2.5])
def test_wrong_probabilities(sharpen):
    right, wrong = (Reliability.measure(*pixels(sharpen=value)) for value in (1.0, sharpen))
    assert wrong.calibration_error > 0.05
    assert wrong.brier_score > right.brier_score + 5 * 0.3 / np.sqrt(200_000)


def test_sums_of_parts_are_those_of_the_whole():
    probability, target = pixels(1000)
    parts = [Reliability.measure(probability[rows], target[rows]) for rows in (slice(300), slice(300, None))]
    whole = Reliability.measure(probability, target)
    for name in ("calibration_error", "brier_score"):
        assert getattr(parts[0] + parts[1], name) == pytest.approx(getattr(whole, name))
    with pytest.raises(ValueError, match="both must have the same edges to be added"):
        _ = whole + Reliability.measure(probability, target, edges=[0, 0.5, 1])


def test_soft_targets():
    sums = Reliability.measure([0.2, 0.2, 0.7], [0.1, 0.3, 0.9])
    assert sums.calibration_error == pytest.approx(0.2 / 3)
    assert sums.brier_score == pytest.approx((0.01 + 0.01 + 0.04) / 3)


def test_ends_are_in_the_outermost_bins():
    sums = Reliability.measure([0.0, 1.0], [0, 1], edges=[0, 0.5, 1])
    np.testing.assert_array_equal(sums.count, [1, 1])


def test_mistakes():
    with pytest.raises(ValueError, match="probability must have as many values as target, got 2, 1"):
        Reliability.measure([0.1, 0.2], [1])
    with pytest.raises(ValueError, match=r"probability must be between 0 and 1, got 1\.5"):
        Reliability.measure([1.5], [1])
    with pytest.raises(ValueError, match="target must be between 0 and 1, got nan"):
        Reliability.measure([0.5], [np.nan])
    with pytest.raises(ValueError, match="there must be pixels, got none"):
        _ = Reliability.measure([], []).brier_score
