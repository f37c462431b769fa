"""Accuracy of pairs, in bins and by category: exact small examples, known laws, and the published results."""

import numpy as np
import pytest
from astropy.table import Table
from scipy import stats

from benchmarks import flux_accuracy as accuracy
from probdeblend.metrics import accuracy_table


@pytest.fixture
def fluxes():
    """Three pairs in one band: errors of 10, -10, 0, 100 and -50 percent, and a non-detection."""
    truth = np.array([[[100.0], [10.0]], [[200.0], [20.0]], [[300.0], [30.0]]])
    factor = np.array([[[1.1], [0.9]], [[1.0], [2.0]], [[0.5], [np.nan]]])
    return truth * factor, truth


def correlated_pairs(rng, *, scatter=0.1, correlation=-0.5, size=20_000):
    """Pairs of equal fluxes whose ln errors are normal and correlated."""
    covariance = scatter**2 * np.array([[1, correlation], [correlation, 1]])
    truth = np.full((size, 2, 1), 50.0)
    return truth * np.exp(rng.multivariate_normal([0, 0], covariance, size=size))[..., None], truth


def test_row_of_numbers(fluxes):
    row = accuracy.flux_accuracy(*fluxes)
    magnitudes = -2.5 * np.log10([1.1, 0.9, 1.0, 2.0, 0.5])
    assert row["count"] == 6
    assert row["detected"] == pytest.approx(5 / 6)
    assert row["mape"] == pytest.approx((10 + 10 + 0 + 100 + 50) / 5)
    assert row["median_ape"] == pytest.approx(10)
    assert row["bias_mag"] == pytest.approx(0)
    assert row["sd_mag"] == pytest.approx(magnitudes.std())
    assert row["nmad_mag"] == pytest.approx(1.4826 * -2.5 * np.log10(0.9), rel=1e-4)
    assert row["outliers"] == pytest.approx(3 / 6)  # a factor of 2 either way is 0.7526 mag, and one was not found


def test_row_agrees_with_the_table_of_posteriors(fluxes):
    estimate, truth = fluxes
    draws = np.array([[0.9, 1.0, 1.1]])[..., None, None, None] * estimate
    (row,) = accuracy_table({"network": draws}, truth)
    for name, value in accuracy.flux_accuracy(estimate, truth).items():
        assert row[name] == pytest.approx(value)


def test_row_counts_only_known_truths(fluxes):
    estimate, truth = fluxes
    truth[2, 1] = np.nan
    row = accuracy.flux_accuracy(estimate, truth)
    assert row["count"] == 5
    assert row["detected"] == 1
    assert row["outliers"] == pytest.approx(2 / 5)


def test_row_of_nothing():
    row = accuracy.flux_accuracy(np.ones(0), np.ones(0))
    assert row.pop("count") == 0
    assert np.isnan(list(row.values())).all()


def test_pair_accuracy(fluxes):
    table = accuracy.pair_accuracy(*fluxes)
    assert list(table["quantity"]) == ["each flux", "central", "companion", "total flux"]
    assert list(table["count"]) == [6, 3, 3, 3]
    np.testing.assert_allclose(table["mape"][:3], [34, 20, 55])
    np.testing.assert_allclose(table["mape"][3], (100 * 9 / 110 + 100 * 20 / 220) / 2)
    np.testing.assert_allclose(table["outliers"], [3 / 6, 1 / 3, 2 / 3, 1 / 3])
    np.testing.assert_allclose(table["detected"], [5 / 6, 1, 2 / 3, 2 / 3])


