"""Overlap of masks, labels and light, against exact answers."""

import numpy as np
import pytest

from probdeblend.metrics import pixels


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("other", [bool, np.int64, np.float32])
def test_iou_on_any_dtype(kind, other):
    first, second = np.zeros((1, 10, 10), dtype=kind), np.zeros((1, 10, 10), dtype=other)
    first[:, :8], second[:, 2:] = 1, 1
    np.testing.assert_allclose(pixels.iou(first, second), [0.6])


def test_iou_thresholds_probabilities():
    probability, truth = np.full((2, 2, 2), 0.4), np.ones((2, 2, 2), dtype=bool)
    np.testing.assert_array_equal(pixels.iou(probability, truth), [0, 0])
    np.testing.assert_array_equal(pixels.iou(probability, truth, threshold=0.3), [1, 1])


def test_iou_of_empty_masks():
    empty, full = np.zeros((1, 3, 3)), np.ones((1, 3, 3))
    assert pixels.iou(empty, empty) == 1
    assert pixels.iou(empty, full) == 0


def test_masks_need_one_shape():
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3, 3\), got \(2, 2\)"):
        pixels.iou(np.ones((2, 2)), np.ones((3, 3)))


def test_label_iou():
    confusion = [[90, 10, 0], [5, 45, 0], [0, 0, 0]]
    np.testing.assert_allclose(pixels.label_iou(confusion), [90 / 105, 45 / 60, np.nan])
    with pytest.raises(ValueError, match=r"confusion must be square, got shape \(2, 3\)"):
        pixels.label_iou(np.ones((2, 3)))


def test_blendedness():
    """A galaxy under another one of k times its light, everywhere alike, has the blendedness k / (1 + k)."""
    light = np.zeros((3, 4, 4))
    light[0, :2] = 1.0
    light[1, :2] = 3.0
    np.testing.assert_allclose(pixels.blendedness(light), [0.75, 0.25, np.nan])
    light[1] = np.roll(light[1], 2, axis=0)
    np.testing.assert_allclose(pixels.blendedness(light)[:2], [0, 0])
