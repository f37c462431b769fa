"""Detections and masks against the truth: exact small examples, and another implementation of COCO's rules."""

import numpy as np
import pytest

from probdeblend.metrics import detections
from probdeblend.metrics.detections import (
    average_precision,
    binned_average_precision,
    detection_table,
    match_positions,
)

NAN = np.nan


def test_levels_are_those_of_coco():
    np.testing.assert_allclose(detections.IOU_LEVELS, np.linspace(0.5, 0.95, 10))


def test_match_in_any_order():
    truth = np.array([[10.0, 20.0], [40.0, 50.0], [90.0, 90.0]])
    detected = np.array([[41.0, 50.0], [100.0, 0.0], [10.0, 19.0]])
    np.testing.assert_array_equal(match_positions(detected, truth), [2, 0, -1])


def test_match_gives_each_detection_once():
    assert sorted(match_positions([[0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]])) == [-1, 0]
    np.testing.assert_array_equal(match_positions([[0.0, 0.0]], [[2.0, 0.0], [1.0, 0.0]]), [-1, 0])


def test_match_is_the_best_for_all_not_the_nearest_for_one():
    """The detection between two galaxies is nearer to the first, but the second has no other."""
    truth, detected = [[0.0, 0.0], [4.0, 0.0]], [[1.8, 0.0], [-2.5, 0.0]]
    np.testing.assert_array_equal(match_positions(detected, truth), [1, 0])


