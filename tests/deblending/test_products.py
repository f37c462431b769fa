"""The files that a deblended image is written to, and the short form of its catalog."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from probdeblend.deblending.products import short_table, write_products
from probdeblend.posterior import Cutouts, Flag, Posterior

SHAPE = (30, 40)
CORNER = np.array([[4, 6], [10, 20]])


def posterior_of(bands=("",), *, pixels=True, wcs=None):
    rng = np.random.default_rng(8)
    mask = [np.full((6, 8), 0.9), np.full((5, 5), 0.2)]
    image = [rng.normal(size=(len(bands), *part.shape)) for part in mask]
    draws = rng.normal(np.array([80, 40])[:, None], 1, size=(1, 200, 2, len(bands)))
    return Posterior.from_draws(
        draws, 0.9 * draws, scene=[0, 0], group=[0, 0], x=[9.25, 22.0], y=[6.5, 12.0], label=[3, 8], bands=bands,
        unit="electron / s", cutouts=Cutouts(CORNER, SHAPE, mask=mask, image=image) if pixels else None, wcs=wcs,
        columns={"existence": [0.97, 0.4], "star": [0.1, 0.2], "flags": [0, int(Flag.DOUBTFUL | Flag.EDGE)]},
    )  # fmt: skip


def test_the_pixels_are_those_of_the_posterior(tmp_path):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 53.1, -27.8
    wcs.wcs.cdelt = -1e-5, 1e-5
    posterior = posterior_of(wcs=wcs)
    names = write_products(tmp_path, posterior, save_draws=True)
    assert names == ["catalog.ecsv", "draws.nc", "model.fits", "segmentation.fits", "sources.reg"]
    with fits.open(tmp_path / "segmentation.fits") as hdus:
        assert hdus[0].header["CRVAL1"] == 53.1
        np.testing.assert_array_equal(hdus[0].data, posterior.label_image())
        assert set(np.unique(hdus[0].data)) == {0, 3}
    with fits.open(tmp_path / "model.fits") as hdus:
        model = np.squeeze(hdus[0].data)
        assert model.shape == SHAPE
        np.testing.assert_allclose(model[10:15, 20:25], posterior.image(8).data[0], rtol=1e-6)
    catalog = QTable.read(tmp_path / "catalog.ecsv")
    assert catalog["label"].tolist() == [3, 8]
    assert {"ra", "dec", "flux", "flux_err", "existence", "flags"} <= set(catalog.colnames)
    np.testing.assert_array_equal(Posterior.open(tmp_path / "draws.nc").flux, posterior.flux)


def test_without_pixels_there_is_a_catalog(tmp_path):
    assert write_products(tmp_path, posterior_of(pixels=False)) == ["catalog.ecsv", "sources.reg"]


def test_regions_are_ellipses_of_two_half_light_radii(tmp_path):
    """DS9 counts pixels from one, and angles from +x; a source whose shape is not known is a point."""
    shape = {"half_light_radius": [0.18, np.nan], "axis_ratio": [0.25, 0.5], "angle": [np.pi / 3, 0.0]}
    posterior = posterior_of().with_columns(shape)
    posterior.dataset.attrs["pixel_scale"] = 0.06
    write_products(tmp_path, posterior)
    assert (tmp_path / "sources.reg").read_text().splitlines() == [
        "# Region file format: DS9",
        "image",
        "ellipse(10.250,7.500,12.000,3.000,60.000) # text={3}",
        "point(23.000,13.000) # text={8}",
    ]


def test_an_image_without_a_source_has_its_files(tmp_path):
    names = write_products(tmp_path, posterior_of().select([]), save_draws=True)
    assert names == ["catalog.ecsv", "draws.nc", "model.fits", "segmentation.fits", "sources.reg"]
    assert len(QTable.read(tmp_path / "catalog.ecsv")) == 0
    assert len(short_table(posterior_of().select([]).catalog())) == 0
    assert not fits.getdata(tmp_path / "segmentation.fits").any()


@pytest.mark.parametrize("bands", [("",), ("g", "r")])
def test_the_short_table_is_for_reading(bands):
    catalog = posterior_of(bands).catalog()
    table = short_table(catalog)
    assert [name for name in table.colnames if "flux" in name] == [
        f"{name}{band and '_' + band}" for name in ("flux", "flux_err") for band in bands
    ]
    assert set(table.colnames) >= {"label", "x", "y", "group", "flags"}
    assert table["label"].tolist() == [3, 8]
    assert table["flags"].tolist() == ["-", "edge, doubtful"]
    assert len(short_table(catalog, most=1)) == 1
