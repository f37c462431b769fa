import numpy as np
import pytest
import xarray as xr
from astropy.wcs import WCS

from probdeblend.posterior import COLUMNS, Posterior

FOUR = {"scene": [0, 0, 1, 1], "group": [0, 0, 1, 2], "x": np.arange(4.0), "y": np.arange(4.0)}


def test_axes_and_attributes(posterior, draws):
    assert posterior.flux.dims == posterior.flux_auto.dims == ("chain", "draw", "source", "band")
    np.testing.assert_array_equal(posterior.flux, draws)
    np.testing.assert_array_equal(posterior.flux_auto, 0.9 * draws)
    assert posterior.flux["band"].values.tolist() == ["g", "r"]
    assert posterior.flux["label"].values.tolist() == [11, 3, 5, 8, 2]
    assert posterior.flags.tolist() == [0, 0, 1, 0, 8]
    assert posterior.dataset.attrs["scenes"] == 3
    assert posterior.dataset.attrs["pixel_scale"] == 0.06
    assert len(posterior) == 5


def test_only_what_is_needed():
    posterior = Posterior.from_draws(flux_auto=np.ones((1, 1, 4, 1)), method="sep", **FOUR)
    assert posterior.dataset["label"].values.tolist() == [1, 2, 3, 4]
    assert posterior.flags.tolist() == [0, 0, 0, 0]
    assert posterior.wcs is posterior.cutouts is None
    with pytest.raises(AttributeError, match=r"this posterior of method 'sep' has no flux$"):
        _ = posterior.flux
    with pytest.raises(ValueError, match="kind must be total or auto, got 'petro'"):
        posterior.draws("petro")


def test_refuses_wrong_input(make_cutouts):
    flux = np.ones((2, 9, 4, 1))
    with pytest.raises(ValueError, match="flux or flux_auto must be given, got neither"):
        Posterior.from_draws(**FOUR)
    with pytest.raises(ValueError, match=r"flux must have the axes \(chain, .*\) with 1 bands, got shape \(2, 9, 4\)"):
        Posterior.from_draws(flux[..., 0], **FOUR)
    with pytest.raises(ValueError, match=r"flux must have the axes .* with 2 bands, got shape \(2, 9, 4, 1\)"):
        Posterior.from_draws(flux, bands=("g", "r"), **FOUR)
    with pytest.raises(ValueError, match=r"flux_auto must have the axes .*, got shape \(2, 8, 4, 1\)"):
        Posterior.from_draws(flux, flux[:, 1:], **FOUR)
    with pytest.raises(ValueError, match=r"x must have shape \(4,\), got \(3,\)"):
        Posterior.from_draws(flux, **FOUR | {"x": [1, 2, 3]})
    for label in ([1, 2, 3, 3], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match=r"label must be positive and no two alike, got \["):
            Posterior.from_draws(flux, label=label, **FOUR)
    with pytest.raises(ValueError, match=r"zero_point must have shape \(1,\), got \(2,\)"):
        Posterior.from_draws(flux, zero_point=(25.0, 26.0), **FOUR)
    with pytest.raises(ValueError, match=r"cutouts must be of 4 sources, got 3"):
        Posterior.from_draws(flux, cutouts=make_cutouts(3), **FOUR)


def test_columns(posterior):
    assert posterior.dataset["kind_probability"].sel(source_type="star").values.tolist() == [0, 0, 0, 0, 1]
    assert repr(posterior) == "<Posterior: {'chain': 2, 'draw': 500, 'source': 5, 'band': 2}>"
    changed = posterior.with_columns({"anomaly": np.arange(5.0), "flags": np.full(5, 64)})
    assert changed.dataset["anomaly"].dims == COLUMNS["anomaly"] == ("source",)
    assert changed.flags.tolist() == [64] * 5
    assert posterior.flags.tolist() == [0, 0, 1, 0, 8]
    assert changed.cutouts is posterior.cutouts
    with pytest.raises(ValueError, match=r"columns must be among existence, .*, got weight"):
        posterior.with_columns({"weight": np.ones(5)})
    with pytest.raises(ValueError, match=r"sky_rms must have shape \(5, 2\), got \(5,\)"):
        posterior.with_columns({"sky_rms": np.ones(5)})


def test_world_coordinates(posterior, wcs):
    sky = wcs.pixel_to_world(posterior.dataset["x"].values, posterior.dataset["y"].values)
    np.testing.assert_allclose(posterior.dataset["ra"], sky.ra.deg, atol=1e-12)
    again = posterior.wcs.pixel_to_world(45, 35)
    assert again.separation(wcs.pixel_to_world(45, 35)).arcsec < 1e-6


