import types

import numpy as np
import pytest
import xarray as xr

from probdeblend.posterior import Posterior, variance_parts


def test_flux_of_groups(posterior, draws):
    total = posterior.total_flux
    assert total.dims == ("chain", "draw", "group", "band")
    assert total["group"].values.tolist() == [4, 7, 9]
    assert total["scene"].values.tolist() == [0, 0, 2]
    np.testing.assert_allclose(total.sel(group=4), draws[:, :, :2].sum(2))
    np.testing.assert_allclose(total.sel(group=7), draws[:, :, 2])
    np.testing.assert_allclose(posterior.group_flux("auto"), 0.9 * total)
    assert total.attrs["unit"] == "electron / s"
    shuffled = posterior.select([4, 1, 2, 0, 3]).total_flux
    np.testing.assert_allclose(shuffled, total)


def test_flux_of_a_group_with_a_missing_source(posterior):
    flux = posterior.flux.copy()
    flux[:, :, 0] = np.nan
    missing = Posterior(posterior.dataset.assign(flux=flux)).total_flux
    assert np.isnan(missing).all(("chain", "draw", "band")).values.tolist() == [True, False, False]


def test_covariance(posterior, draws):
    covariance = posterior.covariance(3)
    assert covariance.dims == ("source", "band", "source_2", "band_2")
    assert covariance["source"].values.tolist() == covariance["source_2"].values.tolist() == [11, 3]
    assert covariance["band_2"].values.tolist() == ["g", "r"]
    assert covariance.attrs["unit"] == "(electron / s)**2"
    expected = np.cov(draws[:, :, :2].reshape(-1, 4).T)
    np.testing.assert_allclose(covariance.values.reshape(4, 4), expected, rtol=1e-12)
    np.testing.assert_allclose(posterior.covariance(11, kind="auto"), 0.81 * covariance, rtol=1e-10)
    assert posterior.covariance(5).shape == (1, 2, 1, 2)


def test_covariance_gives_the_error_of_the_total(posterior):
    group = posterior.total_flux.sel(group=4, band="g").values
    covariance = posterior.covariance(3).sel(band="g", band_2="g")
    np.testing.assert_allclose(covariance.sum(), group.var(ddof=1))


def test_one_draw_has_no_covariance(posterior):
    single = Posterior(posterior.dataset.isel(chain=[0], draw=[0]))
    assert np.isnan(single.covariance(3)).all()


def test_magnitudes_and_colors(posterior, draws):
    magnitude = posterior.magnitude
    np.testing.assert_allclose(magnitude, np.array([26.0, 25.0]) - 2.5 * np.log10(draws))
    color = posterior.color("g", "r")
    assert color.dims == ("chain", "draw", "source")
    np.testing.assert_allclose(color, magnitude.sel(band="g", drop=True) - magnitude.sel(band="r", drop=True))
    np.testing.assert_allclose(posterior.color("g", "r", kind="auto"), color)
    with pytest.raises(ValueError, match="band must be one of g, r, got 'i'"):
        posterior.color("g", "i")


def test_magnitudes_need_positive_fluxes_and_zero_points(posterior):
    flux = posterior.flux.copy()
    flux[0, 0, 0, 0] = -1
    assert np.isnan(Posterior(posterior.dataset.assign(flux=flux)).magnitude).sum() == 1
    unknown = Posterior(posterior.dataset.assign_coords(zero_point=("band", [np.nan, 25.0])))
    assert np.isnan(unknown.magnitude).all(("chain", "draw", "source")).values.tolist() == [True, False]
    assert np.isnan(unknown.color("g", "r")).all()


@pytest.mark.slow
def test_to_arviz(posterior):
    arviz = pytest.importorskip("arviz")
    converted = posterior.to_arviz()
    assert converted["posterior"]["flux"].dims == posterior.flux.dims
    assert converted["posterior"]["flux_auto"]["source"].values.tolist() == [11, 3, 5, 8, 2]
    np.testing.assert_array_equal(converted["posterior"]["group_flux"], posterior.total_flux)
    assert float(arviz.rhat(converted)["flux"].max()) < 1.1


def test_to_arviz_with_data_trees(posterior, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arviz", types.SimpleNamespace())
    converted = posterior.to_arviz()
    assert isinstance(converted, xr.DataTree)
    np.testing.assert_array_equal(converted["posterior/flux"], posterior.flux)


def test_parts_of_the_variance_are_unbiased(rng):
    """Passes that are all alike, of unit variance, with two draws each; bounds are five standard errors."""
    within, between = variance_parts(rng.normal(size=(8, 2, 20_000)))
    assert within.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / 8 / 20_000))
    raw = rng.normal(size=(8, 2, 20_000)).mean(1).var(0, ddof=1).mean()
    assert raw == pytest.approx(0.5, abs=0.01)
    assert between.mean() < 0.15


def test_parts_of_the_variance_of_passes_that_differ(rng):
    shift = rng.normal(0, 3, (8, 1, 2000))
    within, between = variance_parts(shift + rng.normal(size=(8, 200, 2000)))
    assert within.mean() == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(between.mean(), shift.var(0).mean(), rtol=0.02)
