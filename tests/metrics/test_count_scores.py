"""Probabilities of the number of galaxies: scores and reliability of constructed answers."""

import numpy as np
import pytest

from probdeblend.metrics import count_reliability, count_scores


def test_scores_of_constructed_answers():
    probability = [[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]
    table = count_scores(probability, [1, 2, 2, 5])
    assert table["galaxies"].tolist() == ["1", "2", "3+"]
    np.testing.assert_allclose(table["predicted"], [0.4, 0.275, 0.325])
    np.testing.assert_allclose(table["observed"], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(table["accuracy"], [1, 0.5, 1])
    np.testing.assert_allclose(table["brier_score"], np.array([0.54, 0.69, 0.09]) / 4)
    np.testing.assert_allclose(table["calibration_error"], np.array([1.0, 1.3, 0.3]) / 4)
    assert table.meta["blends"] == 4
    assert table.meta["accuracy"] == 0.75
    assert table.meta["brier_score"] == pytest.approx(1.32 / 4)
    assert table.meta["calibration_error"] == pytest.approx(2.6 / 12)
    assert table.meta["log_loss"] == pytest.approx(-np.log(0.8 * 0.6 * 0.3) / 4)
    alone = count_scores([[1.0, 0.0], [0.0, 1.0]], [1, 1])
    assert alone["galaxies"].tolist() == ["1", "2+"]
    assert np.isnan(alone["accuracy"][1])
    assert np.isfinite(alone.meta["log_loss"])


def test_reliability_of_constructed_answers():
    single = np.array([0.9, 0.2, 0.4, 0.6, 0.1, 0.5])
    probability = np.column_stack([single, 1 - single, 0 * single])
    truth, separation = [1, 2, 2, 2, 3, 1], [np.nan, 0.5, 1.0, 1.2, 1.4, 2.5]
    table = count_reliability(probability, truth, separation, edges=(0, 1, 2, 3, 4))
    np.testing.assert_array_equal(table["blends"], [1, 3, 1, 0])
    np.testing.assert_allclose(table["predicted"], [0.8, (0.6 + 0.4 + 0.9) / 3, 0.5, np.nan])
    np.testing.assert_allclose(table["observed"], [1, 1, 0, np.nan])
    np.testing.assert_array_equal(table["pairs"], [1, 2, 0, 0])
    np.testing.assert_allclose(table["probability_two"], [0.8, 0.5, np.nan, np.nan])
    np.testing.assert_allclose(table["unrecognized"], [0, 0.5, np.nan, np.nan])
    assert table.meta == count_scores(probability, truth).meta
    assert len(count_reliability(probability, truth, separation)) == 7


def answered(sharpen, *, count=20_000):
    """Numbers drawn from probabilities that depend on the separation; they are then sharpened or dulled."""
    rng = np.random.default_rng(8)
    separation = rng.uniform(0, 10, count)
    logits = np.column_stack([3 - separation, rng.normal(size=count), 0.3 * separation - 2])
    right, given = (np.exp(factor * logits) for factor in (1.0, sharpen))
    right, given = (values / values.sum(1, keepdims=True) for values in (right, given))
    truth = 1 + (rng.random(count)[:, None] > right.cumsum(1)[:, :2]).sum(1)
    return given, truth, separation


def inside(table):
    return (table["observed"] >= table["low_observed"]) & (table["observed"] <= table["high_observed"])


def test_right_probabilities_are_inside_their_bands():
    table = count_reliability(*answered(1.0), edges=np.arange(11))
    assert inside(table).sum() >= 8  # of ten, with 95 % or more each
    # Twenty bins of some 1,000 blends: their noise alone gives a mean absolute difference below 0.01.
    assert table.meta["calibration_error"] < 0.015


@pytest.mark.parametrize("sharpen", [0.4, 2.5])
def test_wrong_probabilities_are_caught(sharpen):
    right, wrong = (count_reliability(*answered(factor), edges=np.arange(11)) for factor in (1.0, sharpen))
    assert inside(wrong).sum() <= 5
    assert wrong.meta["calibration_error"] > 0.04
    for score in ("log_loss", "brier_score"):
        assert wrong.meta[score] > right.meta[score] + 0.01


def test_mistakes():
    good = [[0.5, 0.5], [0.2, 0.8]]
    for truth in ([0, 1], [1.0, 2.0], [[1], [2]], []):
        with pytest.raises(ValueError, match="truth must be one whole number from 1 per blend, got"):
            count_scores(good, truth)
    with pytest.raises(ValueError, match=r"probability must have the shape \(3, class >= 2\), got \(2, 2\)"):
        count_scores(good, [1, 2, 3])
    with pytest.raises(ValueError, match=r"probability must have the shape \(2, class >= 2\), got \(2, 1\)"):
        count_reliability([[1.0], [1.0]], [1, 2], [1, 2])
    for row in ([0.5, 0.4], [1.5, -0.5], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="probability must not be negative and must sum to 1 over the classes"):
            count_scores([row, [1, 0]], [1, 2])
    with pytest.raises(ValueError, match=r"separation must have the shape of truth \(2,\), got \(3,\)"):
        count_reliability(good, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="edges must ascend"):
        count_reliability(good, [1, 2], [1, 2], edges=[1, 0])
