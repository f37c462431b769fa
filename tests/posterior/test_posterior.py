import types

import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.table import QTable
from astropy.wcs import WCS

from probdeblend.posterior import Flag, Posterior
from probdeblend.posterior.draws import variance_parts

COVARIANCE = np.array([[4.0, -1.5], [-1.5, 1.0]])


@pytest.fixture
def draws(rng):
    """Normal draws of two chains, three blends and two galaxies in one band."""
    deviations = rng.multivariate_normal([0, 0], COVARIANCE, size=(2, 500, 3))
    return (np.array([80.0, 40.0]) + deviations)[..., None]


@pytest.fixture
def posterior(draws, rng):
    pixels = rng.uniform(size=(2, 3, 2, 6, 5)).astype(np.float32)
    return Posterior.from_draws(
        draws,
        flux_kind="total",
        method="network",
        mask=pixels[0],
        mask_std=pixels[1],
        mask_information=0.1 * pixels[1],
        x=rng.uniform(0, 9, (3, 2)),
        y=rng.uniform(0, 9, (3, 2)),
        flags=np.array([[0, 0], [4, 16], [0, 0]]),
        variance_within=np.full((3, 2, 1), 3.0),
        variance_between=np.full((3, 2, 1), 0.5),
        flux_unit="electron / s",
        zero_point=25.9463,
        pixel_scale=0.06,
        seed=None,
    )


def test_axes_and_attributes(posterior, draws):
    assert posterior.flux.dims == ("chain", "draw", "blend", "galaxy", "band")
    assert posterior.flux.attrs == {"flux_kind": "total", "unit": "electron / s"}
    np.testing.assert_array_equal(posterior.flux, draws)
    assert posterior.mask.dims == posterior.mask_std.dims == ("blend", "galaxy", "y", "x")
    assert posterior.mask_entropy.dims == posterior.mask_information.dims == ("blend", "galaxy", "y", "x")
    assert posterior.flags.values.tolist() == [[0, 0], [4, 16], [0, 0]]
    assert posterior.dataset.attrs["zero_point"] == 25.9463
    assert "seed" not in posterior.dataset.attrs
    assert len(posterior) == 3


@pytest.mark.parametrize("blends", [0, 1, 7])
def test_any_number_of_blends(blends):
    posterior = Posterior.from_draws(np.ones((1, 4, blends, 2, 1)), flux_kind="auto", method="sep")
    assert len(posterior) == len(posterior.flux_covariance) == blends
    assert len(posterior.summary()) == 2 * blends
    assert posterior.flags.shape == (blends, 2)


def test_covariance_and_total(posterior, draws):
    covariance = posterior.flux_covariance
    assert covariance.dims == ("blend", "band", "galaxy", "galaxy_2")
    assert covariance.attrs["unit"] == "(electron / s)**2"
    expected = np.cov(draws[:, :, 1, :, 0].reshape(-1, 2).T)
    np.testing.assert_allclose(covariance.values[1, 0], expected, rtol=1e-12)
    assert posterior.total_flux.dims == ("chain", "draw", "blend", "band")
    assert posterior.total_flux.attrs == posterior.flux.attrs
    np.testing.assert_allclose(posterior.total_flux.values.var(ddof=1, axis=(0, 1))[1, 0], expected.sum())


def test_one_draw_has_no_covariance():
    posterior = Posterior.from_draws(np.ones((1, 1, 1, 2, 1)), flux_kind="auto", method="sep")
    assert np.isnan(posterior.flux_covariance).all()


