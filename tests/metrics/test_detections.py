"""Detections that are right or wrong in known ways."""

import numpy as np
import pytest

from probdeblend.metrics import average_precision, binned_fraction, blend_classes, match_sources


def test_each_source_gets_its_own_detection():
    """The nearest detection of both is the same one; the sum of distances decides."""
    matched = match_sources(([0, 0], [5.0, 7.5], [0, 0]), ([0, 0], [4.0, 5.0], [0, 0]), radius=4)
    np.testing.assert_array_equal(matched, [0, 1])


def test_as_many_as_possible_within_the_radius():
    """The nearest pair would leave the other source without a detection within the radius."""
    matched = match_sources(([0, 0], [0.0, 3.0], [0, 0]), ([0, 0], [2.9, 5.9], [0, 0]), radius=3)
    np.testing.assert_array_equal(matched, [0, 1])
    assert (match_sources(([0, 0], [0.0, 3.0], [0, 0]), ([0, 0], [2.9, 9.9], [0, 0]), radius=3) == [1, -1]).all()


def test_scenes_are_apart():
    matched = match_sources(([0, 1], [5.0, 50.0], [5.0, 5.0]), ([0, 1, 2], [5.0, 5.0, 5.0], [5.0] * 3), radius=10)
    np.testing.assert_array_equal(matched, [0, -1, -1])
    assert len(match_sources(([0], [1.0], [1.0]), ([], [], []), radius=1)) == 0
    assert (match_sources(([], [], []), ([0], [1.0], [1.0]), radius=1) == -1).all()


def test_order_does_not_matter(rng):
    x, y = rng.uniform(0, 100, (2, 80))
    jitter = 0.3 * rng.normal(size=(2, 80))
    scene, order = np.arange(80) // 8, rng.permutation(80)
    matched = match_sources(((scene)[order], (x + jitter[0])[order], (y + jitter[1])[order]), (scene, x, y), radius=5)
    assert (order[matched] == np.arange(80)).mean() > 0.95


def test_completeness_in_bins():
    table = binned_fraction([True, True, False, False, True], [1, 2, 2.5, 5, np.nan], [0, 3, 4, 9])
    assert list(table["count"]) == [3, 1]
    np.testing.assert_allclose(table["fraction"], [2 / 3, 0])
    assert (table["fraction_low"] <= table["fraction"]).all()
    assert (table["fraction_high"] > table["fraction"]).all()


def test_average_precision_by_hand():
    """Two sources: the first detection is right, the second empty, the third right but for the threshold of 0.75."""
    found = average_precision([[[0.9, 0.0], [0.0, 0.1], [0.0, 0.72]]], [[0.9, 0.8, 0.7]])
    # Recall 0.5 at precision 1 and recall 1 at precision 2/3: 51 and 50 of 101 recalls.
    half = (51 + 50 * 2 / 3) / 101
    assert found["ap_50"] == pytest.approx(half)
    # Thresholds .50 to .70 find both sources, .75 to .90 one, .95 none.
    assert found["ap"] == pytest.approx((5 * half + 4 * 51 / 101) / 10)


def test_a_second_detection_of_a_source_counts_as_false():
    assert average_precision([[[1.0], [1.0]]], [[0.9, 0.8]])["ap"] == 1
    assert average_precision([[[0.6], [1.0]]], [[0.9, 0.8]])["ap_50"] == 1
    assert average_precision([[[1.0], [1.0]], [[1.0]]], [[0.9, 0.8], [0.1]])["ap_50"] < 1


def test_scores_order_detections_of_all_scenes():
    right, wrong = [[1.0]], [[0.0]]
    low, high = (average_precision([right, wrong], [[a], [b]])["ap"] for a, b in ((0.2, 0.8), (0.8, 0.2)))
    assert low < high
    assert np.isnan(average_precision([np.zeros((1, 0))], [[0.5]])["ap"])
    assert average_precision([np.zeros((0, 2))], [[]])["ap"] == 0


def test_mistakes():
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        match_sources(([0], [1.0], [1.0]), ([0], [1.0], [1.0]), radius=0)
    with pytest.raises(ValueError, match="true must be scene, x and y of one length, got shapes"):
        match_sources(([0], [1.0], [1.0]), ([0], [1.0], [1.0, 2.0]), radius=1)
    with pytest.raises(ValueError, match=r"feature must have the shape of inside \(2,\), got \(1,\)"):
        binned_fraction([True, False], [1], [0, 2])
    with pytest.raises(ValueError, match=r"score must have one number per detection \(1,\), got shape \(2,\)"):
        average_precision([np.ones((1, 2))], [[0.5, 0.5]])


def classes(found, true, *, radius=1.0):
    """Return classes of positions x on a line."""
    line = ((np.zeros(len(x)), np.array(x, dtype=float), np.zeros(len(x))) for x in (found, true))
    return [answer.tolist() for answer in blend_classes(*line, radius=radius)]


def test_classes_of_blends_by_hand():
    """From left to right: found alone, resolved, one detection for two, one missed, and one detection of nothing."""
    true, found = [0, 10, 10.6, 20, 20.8, 30], [0.1, 10, 10.7, 20.4, 40]
    expected = ["single", "resolved", "resolved", "unrecognized", "unrecognized", "missed"]
    assert classes(found, true) == [expected, ["single", "resolved", "resolved", "unrecognized", "spurious"]]


def test_partly_resolved_and_shredded():
    assert classes([0.4, 1.6], [0, 0.8, 1.6]) == [["partial"] * 3, ["partial"] * 2]
    assert classes([-0.5, 0.1, 0.6], [0]) == [["shredded"], ["shredded"] * 3]
    # The source of a resolved blend of which a piece is left over; its neighbor is resolved.
    assert classes([-0.8, 0, 0.9], [0, 0.9]) == [["shredded", "resolved"], ["shredded", "shredded", "resolved"]]


def test_a_source_without_detection_makes_no_blend():
    """It is linked to its neighbor, and the detection of that lies too far from it."""
    assert classes([-0.5], [0, 0.8]) == [["single", "missed"], ["single"]]


def test_classes_depend_on_the_radius_and_not_on_order_or_other_scenes(rng):
    assert classes([0.4], [0, 0.8], radius=0.3) == [["missed", "missed"], ["spurious"]]
    scene, (x, y), found = np.arange(400) // 20, rng.uniform(0, 20, (2, 400)), rng.uniform(0, 20, (2, 400))
    found, order = (scene, *found), rng.permutation(400)
    true_class, found_class = blend_classes(found, (scene, x, y), radius=2.0)
    assert set(true_class) == {"missed", "shredded", "single", "resolved", "unrecognized", "partial"}
    mixed = blend_classes(tuple(v[order] for v in found), (scene, x, y), radius=2.0)
    assert (mixed[0] == true_class).all()
    assert (mixed[1] == found_class[order]).all()
    first = blend_classes(tuple(v[:20] for v in found), (scene[:20], x[:20], y[:20]), radius=2.0)
    assert (first[0] == true_class[:20]).all()


def test_classes_of_nothing():
    assert classes([], [1, 2]) == [["missed", "missed"], []]
    assert classes([1, 2], []) == [[], ["spurious", "spurious"]]
    assert classes([], []) == [[], []]
    with pytest.raises(ValueError, match="radius must be positive, got -1"):
        classes([1], [1], radius=-1)