def test_missed_galaxy_takes_no_detection_from_another():
    """The least sum of distances, 6 + 90 against 97 + 1, would give the detection to the galaxy that is too far."""
    truth, detected = [[-6.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [91.0, 0.0]]
    np.testing.assert_array_equal(match_positions(detected, truth, radius=5), [-1, 0])


@pytest.mark.parametrize(("radius", "expected"), [(4.99, -1), (5.0, 0), (5.01, 0)])
def test_radius_is_inclusive(radius, expected):
    assert match_positions([[3.0, 4.0]], [[0.0, 0.0]], radius=radius) == [expected]


def test_positions_that_are_nan_are_none():
    truth = [[NAN, NAN], [5.0, 5.0]]
    np.testing.assert_array_equal(match_positions([[NAN, 5.0], [5.0, 5.0]], truth), [-1, 1])
    np.testing.assert_array_equal(match_positions([], truth), [-1, -1])
    assert match_positions([[1.0, 1.0]], []).shape == (0,)


def test_detection_table():
    truth = np.array([[[0.0, 0.0], [10.0, 0.0]]] * 4)
    truth[3] = NAN
    detected = [[[0.0, 1.0], [10.0, 1.0]], [[0.0, 1.0], [30.0, 0.0], [40.0, 0.0]], [], [[0.0, 0.0]]]
    table = detection_table(detected, truth)
    assert list(table["true"]) == [2, 2, 2, 0]
    assert list(table["detected"]) == [2, 3, 0, 1]
    assert list(table["matched"]) == [2, 1, 0, 0]
    np.testing.assert_allclose(table["precision"], [1, 1 / 3, NAN, 0])
    np.testing.assert_allclose(table["recall"], [1, 1 / 2, 0, NAN])
    totals = detections.detection_totals(table)
    assert totals == {"true": 6, "detected": 6, "matched": 3, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    some = detections.detection_totals(table[:2])
    assert some["f1"] == pytest.approx(2 / (1 / some["precision"] + 1 / some["recall"]))


def test_totals_of_nothing():
    totals = detections.detection_totals(detection_table([], []))
    assert totals["true"] == 0
    assert np.isnan([totals["precision"], totals["recall"], totals["f1"]]).all()


def test_detections_count_once_however_blends_are_cut(rng):
    truth, detected = rng.uniform(0, 50, size=(40, 2, 2)), rng.uniform(0, 50, size=(40, 3, 2))
    table = detection_table(detected, truth, radius=20)
    swapped = detection_table(truth, detected, radius=20)
    assert list(swapped["matched"]) == list(table["matched"])
    assert detections.detection_totals(swapped)["precision"] == detections.detection_totals(table)["recall"]
    assert 0 < table["matched"].sum() < 80


def square(start, stop, *, size=20):
    """Mask of columns `start` to `stop`."""
    mask = np.zeros((size, size), dtype=bool)
    mask[:, start:stop] = True
    return mask


@pytest.fixture
def blends(rng):
    """Probabilities, true masks and scores of blends of up to three rectangles, some moved, missed or spurious."""
    estimate, truth, scores = [], [], []
    for _ in range(60):
        low, high = rng.integers(0, 8, size=3), rng.integers(12, 20, size=3)
        real = [square(a, b) for a, b in zip(low, high, strict=True)][: rng.integers(0, 4)]
        shift = rng.integers(-3, 4, size=(2, 3))
        found = [square(max(a + i, 0), b + j) for a, b, i, j in zip(low, high, *shift, strict=True)]
        truth.append(np.array(real).reshape(-1, 20, 20))
        estimate.append(np.array(found)[rng.permutation(3)[: rng.integers(0, 4)]] * 0.7)
        scores.append(rng.uniform(size=len(estimate[-1])))
    return estimate, truth, scores


def coco(estimate, truth, scores, level):
    """Average precision by the letter of COCO's rules, one mask of all blends after the other."""
    ranked = sorted(((s, b, i) for b, found in enumerate(scores) for i, s in enumerate(found)), reverse=True)
    total, taken, curve, hits = sum(map(len, truth)), set(), [], 0
    for rank, (_, blend, instance) in enumerate(ranked, start=1):
        mask, best = estimate[blend][instance] >= 0.5, (level, None)
        for galaxy, real in enumerate(truth[blend]):
            overlap = (mask & real).sum() / (mask | real).sum()
            if (blend, galaxy) not in taken and overlap >= best[0]:
                best = overlap, (blend, galaxy)
        if best[1] is not None:
            taken.add(best[1])
            hits += 1
        curve.append((hits / total, hits / rank))
    return np.mean([max((p for r, p in curve if r >= step / 100), default=0) for step in range(101)])


def test_average_precision_follows_the_rules_of_coco(blends):
    found = average_precision(blends[0], blends[1], scores=blends[2])
    np.testing.assert_allclose(found, [coco(*blends, level) for level in detections.IOU_LEVELS])
    assert 0 < found[-1] < found[0] < 1
    assert (np.diff(found) <= 1e-12).all()


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("other", [bool, np.int64, np.float32])
def test_average_precision_on_any_dtype(kind, other):
    """Masks of an intersection over union of exactly 0.6 count up to that level."""
    truth, estimate = np.array([[square(0, 16)]]), np.array([[square(4, 20)]])
    found = average_precision(estimate.astype(kind), truth.astype(other))
    np.testing.assert_array_equal(found, [1] * 3 + [0] * 7)


def test_masks_are_cut_at_the_threshold():
    truth = np.array([[square(0, 10)]])
    probability = np.where(truth, 0.4, 0.1)
    np.testing.assert_array_equal(average_precision(probability, truth), 0)
    np.testing.assert_array_equal(average_precision(probability, truth > 0.3, threshold=0.3), 1)


def test_perfect_masks_in_any_order(blends):
    truth = blends[1]
    np.testing.assert_array_equal(average_precision([masks[::-1] for masks in truth], truth), 1)


def test_spurious_mask_costs_only_if_it_is_surer():
    truth = np.array([[square(0, 10)]])
    estimate = np.array([[square(0, 10), square(12, 18)]])
    np.testing.assert_array_equal(average_precision(estimate, truth, scores=[[0.9, 0.1]]), 1)
    np.testing.assert_array_equal(average_precision(estimate, truth, scores=[[0.1, 0.9]]), 0.5)
    np.testing.assert_array_equal(average_precision(estimate, truth), 0.5)


def test_second_mask_of_a_galaxy_is_spurious():
    truth = np.array([[square(0, 10), square(10, 20)]])
    estimate = np.array([[square(0, 10), square(0, 10)]])
    found = average_precision(estimate, truth, scores=[[0.9, 0.8]])
    np.testing.assert_allclose(found, 51 / 101)  # recalls 0 to 0.5 with precision 1, none beyond


def test_surer_mask_chooses_first():
    """Both masks reach the only galaxy at 0.5; the one that is less sure fits better, and comes too late."""
    truth, estimate = np.array([[square(0, 10)]]), np.array([[square(0, 10), square(0, 16)]])
    fits = average_precision(estimate, truth, scores=[[0.2, 0.8]])
    np.testing.assert_array_equal(fits, [1] * 3 + [0.5] * 7)


def test_default_score_is_the_mean_probability():
    truth = np.array([[square(0, 10), square(10, 20)]])
    estimate = np.array([[0.9 * square(0, 10), 0.6 * square(0, 10), 0.7 * square(10, 20)]])
    np.testing.assert_array_equal(average_precision(estimate, truth), 1)
    np.testing.assert_array_equal(average_precision(estimate, truth, scores=[[0.9, 0.6, 0.7]]), 1)
    np.testing.assert_allclose(average_precision(estimate, truth, scores=[[0.9, 0.8, 0.7]]), (51 + 50 * 2 / 3) / 101)


def test_order_of_blends_does_not_matter_where_scores_are_equal(blends, rng):
    masks, truth, _ = blends
    order = rng.permutation(len(truth))
    found = average_precision(masks, truth)
    np.testing.assert_allclose(average_precision([masks[i] for i in order], [truth[i] for i in order]), found)


def test_masks_without_pixels_are_none():
    truth = np.array([[square(0, 10), square(0, 0)]])
    estimate = np.array([[square(0, 10).astype(float), np.full((20, 20), NAN)]])
    np.testing.assert_array_equal(average_precision(estimate, truth), 1)
    np.testing.assert_array_equal(average_precision(estimate, truth, scores=[[0.1, NAN]]), 1)
    np.testing.assert_array_equal(average_precision(estimate[:, 1:], truth), 0)
    assert np.isnan(average_precision(estimate, truth[:, 1:])).all()
    assert np.isnan(average_precision([], [])).all()


def test_precision_in_bins_of_overlap(blends):
    estimate, truth, scores = blends
    overlap = np.linspace(0, 0.99, len(truth))
    table = binned_average_precision(estimate, truth, overlap, [0, 0.5, 1, 2], scores=scores)
    assert list(table["blends"]) == [30, 30, 0]
    assert table["galaxies"].sum() == sum(map(len, truth))
    assert table["instances"].sum() == sum(map(len, estimate))
    first = average_precision(estimate[:30], truth[:30], scores=scores[:30])
    row = table[0]
    assert row["average_precision"] == pytest.approx(first.mean())
    assert (row["average_precision_50"], row["average_precision_75"]) == (first[0], first[5])
    assert np.isnan(table["average_precision"][2])
    everything = binned_average_precision(estimate, truth, overlap, [-np.inf, np.inf], scores=scores)
    found = average_precision(estimate, truth, scores=scores)
    assert everything["average_precision"][0] == pytest.approx(found.mean())


def test_average_recall_is_the_fraction_matched():
    truth = np.array([[square(0, 10), square(10, 20)]] * 2)
    estimate = np.array([[square(0, 10), square(14, 20)], [square(0, 0), square(10, 20)]])
    (row,) = binned_average_precision(estimate, truth, [0.0, 0.0], [-1, 1])
    # Two masks fit, and one has an intersection over union of 0.6, which reaches three of ten levels.
    assert row["average_recall"] == pytest.approx((2 + 0.3) / 4)
    assert (row["galaxies"], row["instances"]) == (4, 3)


def test_masks_get_worse_with_overlap():
    """Masks that give all common pixels to the first galaxy are right for a lone pair only."""
    truth = np.array([[square(0, 10), square(10 - i, 20 - i)] for i in (0, 2, 4, 6)])
    estimate = truth.copy()
    estimate[:, 1] &= ~truth[:, 0]
    table = binned_average_precision(estimate, truth, [0.0, 0.2, 0.4, 0.6], [0, 0.1, 0.3, 0.5, 0.7])
    assert (np.diff(table["average_precision"]) < 0).all()
    np.testing.assert_allclose(table["average_recall"], [1, (1 + 0.7) / 2, (1 + 0.3) / 2, 1 / 2])


@pytest.mark.parametrize("radius", [0.0, -1.0, NAN])
def test_radius_is_positive(radius):
    with pytest.raises(ValueError, match=f"radius must be positive, got {radius}"):
        match_positions([[0.0, 0.0]], [[0.0, 0.0]], radius=radius)


def test_positions_have_x_and_y():
    with pytest.raises(ValueError, match=r"detected must have the shape \(number, 2\), x before y, got \(2,\)"):
        match_positions([0.0, 0.0], [[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"truth must have the shape \(number, 2\), x before y, got \(1, 3\)"):
        match_positions([[0.0, 0.0]], [[0.0, 0.0, 0.0]])


def test_blends_are_as_many():
    masks, positions = np.ones((2, 1, 4, 4)), np.ones((2, 1, 2))
    with pytest.raises(ValueError, match="detected must hold as many blends as truth, 2, got 1"):
        detection_table(positions[:1], positions)
    with pytest.raises(ValueError, match="estimate must hold as many blends as truth, 2, got 1"):
        average_precision(masks[:1], masks)
    with pytest.raises(ValueError, match="scores must hold as many blends as truth, 2, got 3"):
        average_precision(masks, masks, scores=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"feature must have the shape of the blends \(2,\), got \(2, 1\)"):
        binned_average_precision(masks, masks, np.ones((2, 1)), [0, 1])


def test_masks_have_one_size():
    for estimate in (np.ones((1, 1, 3, 4)), np.ones((1, 4, 4))):
        with pytest.raises(ValueError, match=r"estimate and truth must have masks \(number, y, x\) of one size, got"):
            average_precision(estimate, np.ones((1, 1, 4, 4)))


@pytest.mark.parametrize("scores", [[[1.0, NAN]], [[1.0]], [1.0]])
def test_scores_are_numbers_of_masks(scores):
    masks = np.ones((1, 2, 4, 4))
    with pytest.raises(ValueError, match="scores must hold a finite number for each of 2 masks, got"):
        average_precision(masks, masks, scores=scores)


def test_edges_ascend():
    with pytest.raises(ValueError, match="edges must ascend, got"):
        binned_average_precision(np.ones((1, 1, 4, 4)), np.ones((1, 1, 4, 4)), [0.5], [1, 0])