def test_summary_of_a_normal_posterior(posterior, draws):
    table = posterior.summary()
    assert isinstance(table, QTable)
    assert table.colnames == [
        *("id", "blend", "galaxy", "x", "y", "flux", "flux_err", "flux_16", "flux_50", "flux_84", "flux_kind"),
        *("mag", "mag_err", "correlation", "variance_within", "variance_between", "method", "anomaly"),
        "flags",
    ]
    assert table["id"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["blend"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["galaxy"].tolist() == [0, 1, 0, 1, 0, 1]
    assert table["flux"].unit == u.electron / u.s
    assert table["variance_within"].unit == (u.electron / u.s) ** 2
    assert table["mag"].unit == u.mag
    assert table["flags"].tolist() == [0, 0, 4, 16, 0, 0]
    assert set(table["method"]) == {"network"}
    assert set(table["flux_kind"]) == {"total"}
    central = draws[:, :, 2, 0, 0].ravel()
    row = table[4]
    np.testing.assert_allclose(row["flux"].value, np.median(central))
    np.testing.assert_allclose(row["flux_err"].value, central.std(ddof=1))
    # Quantiles of 1000 normal draws of standard deviation 2 have a standard error of 0.1.
    np.testing.assert_allclose([row["flux_16"].value, row["flux_84"].value], [78, 82], atol=0.4)
    np.testing.assert_allclose(row["mag"].value, 25.9463 - 2.5 * np.log10(np.median(central)))
    np.testing.assert_allclose(row["mag_err"].value, 1.0857 * 2 / 80, rtol=0.15)
    np.testing.assert_allclose(table["correlation"], -0.75, atol=0.06)
    np.testing.assert_array_equal(table["correlation"][::2], table["correlation"][1::2])


def test_summary_resists_heavy_tails(draws):
    clean = Posterior.from_draws(draws, flux_kind="total", method="network", zero_point=25.0).summary()
    draws[0, 0, 0, 0, 0] = 1e6
    wild = Posterior.from_draws(draws, flux_kind="total", method="network", zero_point=25.0).summary()
    for name in ("flux", "flux_16", "flux_84"):
        assert abs(wild[name][0] - clean[name][0]) < 0.05
    assert abs(wild["mag_err"][0] - clean["mag_err"][0]) < 0.001 * u.mag
    assert wild["flux_err"][0] > 1000 * clean["flux_err"][0]


def test_summary_masks_what_is_not_known(draws):
    draws[:, :, 0, 1] = np.nan
    draws[:, :, 1, 0] -= 80.5
    table = Posterior.from_draws(draws, flux_kind="auto", method="sep").summary()
    assert table["mag"].mask.all()
    assert table["mag_err"].mask.all()
    assert table["variance_within"].mask.all()
    assert table["flux"].unit is None
    assert np.isnan(table["flux"][1])
    assert table["correlation"].mask.tolist() == [True, True, False, False, False, False]
    table = Posterior.from_draws(draws, flux_kind="auto", method="sep", zero_point=25.0).summary()
    assert table["mag"].mask.tolist() == [False, True, True, False, False, False]
    draws[:, :, 1, 0] += 1.0
    table = Posterior.from_draws(draws, flux_kind="auto", method="sep", zero_point=25.0).summary()
    assert not table["mag"].mask[2]
    assert table["mag_err"].mask[2]


def test_summary_of_isolated_galaxies_and_several_bands():
    flux = np.arange(1.0, 1 + 1 * 5 * 2 * 1 * 3).reshape(1, 5, 2, 1, 3)
    table = Posterior.from_draws(flux, flux_kind="total", method="network").summary()
    assert table["id"].tolist() == [1, 1, 1, 2, 2, 2]
    assert table["band"].tolist() == [0, 1, 2, 0, 1, 2]
    assert table["flux"].tolist() == np.median(flux, axis=(0, 1)).ravel().tolist()
    assert table["correlation"].mask.all()


def test_summary_keeps_bands_apart(rng):
    flux = rng.normal([[[10.0, 20.0], [30.0, 40.0]]], [[[1.0, 2.0], [3.0, 4.0]]], (1, 400, 1, 2, 2))
    table = Posterior.from_draws(flux, flux_kind="total", method="network").summary()
    np.testing.assert_allclose(table["flux"], [10, 20, 30, 40], rtol=0.05)
    np.testing.assert_allclose(table["flux_err"], [1, 2, 3, 4], rtol=0.2)


def test_summary_with_world_coordinates(posterior):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [53.0, -27.8]
    wcs.wcs.crpix = [1, 1]
    wcs.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
    table = posterior.summary(wcs=wcs)
    assert table.colnames[4:7] == ["y", "ra", "dec"]
    np.testing.assert_allclose(table["dec"].to_value(u.deg), -27.8 + table["y"] * 0.06 / 3600, atol=1e-9)
    slope = 0.06 / 3600 / np.cos(np.radians(27.8))
    np.testing.assert_allclose(table["ra"].to_value(u.deg), 53.0 - table["x"] * slope, atol=1e-8)


def test_summary_with_world_coordinates_but_no_positions(draws):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    table = Posterior.from_draws(draws, flux_kind="auto", method="sep").summary(wcs=wcs)
    assert np.isnan(table["ra"]).all()


@pytest.mark.parametrize("unit", ["", "DN/whatever"])
def test_unit_that_astropy_does_not_know(draws, unit):
    posterior = Posterior.from_draws(draws, flux_kind="total", method="network", flux_unit=unit)
    assert posterior.summary()["flux"].unit is None
    assert posterior.summary().meta["flux_unit"] == posterior.flux.attrs["unit"] == unit


def test_select_keeps_numbers(posterior):
    assert posterior.select(1).dataset["blend"].values.tolist() == [1]
    assert posterior.select(slice(1, None)).summary()["id"].tolist() == [3, 4, 5, 6]
    assert posterior.select([2, 0]).dataset["blend"].values.tolist() == [2, 0]
    assert posterior.select(np.array([True, False, True])).mask.shape == (2, 2, 6, 5)
    with pytest.raises(IndexError, match="index 3 is out of bounds"):
        posterior.select(3)


def test_concatenate_undoes_select(posterior):
    joined = Posterior.concatenate([posterior.select([0]), posterior.select([1, 2])])
    xr.testing.assert_identical(joined.dataset, posterior.dataset)
    twice = Posterior.concatenate([posterior, posterior])
    assert twice.dataset["blend"].values.tolist() == [0, 1, 2, 3, 4, 5]
    assert twice.flags.shape == (6, 2)


def test_concatenate_refuses_what_differs(posterior, draws):
    with pytest.raises(ValueError, match="posteriors must hold at least one posterior, got none"):
        Posterior.concatenate([])
    total = Posterior.from_draws(draws, flux_kind="total", method="network")
    auto = Posterior.from_draws(draws, flux_kind="auto", method="network")
    with pytest.raises(
        ValueError,
        match=r"(?s)posteriors must be alike except for their blends, got.*flux_kind: total.*flux_kind: auto",
    ):
        Posterior.concatenate([total, auto])
    fewer = Posterior.from_draws(draws[:, :9], flux_kind="total", method="network")
    with pytest.raises(
        ValueError, match=r"(?s)posteriors must be alike except for their blends, got.*draw: 500.*draw: 9"
    ):
        Posterior.concatenate([total, fewer])


def test_save_and_open(posterior, tmp_path):
    path = tmp_path / "draws.nc"
    posterior.save(path)
    xr.testing.assert_identical(Posterior.open(path).dataset, posterior.dataset)
    assert Posterior.open(path).summary()["flux"].unit == u.electron / u.s
    with pytest.raises(FileExistsError, match=r"draws.nc: exists already"):
        posterior.save(path)
    posterior.select(0).save(path, overwrite=True)
    assert len(Posterior.open(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.nc"]


def test_save_leaves_nothing_behind_when_it_fails(posterior, tmp_path):
    spoiled = Posterior(posterior.dataset.assign_attrs(note=object()))
    with pytest.raises(TypeError):
        spoiled.save(tmp_path / "draws.nc")
    assert not list(tmp_path.iterdir())


def test_open_refuses_other_files(posterior, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.nc: no such file"):
        Posterior.open(tmp_path / "none.nc")
    text = tmp_path / "text.nc"
    text.write_text("flux\n1.0\n")
    with pytest.raises(ValueError, match=r"text.nc: not a posterior written by probdeblend, or damaged"):
        Posterior.open(text)
    posterior.save(tmp_path / "whole.nc")
    cut = tmp_path / "cut.nc"
    cut.write_bytes((tmp_path / "whole.nc").read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"cut.nc: not a posterior written by probdeblend, or damaged"):
        Posterior.open(cut)
    xr.Dataset({"flux": ("x", np.ones(3))}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"other.nc: must be a posterior written by probdeblend, got another file"):
        Posterior.open(tmp_path / "other.nc")
    Posterior(posterior.dataset.assign_attrs(version=99)).save(tmp_path / "new.nc")
    with pytest.raises(ValueError, match=r"new.nc: must be a posterior of version 1, got version 99"):
        Posterior.open(tmp_path / "new.nc")


def test_from_draws_refuses_wrong_input(draws):
    with pytest.raises(ValueError, match=r"flux must have the axes \(chain, .*\), got shape \(2, 500, 3, 2\)"):
        Posterior.from_draws(draws[..., 0], flux_kind="total", method="network")
    with pytest.raises(ValueError, match="flux_kind must be one of total, auto, isophotal, got 'petro'"):
        Posterior.from_draws(draws, flux_kind="petro", method="network")
    with pytest.raises(ValueError, match=r"x must have the axes \(blend, galaxy\) with .*, got shape \(2, 3\)"):
        Posterior.from_draws(draws, flux_kind="total", method="network", x=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"mask_std must have the axes .*, got shape \(3, 2, 5, 5\)"):
        Posterior.from_draws(
            draws, flux_kind="total", method="sep", mask=np.ones((3, 2, 6, 6)), mask_std=np.ones((3, 2, 5, 5))
        )
    with pytest.raises(TypeError, match="mask_sdt must be a string or a number, got ndarray"):
        Posterior.from_draws(draws, flux_kind="total", method="network", mask_sdt=np.ones(3))


def test_missing_masks_say_so(draws):
    posterior = Posterior.from_draws(draws, flux_kind="isophotal", method="sep")
    for name, missing in (("mask_std",) * 2, ("mask_information",) * 2, ("mask_entropy", "mask")):
        with pytest.raises(AttributeError, match=f"this posterior of method 'sep' has no {missing}$"):
            getattr(posterior, name)


def test_entropy_of_masks(posterior):
    entropy = posterior.mask_entropy
    p = posterior.mask.values.astype(float)
    np.testing.assert_allclose(entropy, -p * np.log2(p) - (1 - p) * np.log2(1 - p), atol=1e-6)
    assert entropy.name == "mask_entropy"
    assert not {"x", "y"} & set(entropy.coords)
    known = Posterior(posterior.dataset.assign(mask=0 * posterior.mask + np.float32([[0], [0.5]])[..., None]))
    assert known.mask_entropy.mean(("blend", "y", "x")).values.tolist() == [0.0, 1.0]


def test_to_arviz(posterior):
    arviz = pytest.importorskip("arviz")
    converted = posterior.to_arviz()
    assert converted["posterior"]["flux"].dims == posterior.flux.dims
    assert converted["posterior"]["total_flux"].dims == ("chain", "draw", "blend", "band")
    assert float(arviz.rhat(converted)["flux"].max()) < 1.1


def test_to_arviz_with_data_trees(posterior, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arviz", types.SimpleNamespace())
    converted = posterior.to_arviz()
    assert isinstance(converted, xr.DataTree)
    np.testing.assert_array_equal(converted["posterior/flux"], posterior.flux)


def test_flags_have_words():
    assert str(Flag(0)) == "none"
    assert str(Flag(np.int64(5))) == str(Flag.BAD_PIXELS | Flag.OFF_CENTER) == "bad pixels, off center"
    assert [int(flag) for flag in Flag] == [2**bit for bit in range(16)]
    assert all(f"``{flag.name}`` ({flag:d})" in Flag.__doc__ for flag in Flag)
    with pytest.raises(ValueError, match="invalid value 65536"):
        Flag(65536)


def test_parts_of_the_variance_are_unbiased(rng):
    """Passes that are all alike, of unit variance, with two draws each; bounds are five standard errors."""
    within, between = variance_parts(rng.normal(size=(8, 2, 20_000)))
    assert within.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / 8 / 20_000))
    raw = rng.normal(size=(8, 2, 20_000)).mean(1).var(0, ddof=1).mean()
    assert raw == pytest.approx(0.5, abs=0.01)
    assert between.mean() < 0.15