@pytest.mark.parametrize("axes", [("HPLN-TAN", "HPLT-TAN"), ("MALN-TAN", "MALT-TAN"), ("", ""), ("FREQ", "X")])
def test_world_coordinates_that_are_not_on_the_sky_answer_in_pixels(axes):
    """Of the Sun, of a planet, and of no sphere at all."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cdelt = axes, [1e-3, 1e-3]
    flux = np.ones((1, 4, 2, 1))
    found = Posterior.from_draws(flux, scene=[0, 0], group=[0, 1], x=[3.0, 8.0], y=[5.0, 6.0], wcs=wcs)
    catalog = found.catalog()
    assert not {"ra", "dec"} & set(catalog.colnames)
    assert catalog["x"].value.tolist() == [3.0, 8.0]


def test_notebooks_show_the_catalog(posterior):
    shown = posterior._repr_html_()
    assert shown.startswith("<div>")
    assert "flux_g" in shown


def test_select_keeps_labels_scenes_and_groups(posterior):
    chosen = posterior.select([3, 0])
    assert chosen.dataset["label"].values.tolist() == [8, 11]
    assert chosen.dataset["scene"].values.tolist() == [2, 0]
    assert chosen.dataset["group"].values.tolist() == [9, 4]
    np.testing.assert_array_equal(chosen.mask(8).data, posterior.mask(8).data)
    assert len(posterior.select(1)) == 1
    assert len(posterior.select(slice(1, None))) == 4
    assert len(posterior.select(np.array([True, False, True, False, False]))) == 2
    assert len(posterior.select([])) == 0
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        posterior.select(5)
    with pytest.raises(IndexError, match="boolean index"):
        posterior.select([True, False])


def test_index_of_a_label(posterior):
    assert [posterior.index(label) for label in (11, 3, 5, 8, 2)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="label must be that of one of 5 sources, got 4"):
        posterior.index(4)


def test_scenes_make_the_whole_again(posterior):
    parts = [posterior.scene(number) for number in range(3)]
    assert [len(part) for part in parts] == [3, 0, 2]
    assert parts[2].dataset["scene"].values.tolist() == [0, 0]
    assert parts[2].dataset["group"].values.tolist() == [9, 9]
    joined = Posterior.concatenate(parts)
    assert joined.dataset["group"].values.tolist() == [0, 0, 1, 2, 2]
    assert "wcs" not in joined.dataset.attrs
    expected = posterior.dataset.assign_coords(group=joined.dataset["group"])
    del expected.attrs["wcs"]
    xr.testing.assert_identical(joined.dataset, expected)
    for label in (11, 2):
        np.testing.assert_array_equal(joined.image(label).data, posterior.image(label).data)
    with pytest.raises(IndexError, match="number must be from 0 to below 3, got 3"):
        posterior.scene(3)


def test_concatenation_renumbers(posterior):
    twice = Posterior.concatenate([posterior, posterior])
    assert twice.dataset["label"].values.tolist() == list(range(1, 11))
    assert twice.dataset["scene"].values.tolist() == [0, 0, 0, 2, 2, 3, 3, 3, 5, 5]
    assert twice.dataset["group"].values.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]
    assert twice.dataset.attrs["scenes"] == 6
    assert Posterior.concatenate([posterior, Posterior(posterior.dataset)]).cutouts is None


def test_concatenation_refuses_what_differs(posterior, draws):
    with pytest.raises(ValueError, match="posteriors must hold at least one posterior, got none"):
        Posterior.concatenate([])
    fewer = Posterior(posterior.dataset.isel(draw=slice(9)))
    with pytest.raises(ValueError, match=r"(?s)posteriors must be alike except for their sources, got.*draw: 9"):
        Posterior.concatenate([posterior, fewer])
    other = Posterior(posterior.dataset.assign_attrs(unit="nJy"))
    with pytest.raises(ValueError, match=r"(?s)posteriors must be alike except for their sources, got.*nJy"):
        Posterior.concatenate([posterior, other])


@pytest.mark.parametrize("sources", [0, 1, 7])
def test_any_number_of_sources(sources, rng, wcs, make_cutouts, tmp_path):
    posterior = Posterior.from_draws(
        rng.uniform(1, 2, (2, 8, sources, 1)),
        scene=np.zeros(sources),
        group=np.arange(sources),
        x=np.arange(sources),
        y=np.arange(sources),
        scenes=1,
        cutouts=make_cutouts(sources, bands=1),
        wcs=wcs,
    )
    assert len(posterior) == len(posterior.catalog()) == posterior.total_flux.sizes["group"] == sources
    assert posterior.magnitude.shape == (2, 8, sources, 1)
    assert len(posterior.scene(0)) == sources
    assert posterior.label_image().shape == (40, 50)
    posterior.save(tmp_path / "draws.nc")
    assert len(Posterior.open(tmp_path / "draws.nc").cutouts) == sources
