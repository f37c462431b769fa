"""Overlap of masks and light, and reliability of probabilities that are right or wrong."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import blendedness, iou, reliability
from probdeblend.metrics.masks import iou_matrix


def pixels(count=200_000, *, sharpen=1.0, seed=0):
    rng = np.random.default_rng(seed)
    right = rng.beta(0.5, 0.5, count)
    odds = (right / (1 - right)) ** sharpen
    return odds / (1 + odds), rng.random(count) < right


def test_right_probabilities():
    curve = reliability(*pixels())
    # Twenty bins of 10,000 pixels: their noise alone gives a mean absolute difference of about 0.003.
    assert curve.meta["ece"] < 0.008
    # False-alarm rate: 1e-4 in each of twenty bins.
    low, high = stats.binom.interval(0.9999, curve["count"], curve["predicted"]) / curve["count"]
    assert ((curve["observed"] >= low) & (curve["observed"] <= high)).all()


@pytest.mark.parametrize("sharpen", [0.4, 2.5])
def test_wrong_probabilities(sharpen):
    assert reliability(*pixels(sharpen=sharpen)).meta["ece"] > 0.05


def test_soft_targets():
    assert reliability([0.2, 0.2, 0.7], [0.1, 0.3, 0.9]).meta["ece"] == pytest.approx(0.2 / 3)


def test_ends_are_in_the_outermost_bins():
    curve = reliability([0.0, 0.04, 0.05, 0.96, 1.0], [0, 0, 0, 1, 1])
    assert curve["count"].tolist() == [2, 1, 2]
    np.testing.assert_allclose(curve["predicted"], [0.02, 0.05, 0.98])


def test_mistakes_of_probabilities():
    with pytest.raises(ValueError, match=r"probability must have as many values as target, .*, got 2 and 1"):
        reliability([0.1, 0.2], [1])
    with pytest.raises(ValueError, match=r"probability must be between 0 and 1, got 1\.5"):
        reliability([1.5], [1])
    with pytest.raises(ValueError, match="target must be between 0 and 1, got nan"):
        reliability([0.5], [np.nan])
    with pytest.raises(ValueError, match="and at least one, got 0 and 0"):
        reliability([], [])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("other", [bool, np.int64, np.float32])
def test_iou_on_any_dtype(kind, other):
    first, second = np.zeros((1, 10, 10), dtype=kind), np.zeros((1, 10, 10), dtype=other)
    first[:, :8], second[:, 2:] = 1, 1
    np.testing.assert_allclose(iou(first, second), [0.6])


def test_iou_thresholds_probabilities():
    probability, truth = np.full((2, 2, 2), 0.4), np.ones((2, 2, 2), dtype=bool)
    np.testing.assert_array_equal(iou(probability, truth), [0, 0])
    np.testing.assert_array_equal(iou(probability, truth, threshold=0.3), [1, 1])


def test_iou_of_every_pair(rng):
    first, second = rng.random((3, 5, 6)) < 0.5, rng.random((2, 5, 6)) < 0.5
    found = iou_matrix(first, second)
    for row, column in np.ndindex(3, 2):
        assert found[row, column] == pytest.approx(float(iou(first[row], second[column])))
    assert iou_matrix(first[:0], second).shape == (0, 2)


def test_iou_of_empty_masks():
    empty, full = np.zeros((1, 3, 3)), np.ones((1, 3, 3))
    assert iou(empty, empty) == 1
    assert iou(empty, full) == 0


def test_masks_need_one_shape():
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3, 3\), got \(2, 2\)"):
        iou(np.ones((2, 2)), np.ones((3, 3)))


def test_blendedness():
    """A galaxy under another one of k times its light, everywhere alike, has the blendedness k / (1 + k)."""
    light = np.zeros((3, 4, 4))
    light[0, :2] = 1.0
    light[1, :2] = 3.0
    np.testing.assert_allclose(blendedness(light), [0.75, 0.25, np.nan])
    light[1] = np.roll(light[1], 2, axis=0)
    np.testing.assert_allclose(blendedness(light)[:2], [0, 0])
