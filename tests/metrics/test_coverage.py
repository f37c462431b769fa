"""Coverage of exact and of wrong posteriors, for all galaxies and for repeated ones, their score, and bins."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import diagnose
from probdeblend.metrics.coverage import bootstrap, in_bins


def normal(count, *, seed=0, narrow=1.0, draws=300):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=count)
    truth = mean + rng.normal(size=count)
    return mean + narrow * rng.normal(size=(draws, count)), truth


def test_an_exact_posterior(false_alarm):
    row = diagnose(*normal(3000))
    assert row["count"] == row["clusters"] == 3000
    assert abs(row["pull_mean"]) < 4 / np.sqrt(3000)
    assert row["pull_sd"] == pytest.approx(1, abs=4 / np.sqrt(6000))
    for sigma, expected in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        inside = round(row[f"within_{sigma}"] * 3000)
        assert stats.binomtest(inside, 3000, expected).pvalue > false_alarm
    assert row["rank_p"] > false_alarm
    for level in (50, 68, 90, 95):
        assert row[f"coverage_{level}_low"] < level / 100 < row[f"coverage_{level}_high"]
        assert stats.binomtest(round(row[f"coverage_{level}"] * 3000), 3000, level / 100).pvalue > false_alarm
    assert row["width"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("narrow", "sign"), [(0.7, 1), (1.5, -1)])
def test_wrong_widths_show(narrow, sign):
    right, wrong = diagnose(*normal(3000)), diagnose(*normal(3000, narrow=narrow))
    assert sign * (wrong["pull_sd"] - 1) > 5 / np.sqrt(6000)
    assert sign * (0.68 - wrong["coverage_68"]) > 5 * np.sqrt(0.68 * 0.32 / 3000)
    for level in (50, 68, 90, 95):
        low, high = wrong[f"coverage_{level}_low"], wrong[f"coverage_{level}_high"]
        assert wrong[f"coverage_{level}"] < low if sign > 0 else wrong[f"coverage_{level}"] > high
    assert wrong["rank_p"] < 1e-6
    assert wrong["interval_score"] > right["interval_score"]


def test_clusters_widen_the_band():
    """Thirty galaxies, each a hundred times, tell as much as thirty."""
    draws, truth = normal(30, draws=1000)
    draws, truth = np.repeat(draws, 100, axis=1), np.repeat(truth, 100)
    row = diagnose(draws, truth, cluster=np.repeat(np.arange(30), 100))
    assert row["clusters"] == 30
    assert row["coverage_68_high"] - row["coverage_68_low"] > 0.2
    assert row["coverage_68_low"] <= row["coverage_68"] <= row["coverage_68_high"]
    assert np.isnan(row["rank_p"])
    assert diagnose(draws, truth)["coverage_68_high"] - diagnose(draws, truth)["coverage_68_low"] < 0.04


def test_few_clusters_have_no_band():
    """With one galaxy the bootstrap would be certain of whatever that one says."""
    row = diagnose(*normal(90), cluster=np.arange(90) // 10)
    assert row["clusters"] == 9
    assert np.isfinite(row["coverage_68"])
    assert np.isnan([row["coverage_68_low"], row["coverage_68_high"]]).all()
    assert diagnose(*normal(100), cluster=np.arange(100) // 10)["coverage_68_low"] < 0.68


def test_nothing_is_known_without_draws():
    draws, truth = normal(20)
    for cluster in (None, np.arange(20)):
        row = diagnose(np.full_like(draws, np.nan), truth, cluster=cluster)
        assert row.pop("count") == row.pop("clusters") == 0
        assert np.isnan(list(row.values())).all()


def test_non_detections_are_left_out():
    draws, truth = normal(500)
    draws[:, :100] = np.nan
    assert diagnose(draws, truth)["count"] == 400


def test_bins():
    found = in_bins([[-1.0, 0.0, 0.5], [1.0, 2.0, np.nan]], [0, 1, 2])
    assert [(low, high) for low, high, _ in found] == [(0, 1), (1, 2)]
    np.testing.assert_array_equal(found[0][2], [[False, True, True], [False, False, False]])
    np.testing.assert_array_equal(found[1][2], [[False, False, False], [True, True, False]])


def test_open_bins_hold_everything_but_nan():
    ((_, _, inside),) = in_bins([-np.inf, 0.0, np.inf, np.nan], [-np.inf, np.inf])
    assert inside.tolist() == [True, True, True, False]


@pytest.mark.parametrize("edges", [[0.0], [0.0, 0.0], [1.0, 0.0], [[0.0, 1.0]], 1.0, [0.0, np.nan]])
def test_edges_ascend(edges):
    with pytest.raises(ValueError, match="edges must ascend, got"):
        in_bins([0.5], edges)


def test_band_of_a_mean_has_its_standard_error(rng):
    values = rng.normal(size=2000)
    low, high = bootstrap(lambda rows: values[rows].mean(), np.arange(2000), resamples=400)
    assert (high - low) / 2 == pytest.approx(1 / np.sqrt(2000), rel=0.15)


@pytest.mark.slow
def test_band_covers_over_galaxies_not_over_rows(rng, false_alarm):
    """Twenty galaxies seen a hundred times each: 200 experiments; rows drawn one by one would cover a tenth."""
    galaxy = np.repeat(np.arange(20), 100)
    inside = {True: 0, False: 0}
    for _ in range(200):
        values = np.repeat(rng.normal(size=20), 100) + 0.1 * rng.normal(size=2000)
        for clustered in inside:
            owner = galaxy if clustered else np.arange(2000)
            low, high = bootstrap(lambda rows, values=values: values[rows].mean(), owner, resamples=100)
            inside[clustered] += low <= 0 <= high
    # With 20 galaxies the bootstrap's interval is a little too short: 0.66 instead of 0.68.
    assert stats.binomtest(inside[True], 200, 0.66).pvalue > false_alarm
    assert stats.binomtest(inside[False], 200, 0.66).pvalue < false_alarm


def test_same_seed_same_band(rng):
    values = rng.normal(size=50)
    bands = {seed: bootstrap(lambda rows: values[rows].mean(), np.arange(50), seed=seed) for seed in (1, 2)}
    np.testing.assert_array_equal(bands[1], bootstrap(lambda rows: values[rows].mean(), np.arange(50), seed=1))
    assert not np.array_equal(bands[1], bands[2])


def test_bands_of_several_statistics(rng):
    values, galaxy = rng.normal(size=(3, 60)), np.arange(60) // 3
    together = bootstrap(lambda rows: values[:, rows].mean(1), galaxy)
    assert together.shape == (2, 3)
    each = [bootstrap(lambda rows, v=v: v[rows].mean(), galaxy) for v in values]
    np.testing.assert_allclose(together.T, each)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(np.ones((5, 3)), np.ones(2)), r"draws must have the shape \(draw, \*\(2,\)\), got \(5, 3\)"),
        (lambda: diagnose(*normal(20), cluster=[1]), r"cluster must have the shape of truth \(20,\), got \(1,\)"),
        (lambda: bootstrap(len, []), "cluster must name at least one row, got none"),
        (lambda: bootstrap(len, [1], level=2), "level must be between 0 and 1, got 2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
