"""Blends of the Blending ToolKit: its catalog made of COSMOS galaxies, and what is said of methods that are right."""

import numpy as np
import pytest
from astropy.table import Table

from benchmarks.peers import toolkit
from benchmarks.peers.toolkit import batches, cosmos_catalog, measure, summary

MISSING = "needs the Blending ToolKit: pip install 'probdeblend[toolkit]'"
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # of GalSim, about seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A disk, a spheroid, a galaxy of both, and one whose fit is too large."""
    folder = tmp_path_factory.mktemp("data")
    fits = Table({"ra": [0.0] * 4, "dec": [0.0] * 4, "zphot": [0.1, 0.9, 1.1, 0.1], "mag_auto": [22.0, 23.0, 24.0, 22]})
    fits["use_bulgefit"] = [0, 0, 1, 0]
    single, double = np.zeros((4, 8)), np.zeros((4, 16))
    single[:, 2:4], single[:, 7] = [[1.0, 0.25], [4.0, 0.5], [2.0, 0.5], [1.0, 0.5]], 0.5
    double[2, [3, 7, 11]] = 0.64, 0.25, 0.81
    fits["sersicfit"], fits["bulgefit"] = single, double
    fits["hlr"] = [[0.4, 0, 0], [0.2, 0, 0], [0.3, 0.1, 0.4], [5.0, 0, 0]]
    fits["flux"] = [[1.0, 0, 0, 0], [1.0, 0, 0, 0], [9.0, 1.0, 3.0, 0], [1.0, 0, 0, 0]]
    (folder / "cosmos_252_catalog").mkdir()
    fits.write(folder / "cosmos_252_catalog" / "src_cosmos.fits.gz", format="fits")
    colors = {
        f"HSC_{band}": [20.0 + step, 20.0 + 2 * step] for band, step in zip("grizy", (2, 1, 0, -1, -2), strict=True)
    }
    (folder / "cosmos_f814w").mkdir()
    Table({"ZPHOT": [1.0, 0.2]} | colors).write(folder / "cosmos_f814w" / "photometry.fits")
    return folder


def test_catalog_has_the_fits_and_colors_of_galaxies(folder):
    table = cosmos_catalog(folder)
    assert len(table) == 3
    bulge, disk = table["fluxnorm_bulge"], table["fluxnorm_disk"]
    np.testing.assert_allclose(bulge / (bulge + disk), [0, 1, 0.25])
    np.testing.assert_allclose(np.sqrt(table["a_d"] * table["b_d"])[[0, 2]], [0.4, 0.4])
    np.testing.assert_allclose((table["b_d"] / table["a_d"])[[0, 2]], [0.25, 0.64])
    np.testing.assert_allclose(np.sqrt(table["a_b"] * table["b_b"])[1:], [0.2, 0.1])
    np.testing.assert_allclose((table["b_b"] / table["a_b"])[1:], [0.5, 0.81])
    np.testing.assert_allclose(table["pa_disk"], np.degrees([0.5, 0.5, 0.25]))
    np.testing.assert_allclose(table["i_ab"], [22, 23, 24])
    np.testing.assert_allclose(table["r_ab"] - table["i_ab"], [2, 1, 1])
    np.testing.assert_allclose(table["u_ab"] - table["g_ab"], table["g_ab"] - table["r_ab"])


def test_summary_of_known_errors():
    rank = np.array([0.5, 0.3, 0.1, 0.01])  # inside of the central 0, 40, 80 and 98 %
    found = {"true": np.array([3, 2]), "found": np.array([3, 1]), "matched": np.array([3, 1]), "rank": rank}
    found |= {"flux": np.full(4, 100.0), "estimate": np.array([110.0, 90.0, 100.0, 100.0]), "seconds": np.ones(2)}
    row = summary(found | {name: np.full(4, 0.5) for name in ("iou", "mse", "psnr", "ssim")})
    assert (row["recall"], row["precision"], row["f1"]) == pytest.approx((0.8, 1.0, 8 / 9))
    assert (row["mape"], row["bias_mag"], row["iou"]) == pytest.approx((5.0, 0.0, 0.5))
    assert (row["coverage_50"], row["coverage_68"], row["coverage_95"]) == (0.5, 0.5, 0.75)


@pytest.mark.slow
def test_an_error_of_flux_is_seen_in_fluxes_alone(folder):
    """Told the truth but for a tenth more light, of which the ToolKit's similarity says nothing."""
    pytest.importorskip("btk", reason=MISSING)
    from btk.blend_batch import DeblendBatch

    batch = next(batches(cosmos_catalog(folder), 0))
    light, rms = batch.isolated_images[:, :, [2]], toolkit.toolkit_scene(batch, 0, ["r"]).sky_rms.item()

    def told(batch):
        given = (batch.batch_size, toolkit.MOST, batch.catalog_list, 1, batch.image_size)
        return DeblendBatch(*given, light[:, :, 0] > 3 * rms, 1.1 * light)

    row = summary(measure(told, 0, batch))
    assert (row["recall"], row["precision"]) == (1, 1)
    assert (row["iou"], row["ssim"]) == pytest.approx((1, 1))
    assert row["mape"] == pytest.approx(10, abs=2)  # some light lies outside of the stamp
    assert row["bias_mag"] == pytest.approx(-2.5 * np.log10(1.1), abs=0.02)
    assert np.isnan(row["coverage_68"])


@pytest.mark.slow
def test_blends_are_told_by_all_methods(run, folder, monkeypatch):
    pytest.importorskip("btk", reason=MISSING)
    monkeypatch.setenv("PROBDEBLEND_DATA", str(folder))
    monkeypatch.setattr(toolkit, "BATCH", 2)
    table = run(toolkit, "--count", "2")
    assert table["method"].tolist() == ["SEP, r", "SEP, all", "network, r", "network, gri", "network, gri, given"]
    assert table["recall"][-1] == 1
    assert np.isfinite(table["mape"][[0, -1]]).all()
    assert np.isfinite(table["coverage_68"][-1])