def test_exchanged_light_cancels_in_the_total():
    truth = np.array([[[10.0], [20.0]], [[30.0], [20.0]], [[50.0], [40.0]]])
    moved = np.array([2.0, -1.0, 3.0])[:, None, None] * np.array([[[1.0], [-1.0]]])
    table = accuracy.pair_accuracy(truth + moved, truth)
    assert table["mape"][0] > 4
    assert table["mape"][3] == pytest.approx(0, abs=1e-10)
    assert table["residual_correlation"][3] == pytest.approx(-1)
    assert np.isnan(table["residual_correlation"][:3]).all()


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5])
def test_scatter_of_the_total_follows_from_the_correlation(rng, false_alarm, correlation):
    table = accuracy.pair_accuracy(*correlated_pairs(rng, scatter=0.02, correlation=correlation))
    expected = 1.0857 * 0.02 * np.array([1, 1, 1, np.sqrt((1 + correlation) / 2)])
    tolerance = stats.norm.isf(false_alarm / 6) / np.sqrt(20_000)
    np.testing.assert_allclose(table["sd_mag"], expected, rtol=tolerance)
    # The robust scatter of a normal has 1.65 times the error that its standard deviation has, 1 / sqrt(2 n).
    np.testing.assert_allclose(table["nmad_mag"], expected, rtol=1.65 * tolerance)
    spearman = 6 / np.pi * np.arcsin(correlation / 2)
    assert table["residual_correlation"][3] == pytest.approx(spearman, abs=tolerance)


def test_companions_of_groups_are_pooled():
    truth = np.full((4, 3, 1), 10.0)
    estimate = truth * np.array([1.0, 1.1, 1.3])[:, None]
    table = accuracy.pair_accuracy(estimate, truth)
    assert list(table["count"]) == [12, 4, 8, 4]
    np.testing.assert_allclose(table["mape"][1:], [0, 20, 40 / 3], atol=1e-12)


def test_binned_accuracy(fluxes):
    estimate, truth = fluxes
    table = accuracy.binned_accuracy(estimate, truth, [1.0, 2.0, 3.0], [0, 2, 4, 6])
    assert list(table["low"]) == [0, 2, 4]
    assert list(table["high"]) == [2, 4, 6]
    assert list(table["count"]) == [2, 4, 0]
    np.testing.assert_allclose(table["mape"], [10, 50, np.nan])
    np.testing.assert_allclose(table["outliers"], [0, 3 / 4, np.nan])
    np.testing.assert_allclose(table["detected"], [1, 3 / 4, np.nan])


def test_feature_of_each_galaxy(fluxes):
    estimate, truth = fluxes
    table = accuracy.binned_accuracy(estimate, truth, truth[..., 0], [0, 50, 500])
    companion, central = (accuracy.flux_accuracy(estimate[:, i], truth[:, i]) for i in (1, 0))
    np.testing.assert_allclose(table["mape"], [companion["mape"], central["mape"]])
    again = accuracy.binned_accuracy(estimate, truth, truth, [0, 50, 500])
    assert all((again[name] == table[name]).all() for name in table.colnames)


def test_bins_find_where_an_estimator_is_biased(rng, false_alarm):
    separation = rng.uniform(0, 20, size=20_000)
    estimate, truth = correlated_pairs(rng)
    estimate = estimate * np.where(separation < 5, 1.2, 1.0)[:, None, None]
    table = accuracy.binned_accuracy(estimate, truth, separation, [0, 5, 10, 20])
    # The median of n normal values has the error sqrt(pi / 2 n); the two errors of a blend count as one here.
    error = stats.norm.isf(false_alarm / 6) * 1.0857 * 0.1 * np.sqrt(np.pi / table["count"])
    assert (np.abs(table["bias_mag"] - [-2.5 * np.log10(1.2), 0, 0]) < error).all()


def test_accuracy_by_category(fluxes):
    table = accuracy.accuracy_by(*fluxes, [["sph", "irr"], ["disk", "irr"], ["sph", "disk"]])
    assert list(table["category"]) == ["disk", "irr", "sph"]
    assert list(table["count"]) == [2, 2, 2]
    np.testing.assert_allclose(table["mape"], [0, 55, 30])
    np.testing.assert_allclose(table["outliers"], [0.5, 0.5, 0.5])


