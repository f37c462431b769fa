import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable

from probdeblend.posterior import Posterior

ENDS = ("", "_err", "_16", "_50", "_84")


def one_band(draws, **known):
    number = draws.shape[2]
    places = {"scene": np.zeros(number), "group": np.zeros(number), "x": np.zeros(number), "y": np.zeros(number)}
    return Posterior.from_draws(draws, **places | known)


def test_columns_of_one_band(draws):
    table = one_band(draws[..., :1], unit="nJy", zero_point=[31.4], bands=["g"]).catalog()
    assert isinstance(table, QTable)
    assert table.colnames == [
        *("label", "group", "group_size", "x", "y"),
        *(f"flux{end}" for end in ENDS),
        *("mag", "mag_err", "correlation", "neighbor", "flags"),
    ]
    assert all(table[name].info.description for name in table.colnames)
    assert table["flux"].unit == u.nJy
    assert table.meta["method"] == "network"


def test_columns_of_several_bands_and_scenes(posterior):
    table = posterior.catalog()
    both = [f"{name}{end}_{band}" for name in ("flux", "flux_auto") for end in ENDS for band in "gr"]
    mags = [f"{name}{end}_{band}" for name in ("mag", "mag_auto") for end in ("", "_err") for band in "gr"]
    assert table.colnames == [
        *("label", "scene", "group", "group_size", "x", "y", "ra", "dec", "existence", "star", "kind"),
        *(*both[:10], *mags[:4], *both[10:], *mags[4:], "correlation_g", "correlation_r", "neighbor"),
        *("half_light_radius", "half_light_radius_err", "flags"),
    ]
    assert table["label"].tolist() == [11, 3, 5, 8, 2]
    assert table["group_size"].tolist() == [2, 2, 1, 2, 2]
    assert table["kind"].tolist() == ["sph", "disk", "sphd", "irr", "star"]
    assert table["star"].tolist() == [0, 0, 0, 0, 1]
    assert table["flags"].tolist() == [0, 0, 1, 0, 8]
    assert table["ra"].unit == u.deg
    assert table["half_light_radius_err"].unit == u.arcsec
    np.testing.assert_allclose(table["flux_auto_r"], 0.9 * table["flux_r"], rtol=1e-12)


def test_rows_of_a_normal_posterior(posterior, draws):
    table, central = posterior.catalog(), draws[:, :, 0, 0].ravel()
    row = table[0]
    np.testing.assert_allclose(row["flux_g"].value, np.median(central))
    low, high = np.quantile(central, [0.16, 0.84])
    np.testing.assert_allclose(row["flux_err_g"].value, (high - low) / 2, rtol=1e-3)
    # Quantiles of 1000 normal draws of standard deviation 2 have a standard error of 0.1.
    np.testing.assert_allclose([row["flux_16_g"].value, row["flux_84_g"].value], [78, 82], atol=0.4)
    np.testing.assert_allclose(row["mag_g"].value, 26 - 2.5 * np.log10(np.median(central)))
    np.testing.assert_allclose(row["mag_err_g"].value, 1.0857 * 2 / 80, rtol=0.15)


def test_sizes_are_in_pixels_where_their_scale_is_unknown(draws):
    for scale, unit in ((0.06, u.arcsec), (1.0, u.pix)):
        posterior = one_band(draws[..., :1]).with_columns({"half_light_radius": np.full(draws.shape[2], 3.0)})
        posterior.dataset.attrs["pixel_scale"] = scale
        assert posterior.catalog()["half_light_radius"].unit == unit


def test_the_neighbor_is_the_most_correlated_source(rng):
    covariance = np.diag([1.0, 1.0, 1.0, 1.0])
    covariance[0, 1] = covariance[1, 0] = -0.3
    covariance[1, 2] = covariance[2, 1] = -0.8
    flux = 50 + rng.multivariate_normal(np.zeros(4), covariance, (2, 2000))[..., None]
    table = one_band(flux, group=[0, 0, 0, 1], label=[9, 8, 7, 6]).catalog()
    assert table["neighbor"].tolist() == [8, 7, 8, None]
    np.testing.assert_allclose(table["correlation"][:3], [-0.3, -0.8, -0.8], atol=0.08)
    assert table["correlation"].mask.tolist() == [False, False, False, True]


def test_heavy_tails_do_not_matter(draws):
    clean = one_band(draws[..., :1], zero_point=[25.0]).catalog()
    draws[0, 0, 0, 0] = 1e6
    wild = one_band(draws[..., :1], zero_point=[25.0]).catalog()
    for name in ("flux", "flux_err", "flux_16", "flux_84"):
        assert abs(wild[name][0] - clean[name][0]) < 0.05
    assert abs(wild["mag_err"][0] - clean["mag_err"][0]) < 0.001 * u.mag


def test_what_is_not_known_is_masked(draws):
    draws[:, :, 1] = np.nan
    draws[:, :, 0] -= 80.5
    table = one_band(draws[..., :1]).catalog()
    assert table["mag"].mask.all()
    assert table["flux"].unit is None
    assert np.isnan(table["flux"][1])
    assert table["correlation"].mask.tolist() == [False, True, False, False, False]
    assert table["neighbor"].mask.tolist() == [False, True, False, False, False]
    table = one_band(draws[..., :1], zero_point=[25.0]).catalog()
    assert table["mag"].mask.tolist() == [True, True, False, False, False]
    draws[:, :, 0] += 1.0
    table = one_band(draws[..., :1], zero_point=[25.0]).catalog()
    assert not table["mag"].mask[0]
    assert table["mag_err"].mask[0]


def test_kron_fluxes_alone(draws):
    kron = Posterior(one_band(draws[..., :1], zero_point=[25.0]).dataset.rename(flux="flux_auto")).catalog()
    assert "flux" not in kron.colnames
    np.testing.assert_allclose(kron["flux_auto"], np.median(draws[..., 0], axis=(0, 1)))
    assert not kron["mag_auto"].mask.any()
    assert kron["neighbor"][0] == 2


@pytest.mark.parametrize("unit", ["", "DN/whatever"])
def test_unit_that_astropy_does_not_know(draws, unit):
    table = one_band(draws[..., :1], unit=unit).catalog()
    assert table["flux"].unit is None
    assert table.meta["unit"] == unit


def test_catalog_reads_back(posterior, tmp_path):
    posterior.catalog().write(tmp_path / "catalog.ecsv")
    again = QTable.read(tmp_path / "catalog.ecsv")
    assert again.colnames == posterior.catalog().colnames
    np.testing.assert_allclose(again["flux_g"], posterior.catalog()["flux_g"])
    assert again["neighbor"].mask.tolist() == [False, False, True, False, False]
