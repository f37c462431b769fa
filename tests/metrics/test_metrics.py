"""Metrics against exact answers, and on posteriors that are honest, too narrow and too wide."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import fluxes as metrics


def posterior_draws(rng, *, width=1.0, number=400, size=4000):
    """Draws of standard deviation `width` around measurements of unit scatter, and the truth."""
    truth = np.full(size, 10.0)
    measured = truth + rng.normal(size=size)
    return measured + width * rng.normal(size=(number, size)), truth


@pytest.fixture
def fluxes():
    truth = np.array([10.0, 20.0, 40.0, 80.0])
    return truth * np.array([1.1, 0.9, 0.5, np.nan]), truth


def test_percentage_error(fluxes):
    np.testing.assert_allclose(metrics.absolute_percentage_error(*fluxes), [10, 10, 50, np.nan])


def test_magnitude_error_is_positive_where_too_faint(fluxes):
    error = metrics.magnitude_error(*fluxes)
    np.testing.assert_allclose(error[:3], -2.5 * np.log10([1.1, 0.9, 0.5]))
    assert np.isnan(error[3])


def test_negative_flux_has_no_magnitude():
    assert np.isnan(metrics.magnitude_error([-1.0, 0.0], [1.0, 1.0])).all()


def test_outliers_count_abstentions(fluxes):
    assert metrics.outlier_fraction(*fluxes) == 0.5
    assert metrics.outlier_fraction(*fluxes, limit=0.76) == 0.25


def test_unknown_truth_is_left_out(fluxes):
    estimate, truth = fluxes
    assert metrics.outlier_fraction(estimate, np.where(truth == 80, np.nan, truth)) == pytest.approx(1 / 3)
    assert np.isnan(metrics.outlier_fraction([1.0], [np.nan]))


def test_nmad_is_the_core_of_a_contaminated_normal(rng):
    error = np.append(0.1 * rng.normal(size=20000) + 3, [np.nan, 1e6])
    assert metrics.nmad(error) == pytest.approx(0.1, rel=0.03)


def test_nmad_of_nothing_is_nan():
    assert np.isnan(metrics.nmad([np.nan]))


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_coverage_of_an_honest_posterior(rng, false_alarm, level):
    fraction, error = metrics.coverage(*posterior_draws(rng), level=level)
    # The quantiles of 400 draws fall short of the interval's edges by about a quarter of a percent.
    assert abs(fraction - level) < stats.norm.isf(false_alarm / 2) * error + 0.005
    assert error == pytest.approx(np.sqrt(level * (1 - level) / 4000), rel=0.05)


@pytest.mark.parametrize(("width", "covered"), [(0.5, 0.381), (2.0, 0.953)])
def test_coverage_fails_where_it_should(rng, false_alarm, width, covered):
    fraction, error = metrics.coverage(*posterior_draws(rng, width=width), level=0.68)
    expected = 1 - 2 * stats.norm.sf(width * stats.norm.isf(0.16))
    assert expected == pytest.approx(covered, abs=2e-3)
    assert abs(fraction - expected) < stats.norm.isf(false_alarm / 2) * error + 0.005
    assert abs(fraction - 0.68) > 10 * error


def test_coverage_leaves_abstentions_out(rng):
    draws, truth = posterior_draws(rng)
    expected = metrics.coverage(draws[:, 1:], truth[1:])
    draws[:, 0] = np.nan
    assert metrics.coverage(draws, truth) == expected


def test_coverage_of_nothing_is_nan():
    assert np.isnan(metrics.coverage(np.full((5, 2), np.nan), np.ones(2))).all()


def test_interval_width_of_a_normal(rng):
    width = metrics.interval_width(3 * rng.normal(size=(20000, 2)))
    np.testing.assert_allclose(width, 3 * stats.norm.isf(0.16), rtol=0.03)


def test_crps_of_a_normal(rng):
    truth = np.array([0.0, 1.0, -2.0])
    exact = truth * (2 * stats.norm.cdf(truth) - 1) + 2 * stats.norm.pdf(truth) - 1 / np.sqrt(np.pi)
    score = metrics.crps(rng.normal(size=(100_000, 3)), truth)
    np.testing.assert_allclose(score, exact, atol=0.01)


def test_crps_is_the_same_for_few_draws(rng, false_alarm):
    few = metrics.crps(rng.normal(size=(2, 50_000)), np.zeros(50_000))
    exact = np.sqrt(2 / np.pi) - 1 / np.sqrt(np.pi)
    assert abs(few.mean() - exact) < stats.norm.isf(false_alarm / 2) * few.std() / np.sqrt(few.size)


def test_crps_prefers_the_honest_posterior(rng):
    score = {width: metrics.crps(*posterior_draws(rng, width=width)).mean() for width in (0.3, 1.0, 3.0)}
    assert score[1.0] < min(score[0.3], score[3.0])


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_pulls_tell_the_width(rng, width):
    pull = metrics.pulls(*posterior_draws(rng, width=width))
    assert abs(pull.mean()) < 0.2
    assert pull.std() == pytest.approx(1 / width, rel=0.06)


def test_residual_correlation(rng, false_alarm):
    error = rng.multivariate_normal([0, 0], [[1, -0.5], [-0.5, 1]], size=5000)[..., None]
    truth = np.full(error.shape, 100.0)
    expected = -6 / np.pi * np.arcsin(0.25)  # Spearman's correlation of a bivariate normal
    tolerance = stats.norm.isf(false_alarm / 2) / np.sqrt(5000)
    assert abs(metrics.residual_correlation(truth + error, truth) - expected) < tolerance
    error[0, 0] = np.nan
    assert abs(metrics.residual_correlation(truth + error, truth) - expected) < tolerance


def test_residual_correlation_of_too_few_pairs():
    assert np.isnan(metrics.residual_correlation(np.ones((2, 2, 1)), np.ones((2, 2, 1))))


def fake_posterior(draws, *, masks=None):
    fields = {"flux": draws} | ({} if masks is None else {"mask": masks})
    return SimpleNamespace(**fields)


@pytest.fixture
def compared(rng):
    """Three posteriors with the same estimates but other widths, of which the last misses a galaxy."""
    truth = np.full((1000, 2, 1), 50.0)
    masks = np.ones((1000, 2, 4, 4), dtype=bool)
    measured = truth + rng.normal(size=truth.shape)
    draws = {w: measured + w * rng.normal(size=(2, 200, *truth.shape)) for w in (0.5, 1.0, 2.0)}
    draws[2.0][:, :, 0, 1] = np.nan
    found = masks.copy()
    found[0, 1] = False
    posteriors = {"narrow": fake_posterior(draws[0.5]), "honest": fake_posterior(draws[1.0], masks=masks)}
    return posteriors | {"wide": fake_posterior(draws[2.0], masks=found.astype(float))}, truth, masks


def test_accuracy_table(compared):
    posteriors, truth, masks = compared
    table = metrics.accuracy_table(posteriors, truth, mask=masks)
    assert list(table["method"]) == ["narrow", "honest", "wide"]
    np.testing.assert_allclose(table["coverage_68"], [0.381, 0.68, 0.953], atol=0.05)
    assert list(np.abs(table["coverage_68"] - 0.68) > 5 * table["coverage_68_error"]) == [True, False, True]
    assert list(np.abs(table["coverage_90"] - 0.9) > 5 * table["coverage_90_error"]) == [True, False, True]
    np.testing.assert_allclose(table["width"] * 50, [0.5, 1, 2], rtol=0.05)
    np.testing.assert_allclose(table["pull_sd"], [2, 1, 0.5], rtol=0.1)
    assert table["crps_ln"].argmin() == 1
    np.testing.assert_allclose(table["mape"], 100 / 50 * np.sqrt(2 / np.pi), rtol=0.1)
    np.testing.assert_allclose(table["nmad_mag"], 1.0857 / 50, rtol=0.1)
    np.testing.assert_allclose(table["detected"], [1, 1, 1999 / 2000])
    np.testing.assert_allclose(table["outliers"], [0, 0, 1 / 2000])
    np.testing.assert_allclose(table["iou"], [np.nan, 1, 1999 / 2000])
    assert (np.abs(table["residual_correlation"]) < 0.15).all()


def test_accuracy_table_with_a_truth_for_each_method(compared):
    posteriors, truth, _ = compared
    known = truth.copy()
    known[:10, 0] = np.nan
    table = metrics.accuracy_table(posteriors, {"narrow": truth, "honest": known, "wide": 2 * truth})
    assert list(table["count"]) == [2000, 1990, 2000]
    np.testing.assert_allclose(table["bias_mag"], [0, 0, 2.5 * np.log10(2)], atol=0.01)


def test_accuracy_table_without_a_detection():
    posterior = fake_posterior(np.full((1, 10, 3, 2, 1), np.nan))
    (row,) = metrics.accuracy_table({"sep": posterior}, np.ones((3, 2, 1)))
    assert row["detected"] == 0
    assert row["outliers"] == 1
    assert np.isnan(row["mape"])
    assert np.isnan(row["crps_ln"])


@pytest.mark.parametrize(
    "metric",
    [
        metrics.absolute_percentage_error,
        metrics.magnitude_error,
        metrics.outlier_fraction,
        metrics.residual_correlation,
    ],
)
def test_point_estimates_need_their_truth(metric):
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3,\), got \(2,\)"):
        metric(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"truth must be positive, got -1\.0"):
        metric(np.ones(2), np.array([1.0, -1.0]))


@pytest.mark.parametrize("metric", [metrics.coverage, metrics.crps, metrics.pulls])
@pytest.mark.parametrize("shape", [(5, 2), (1, 3), ()])
def test_draws_need_their_truth(metric, shape):
    with pytest.raises(ValueError, match=r"draws must have the shape \(draw >= 2, \*\(3,\)\), got"):
        metric(np.ones(shape), np.ones(3))


@pytest.mark.parametrize("level", [0.0, 1.0, 68])
def test_level_is_a_probability(level):
    with pytest.raises(ValueError, match="level must be between 0 and 1, got"):
        metrics.coverage(np.ones((5, 3)), np.ones(3), level=level)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got"):
        metrics.interval_width(np.ones((5, 3)), level=level)


def test_residual_correlation_needs_pairs():
    with pytest.raises(ValueError, match=r"estimate must have the shape \(blend, galaxy >= 2, band\)"):
        metrics.residual_correlation(np.ones((5, 1, 1)), np.ones((5, 1, 1)))


def test_accuracy_table_needs_every_truth(compared):
    posteriors, truth, _ = compared
    with pytest.raises(ValueError, match="flux must hold every method, got none for 'honest'"):
        metrics.accuracy_table(posteriors, {"narrow": truth})