def test_accuracy_by_blend_number(fluxes):
    table = accuracy.accuracy_by(*fluxes, [7, 7, 5])
    assert list(table["category"]) == [5, 7]
    assert list(table["count"]) == [2, 4]


def test_magnitude_difference():
    flux = np.array([[[100.0], [1.0]], [[1.0], [10.0]], [[1.0], [-1.0]]])
    difference = accuracy.magnitude_difference(flux)[..., 0]
    np.testing.assert_allclose(difference, [[-5, 5], [2.5, -2.5], [np.nan, np.nan]])


def test_published_edges_are_those_of_figures():
    np.testing.assert_allclose(accuracy.MAGNITUDE_DIFFERENCE_EDGES, np.linspace(-2, 2, 7))
    assert accuracy.SEPARATION_EDGES[:4] == (2, 8, 13, 18)


def test_excess_is_what_blending_adds(rng, false_alarm):
    truth = rng.uniform(10, 100, size=(20_000, 2, 1))
    noise, added = rng.normal(scale=0.03, size=truth.shape), rng.normal(scale=0.04, size=truth.shape)
    result = accuracy.blending_excess(truth * np.exp(noise + added + 0.1), truth * np.exp(noise), truth)
    tolerance = stats.norm.isf(false_alarm / 6) * 1.65 * 0.05 / np.sqrt(2 * 40_000)
    assert result["scatter_alone"] == pytest.approx(0.03, abs=tolerance)
    assert result["scatter_blend"] == pytest.approx(0.05, abs=tolerance)
    assert result["excess"] == pytest.approx(0.04, abs=2 * tolerance)
    assert result["shift"] == pytest.approx(0.1, abs=tolerance)
    assert result["count"] == 40_000


def test_excess_is_signed_and_robust(rng):
    truth = np.full(2001, 10.0)
    narrow, wide = np.linspace(-0.03, 0.03, 2001), np.linspace(-0.05, 0.05, 2001)
    forth = accuracy.blending_excess(truth * np.exp(wide), truth * np.exp(narrow), truth)
    back = accuracy.blending_excess(truth * np.exp(narrow), truth * np.exp(wide), truth)
    # The median absolute value of a uniform error is half its largest one.
    assert forth["excess"] == pytest.approx(1.4826 * 0.02, rel=1e-3)
    assert back["excess"] == pytest.approx(-forth["excess"])
    assert accuracy.blending_excess(truth * np.exp(wide), truth * np.exp(wide), truth)["excess"] == 0
    wild = wide.copy()
    wild[:2] = 8.0
    robust = accuracy.blending_excess(truth * np.exp(wild), truth * np.exp(narrow), truth)
    assert robust["excess"] == pytest.approx(forth["excess"], rel=0.02)


def test_excess_compares_the_same_galaxies():
    """A galaxy that is hard alone and is missed in the blend must not make the blend look better."""
    truth = np.full(6, 10.0)
    alone = truth * np.array([0.98, 0.99, 1.0, 1.01, 1.02, 3.0])
    blend = alone.copy()
    blend[5], alone[0] = np.nan, np.nan
    result = accuracy.blending_excess(blend, alone, truth)
    assert result["count"] == 4
    assert result["detected"] == pytest.approx(4 / 5)
    assert result["excess"] == 0
    assert result["shift"] == 0


def test_excess_of_nothing():
    result = accuracy.blending_excess([np.nan], [1.0], [1.0])
    assert result["count"] == 0
    assert result["detected"] == 0
    assert np.isnan(result["excess"])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 1, 1)])
def test_features_and_categories_belong_to_the_truth(shape):
    truth, values = np.ones((2, 2, 1)), np.ones(shape)
    for name, metric in {
        "feature": lambda: accuracy.binned_accuracy(truth, truth, values, [0, 2]),
        "category": lambda: accuracy.accuracy_by(truth, truth, values),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} must have the shape of truth \(2, 2, 1\) or of its first axes"):
            metric()


