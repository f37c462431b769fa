"""Coverage of exact and of wrong posteriors, for all galaxies, for repeated ones, and in bins."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import binned_table, diagnose
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


def test_bins_tell_where_it_is_wrong():
    """Too narrow for the faint half alone."""
    rng = np.random.default_rng(3)
    snr = rng.uniform(0, 2, 4000)
    draws, truth = normal(4000, narrow=np.where(snr < 1, 0.6, 1.0))
    table = binned_table(draws, truth, snr, [0, 1, 2], name="snr")
    assert list(table["low"]) == [0, 1]
    assert table["coverage_68"][0] < table["coverage_68_low"][0]
    assert table["coverage_68_low"][1] <= table["coverage_68"][1] <= table["coverage_68_high"][1]
    assert table["count"].sum() == 4000


def test_thin_bins_warn():
    draws, truth = normal(150)
    feature = np.linspace(0, 1, 150)
    with pytest.warns(UserWarning, match=r"of snr holds 75 values, fewer than 100: it is uncertain"):
        table = binned_table(draws, truth, feature, [0, 0.5, 1.0], name="snr")
    assert len(table) == 2
    draws, truth = normal(300)
    feature = np.linspace(0, 0.9, 300)
    with pytest.warns(UserWarning, match=r"bin 1 to 2 of feature holds 0 values"):
        assert len(binned_table(draws, truth, feature, [0, 1, 2])) == 1


def test_non_detections_are_left_out():
    draws, truth = normal(500)
    draws[:, :100] = np.nan
    assert diagnose(draws, truth)["count"] == 400
    assert binned_table(draws, truth, np.zeros(500), [-1, 1])["count"][0] == 400


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
    assert bands[1] == bootstrap(lambda rows: values[rows].mean(), np.arange(50), seed=1)
    assert bands[1] != bands[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(np.ones((5, 3)), np.ones(3)), "at least 10 values with draws are needed, got 3"),
        (lambda: diagnose(*normal(20), cluster=[1]), r"cluster must have the shape of truth \(20,\), got \(1,\)"),
        (lambda: binned_table(*normal(20), [1], [0, 1], name="snr"), r"snr must have the shape of truth \(20,\)"),
        (lambda: binned_table(*normal(20), np.ones(20), [1, 0]), r"edges must ascend, got \[1\.0, 0\.0\]"),
        (lambda: bootstrap(len, []), "cluster must name at least one row, got none"),
        (lambda: bootstrap(len, [1], level=2), "level must be between 0 and 1, got 2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
