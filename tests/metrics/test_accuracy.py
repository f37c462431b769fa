"""Accuracy of fluxes against exact answers, and on posteriors that are exact, too narrow and too wide."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import diagnose, flux_accuracy, magnitude_error


@pytest.fixture
def fluxes():
    """Four sources with errors of 10 %, -10 % and a factor of two, and a non-detection."""
    truth = np.array([10.0, 20.0, 40.0, 80.0])[:, None]
    return truth * np.array([1.1, 0.9, 0.5, np.nan])[:, None], truth


def measured(estimate, truth, spread=0.01):
    """The accuracy of three draws around estimates."""
    return flux_accuracy(np.array([1 - spread, 1, 1 + spread])[:, None, None] * np.asarray(estimate), truth)


def test_percentage_errors(fluxes):
    assert measured(*fluxes)["mape"] == pytest.approx((10 + 10 + 50) / 3)


def test_magnitude_error_is_positive_where_too_faint(fluxes):
    error = magnitude_error(*fluxes).ravel()
    np.testing.assert_allclose(error[:3], -2.5 * np.log10([1.1, 0.9, 0.5]))
    assert np.isnan(error[3])
    assert measured(*fluxes)["bias_mag"] == pytest.approx(-2.5 * np.log10(0.9))


def test_negative_flux_has_no_magnitude():
    assert np.isnan(magnitude_error([-1.0, 0.0], [1.0, 1.0])).all()


def test_outliers_include_non_detections(fluxes):
    """A factor of two is 0.7526 mag."""
    assert measured(*fluxes)["outliers"] == 0.5
    assert measured(fluxes[0] * 1.01, fluxes[1])["outliers"] == 0.25


def test_unknown_truth_is_left_out(fluxes):
    estimate, truth = fluxes
    found = measured(estimate, np.where(truth == 80, np.nan, truth))
    assert found["count"] == found["clusters"] == 3
    assert found["detected"] == 1
    assert found["outliers"] == pytest.approx(1 / 3)
    # Another estimate where the truth is not known changes nothing.
    np.testing.assert_equal(found, measured(np.nan_to_num(estimate, nan=5.0), np.where(truth == 80, np.nan, truth)))


def test_scatter_is_that_of_the_core(rng):
    error = 0.1 * rng.normal(size=(10_000, 2))
    error[:3] = 5.0
    assert measured(np.exp(error), np.ones(error.shape))["nmad_mag"] == pytest.approx(0.1086, rel=0.03)


@pytest.fixture(scope="module")
def compared():
    """Draws with the same estimates but other widths, the last of which misses a source in one band."""
    rng = np.random.default_rng(4)
    truth = np.full((1000, 2), 50.0)
    middle = truth + rng.normal(size=truth.shape)
    widths = {"narrow": 0.5, "exact": 1.0, "wide": 2.0}
    draws = {name: middle + w * rng.normal(size=(400, *truth.shape)) for name, w in widths.items()}
    draws["wide"][:, 0, 1] = np.nan
    return draws, truth


def test_exact_posteriors_are_told_from_wrong_ones(compared):
    draws, truth = compared
    found = [flux_accuracy(drawn, truth) for drawn in draws.values()]
    table = {name: np.array([row[name] for row in found]) for name in found[0]}
    # Intervals of half and of twice the width.
    for level in (50, 68, 95):
        expected = 1 - 2 * stats.norm.sf(np.array([0.5, 1, 2]) * stats.norm.isf(0.5 - level / 200))
        error = np.sqrt(expected * (1 - expected) / 2000)
        # Four standard errors: a false alarm in 16,000; quantiles of 400 draws add 0.005.
        assert (np.abs(table[f"coverage_{level}"] - expected) < 4 * error + 0.005).all()
        assert list(np.abs(table[f"coverage_{level}"] - level / 100) > 4 * error + 0.005) == [True, False, True]
    np.testing.assert_allclose(table["width"] * 50, [0.5, 1, 2], rtol=0.05)
    np.testing.assert_allclose(table["pull_sd"], [2, 1, 0.5], rtol=0.1)
    assert (np.abs(table["pull_mean"]) < 0.2).all()
    assert table["interval_score"].argmin() == 1
    np.testing.assert_allclose(table["mape"], 100 / 50 * np.sqrt(2 / np.pi), rtol=0.1)
    np.testing.assert_allclose(table["nmad_mag"], 1.0857 / 50, rtol=0.1)
    np.testing.assert_allclose(table["detected"], [1, 1, 1999 / 2000])
    np.testing.assert_allclose(table["outliers"], [0, 0, 1 / 2000])


def test_calibration_is_that_of_ln_flux(compared):
    draws, truth, galaxy = compared[0]["exact"][:, :60], compared[1][:60], np.indices((60, 2))[0] // 3
    found = flux_accuracy(draws, truth, cluster=galaxy, seed=3)
    expected = diagnose(np.log(draws), np.log(truth), cluster=galaxy, seed=3)
    assert found["clusters"] == 20
    np.testing.assert_equal({name: found[name] for name in expected}, expected)


def test_non_detections_are_left_out_of_coverage(compared):
    draws, truth = compared
    missed = draws["exact"].copy()
    missed[:, 0] = np.nan
    with_it, without = flux_accuracy(missed, truth), flux_accuracy(missed[:, 1:], truth[1:])
    for name in ("coverage_68", "coverage_95", "width", "pull_sd", "interval_score"):
        assert with_it[name] == without[name]
    assert with_it["detected"] == 0.999


def test_faint_draws_are_raised():
    """Draws far below the truth, all raised to the same flux, have a width of zero and make no warning."""
    found = flux_accuracy(np.full((100, 3, 1), -1.0), np.ones((3, 1)))
    assert (found["width"], found["coverage_95"], found["within_3"], found["detected"]) == (0, 0, 0, 1)
    assert found["interval_score"] == pytest.approx(2 / 0.32 * np.log(100))


def test_no_detection_at_all():
    found = flux_accuracy(np.full((10, 3, 1), np.nan), np.ones((3, 1)))
    assert found["detected"] == 0
    assert found["outliers"] == 1
    for name in ("mape", "nmad_mag", "coverage_68", "interval_score", "rank_p", "within_1"):
        assert np.isnan(found[name])


def test_estimates_need_their_truth():
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3,\), got \(2,\)"):
        magnitude_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"truth must be positive, got -1\.0"):
        magnitude_error(np.ones(2), np.array([1.0, -1.0]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 2, 1), r"draws must have the shape \(draw, \*\(3, 1\)\), got \(5, 2, 1\)"),
        ((1, 3, 1), "draws must be at least 2, got 1"),
    ],
)
def test_draws_need_their_truth(shape, message):
    with pytest.raises(ValueError, match=message):
        flux_accuracy(np.ones(shape), np.ones((3, 1)))
