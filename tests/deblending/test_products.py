"""The files that a deblended image is written to, and the short form of its catalog."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from probdeblend.deblending import DeblendedImage
from probdeblend.deblending.products import FILES, short_table, write_products
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag


@pytest.fixture
def result(rng):
    mask, mask_std = rng.uniform(size=(2, 2, 2, 24, 24)).astype(np.float32)
    posterior = Posterior.from_draws(
        rng.normal([80, 40], 1, size=(1, 50, 2, 2))[..., None],
        flux_kind="total",
        method="network",
        mask=mask,
        mask_std=mask_std,
        flags=np.array([[0, 0], [int(Flag.OFF_CENTER), 0]]),
        flux_unit="electron / s",
    )
    corners = QTable({"blend": [0, 1], "x0": [4, -3], "y0": [1, 2]})
    return DeblendedImage(posterior.summary(), posterior, rng.normal(size=(2, 24, 24)), corners, 0.003)


def test_masks_are_placed_in_the_image(result, tmp_path):
    wcs = WCS(naxis=2)
    wcs.wcs.crval = [53.1, -27.8]
    names = write_products(tmp_path, result, wcs=wcs, save_draws=True)
    assert names == ["blends.png", "catalog.ecsv", "draws.nc", "masks.fits"]
    assert set(names) < set(FILES)
    with fits.open(tmp_path / "masks.fits") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "MASK", "MASK_STD", "STAMPS"]
        assert hdus[0].header["CRVAL1"] == 53.1
        assert hdus["MASK"].data.dtype == np.dtype(">f4")
        np.testing.assert_array_equal(hdus["MASK"].data, result.posterior.mask)
        np.testing.assert_array_equal(hdus["MASK_STD"].data, result.posterior.dataset["mask_std"])
        assert hdus["STAMPS"].data["x0"].tolist() == [4, -3]
    assert len(QTable.read(tmp_path / "catalog.ecsv")) == 4
    np.testing.assert_array_equal(Posterior.open(tmp_path / "draws.nc").flux, result.posterior.flux)


def test_an_image_without_overlaps_has_a_catalog_and_its_figure(result, rng, tmp_path):
    catalog = result.catalog
    catalog["flags"] = int(Flag.ISOLATED)
    catalog["x"], catalog["y"] = rng.uniform(5, 30, (2, len(catalog)))
    lonely = DeblendedImage(catalog, None, None, result.corners[:0], 0.003, image=rng.normal(size=(40, 40)))
    assert write_products(tmp_path, lonely) == ["catalog.ecsv", "field.png"]


def test_the_short_table_is_for_reading(result):
    table = short_table(result.catalog, most=3)
    assert table.colnames == ["id", "x", "y", "flux (electron / s)", "mag", "correlation", "flags"]
    assert len(table) == 3
    assert table["flags"].tolist() == ["-", "-", "off center"]
    assert table["mag"].tolist() == ["-"] * 3
    value, error = (float(number) for number in table["flux (electron / s)"][0].split(" ± "))
    assert value == pytest.approx(result.catalog["flux"][0].value, rel=1e-3)
    assert error == pytest.approx(result.catalog["flux_err"][0].value, rel=0.05)
    assert table.pformat()[2].endswith("-" + " " * 9)
