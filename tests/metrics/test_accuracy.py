"""Accuracy of fluxes against exact answers, and on posteriors that are exact, too narrow and too wide."""

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import accuracy_table, magnitude_error


@pytest.fixture
def fluxes():
    """Four sources with errors of 10 %, -10 % and a factor of two, and a non-detection."""
    truth = np.array([10.0, 20.0, 40.0, 80.0])[:, None]
    return truth * np.array([1.1, 0.9, 0.5, np.nan])[:, None], truth


def drawn(estimate, spread=0.01):
    """Three draws ``(chain, draw, ...)`` around estimates."""
    return np.array([1 - spread, 1, 1 + spread])[:, None, None] * np.asarray(estimate)[None, None]


def row(estimate, truth):
    return accuracy_table({"any": drawn(estimate)}, truth)[0]


def test_percentage_errors(fluxes):
    found = row(*fluxes)
    assert found["mape"] == pytest.approx((10 + 10 + 50) / 3)
    assert found["median_ape"] == pytest.approx(10)


def test_magnitude_error_is_positive_where_too_faint(fluxes):
    error = magnitude_error(*fluxes).ravel()
    np.testing.assert_allclose(error[:3], -2.5 * np.log10([1.1, 0.9, 0.5]))
    assert np.isnan(error[3])


def test_negative_flux_has_no_magnitude():
    assert np.isnan(magnitude_error([-1.0, 0.0], [1.0, 1.0])).all()


def test_outliers_include_non_detections(fluxes):
    """A factor of two is 0.7526 mag."""
    assert row(*fluxes)["outliers"] == 0.5
    assert row(fluxes[0] * 1.01, fluxes[1])["outliers"] == 0.25


def test_unknown_truth_is_left_out(fluxes):
    estimate, truth = fluxes
    found = row(estimate, np.where(truth == 80, np.nan, truth))
    assert found["count"] == 3
    assert found["detected"] == 1
    assert found["outliers"] == pytest.approx(1 / 3)


def test_scatter_is_that_of_the_core(rng):
    error = 0.1 * rng.normal(size=(10_000, 2))
    error[:3] = 5.0
    found = row(np.exp(error), np.ones(error.shape))
    assert found["nmad_mag"] == pytest.approx(0.1086, rel=0.03)
    assert found["sd_mag"] > 0.12


@pytest.fixture(scope="module")
def compared():
    """Draws with the same estimates but other widths, the last of which misses a source in one band."""
    rng = np.random.default_rng(4)
    truth = np.full((1000, 2), 50.0)
    measured = truth + rng.normal(size=truth.shape)
    widths = {"narrow": 0.5, "exact": 1.0, "wide": 2.0}
    draws = {name: measured + w * rng.normal(size=(2, 200, *truth.shape)) for name, w in widths.items()}
    draws["wide"][:, :, 0, 1] = np.nan
    return draws, truth


def test_exact_posteriors_are_told_from_wrong_ones(compared):
    draws, truth = compared
    table = accuracy_table(draws, truth)
    assert list(table["method"]) == ["narrow", "exact", "wide"]
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
    assert table["crps_ln"].argmin() == 1
    np.testing.assert_allclose(table["mape"], 100 / 50 * np.sqrt(2 / np.pi), rtol=0.1)
    np.testing.assert_allclose(table["nmad_mag"], 1.0857 / 50, rtol=0.1)
    np.testing.assert_allclose(table["detected"], [1, 1, 1999 / 2000])
    np.testing.assert_allclose(table["outliers"], [0, 0, 1 / 2000])


def test_non_detections_are_left_out_of_coverage(compared):
    draws, truth = compared
    missed = draws["exact"].copy()
    missed[:, :, 0] = np.nan
    found = accuracy_table(
        {"missed": missed, "others": np.delete(draws["exact"], 0, axis=2)}, {"missed": truth, "others": truth[1:]}
    )
    for name in ("coverage_68", "coverage_95", "width", "pull_sd"):
        assert found[name][0] == found[name][1]


def test_a_truth_for_each_method(compared):
    draws, truth = compared
    known = truth.copy()
    known[:10, 0] = np.nan
    table = accuracy_table(draws, {"narrow": truth, "exact": known, "wide": 2 * truth})
    assert list(table["count"]) == [2000, 1990, 2000]
    np.testing.assert_allclose(table["bias_mag"], [0, 0, 2.5 * np.log10(2)], atol=0.01)


def test_no_detection_at_all():
    (found,) = accuracy_table({"sep": np.full((1, 10, 3, 1), np.nan)}, np.ones((3, 1)))
    assert found["detected"] == 0
    assert found["outliers"] == 1
    for name in ("mape", "nmad_mag", "coverage_68", "crps_ln"):
        assert np.isnan(found[name])


def test_estimates_need_their_truth():
    with pytest.raises(ValueError, match=r"estimate must have the shape of truth \(3,\), got \(2,\)"):
        magnitude_error(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"truth must be positive, got -1\.0"):
        magnitude_error(np.ones(2), np.array([1.0, -1.0]))


@pytest.mark.parametrize("shape", [(1, 5, 2, 1), (1, 1, 3, 1)])
def test_draws_need_their_truth(shape):
    with pytest.raises(ValueError, match=r"draws must have the shape \(chain, draw, \*\(3, 1\)\), got"):
        accuracy_table({"any": np.ones(shape)}, np.ones((3, 1)))


def test_every_method_needs_a_truth(compared):
    draws, truth = compared
    with pytest.raises(ValueError, match="flux must hold every method, got none for 'exact'"):
        accuracy_table(draws, {"narrow": truth})