def test_estimates_need_their_truth():
    short, truth = np.ones((2, 2, 1)), np.ones((3, 2, 1))
    for metric in (
        lambda: accuracy.flux_accuracy(short, truth),
        lambda: accuracy.pair_accuracy(short, truth),
        lambda: accuracy.binned_accuracy(short, truth, np.ones(3), [0, 2]),
        lambda: accuracy.accuracy_by(short, truth, np.ones(3)),
        lambda: accuracy.blending_excess(truth, short, truth),
    ):
        with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3, 2, 1\), got \(2, 2, 1\)"):
            metric()
    with pytest.raises(ValueError, match=r"truth must be positive, got 0\.0"):
        accuracy.flux_accuracy(truth, 0 * truth)


def test_pairs_are_needed():
    single = np.ones((3, 1, 1))
    with pytest.raises(ValueError, match=r"estimate must have the shape \(blend, galaxy >= 2, band\), got \(3, 1, 1\)"):
        accuracy.pair_accuracy(single, single)
    with pytest.raises(ValueError, match=r"flux must have the shape \(blend, 2, band\), got \(3, 1, 1\)"):
        accuracy.magnitude_difference(single)


@pytest.fixture(scope="module")
def published(data_dir):
    return Table.read(data_dir / "boucaud2020" / "test_results.csv", format="ascii.csv")


def both(table, name):
    """Column of both galaxies ``(blend, galaxy, band)``."""
    return np.stack([np.ma.filled(np.ma.asarray(table[f"g{i}_{name}"], float), np.nan) for i in (1, 2)], 1)[..., None]


def test_published_results(published):
    """The known numbers of the published networks, and what is known of their errors."""
    truth = both(published, "flux")
    for network, mape, scatter, outliers in (("b2f", 8.1, 0.090, 0.0017), ("b2m2f", 7.6, 0.081, 0.0010)):
        table = accuracy.pair_accuracy(both(published, f"flux_{network}"), truth)
        assert table["mape"][0] == pytest.approx(mape, abs=0.05)
        assert table["nmad_mag"][0] == pytest.approx(scatter, abs=0.001)
        assert table["outliers"][0] == pytest.approx(outliers, abs=0.0001)
        assert table["residual_correlation"][3] == pytest.approx(-0.5, abs=0.1)
        assert table["nmad_mag"][3] < 0.6 * table["nmad_mag"][0]
    # SExtractor's fluxes have another zero point; it misses a galaxy of every fifth pair, which are outliers too.
    row = accuracy.pair_accuracy(both(published, "flux_sex") * 10 ** (0.4 * (25.96 - 25.67)), truth)[0]
    assert row["mape"] == pytest.approx(38, abs=0.5)
    assert row["nmad_mag"] == pytest.approx(0.33, abs=0.005)
    assert (row["outliers"] + row["detected"] - 1) / row["detected"] == pytest.approx(0.16, abs=0.005)


def test_published_bins(published):
    """The bins of the figures hold every pair; faint galaxies beside bright ones are the hard ones."""
    estimate, truth = both(published, "flux_b2f"), both(published, "flux")
    difference = accuracy.magnitude_difference(truth)
    table = accuracy.binned_accuracy(estimate, truth, difference, accuracy.MAGNITUDE_DIFFERENCE_EDGES)
    assert table["count"].sum() == truth.size
    assert (np.diff(table["nmad_mag"]) > 0).all()
    distance = np.asarray(published["distance"])
    assert accuracy.binned_accuracy(estimate, truth, distance, accuracy.SEPARATION_EDGES)["count"].sum() == truth.size
    types = np.stack([published["g1_type"], published["g2_type"]], 1)
    assert list(accuracy.accuracy_by(estimate, truth, types)["category"]) == ["disk", "irr", "sph", "sphd"]
