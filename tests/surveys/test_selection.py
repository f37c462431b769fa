"""From mosaics and catalogs to isolated galaxies, on mosaics that the package simulates and on real ones."""

from collections import Counter

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry import FieldImage
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation import Camera
from probdeblend.surveys import isolate_galaxies, read_library, write_library
from probdeblend.surveys.selection import cut_galaxies, positions, read_catalog

HST = Camera.candels_f160w()


@pytest.mark.slow
def test_galaxies_of_a_mosaic_have_their_fluxes(library, field):
    """Those without a flag, by their number in the catalog: Kron flux to some percent."""
    _, catalog = field
    rows = np.array([int(name.split(":")[1]) - 1 for name in library.identity])
    assert len(library) > 30
    good = library.keep
    assert 0.4 < good.mean() < 0.95
    ratio = np.log(library.auto_flux / catalog["flux"][rows])[good]
    assert abs(np.median(ratio)) < 0.02
    assert 1.4826 * np.median(np.abs(ratio - np.median(ratio))) < 0.06


@pytest.mark.slow
def test_galaxies_stand_in_the_middle_and_alone(library, hst):
    assert np.abs(library.x - 63.5).max() <= 4
    assert np.abs(library.y - 63.5).max() <= 4
    assert library.segmentation[:, 58:69, 58:69].any((1, 2)).all()
    for row in np.flatnonzero(library.keep)[:10]:
        sky = library.pixels[row][~library.footprint[row]]
        assert np.median(np.abs(sky)) * 1.4826 == pytest.approx(float(hst.sky_rms[0]), rel=0.15)


def test_what_is_left_out_is_counted(small_field, hst):
    mosaic, catalog = small_field[0], small_field[1].copy()
    catalog["x"][0], catalog["y"][0], catalog["magnitude"][0] = 8.0, 200.0, 20.0
    skipped = Counter()
    kept = list(cut_galaxies(mosaic, catalog, instrument=hst, faintest=21.0, skipped=skipped))
    assert kept
    assert len(kept) + skipped.total() == len(catalog)
    assert skipped["too faint"] == (catalog["magnitude"] >= 21.0).sum()
    assert skipped["too near the edge"] >= 1
    moved = catalog.copy()
    moved["x"] += 5000
    skipped.clear()
    assert not list(cut_galaxies(mosaic, moved, instrument=hst, faintest=30, skipped=skipped))
    assert set(skipped) == {"off the mosaic"}


@pytest.mark.slow
def test_without_a_catalog_the_same_galaxies_are_found(field, hst):
    mosaic, catalog = field
    found = list(cut_galaxies(mosaic, None, instrument=hst, faintest=21.5, skipped=Counter()))
    bright = catalog[catalog["magnitude"] < 21.2]
    x, y = (np.array([g[name] + g[f"{name}0"] for g in found]) for name in "xy")
    inside = (np.minimum(bright["x"], bright["y"]) > 40) & (np.maximum(bright["x"], bright["y"]) < 860)
    distance = np.hypot(x - np.array(bright["x"])[:, None], y - np.array(bright["y"])[:, None]).min(1)
    assert np.mean(distance[np.asarray(inside)] < 3) > 0.7


def test_same_seed_same_sky(small_field, hst):
    def first(seed):
        settings = {"faintest": 24.0, "skipped": Counter()}
        return next(iter(cut_galaxies(*small_field, instrument=hst, seed=seed, **settings)))["pixels"]

    assert np.array_equal(first(1), first(1))


@pytest.mark.slow
def test_one_source_is_cut_out_once(field, hst):
    mosaic, catalog = field
    doubled = catalog.copy()
    doubled["x"] += 2.0
    twice = Table({name: np.concatenate([catalog[name], doubled[name]]) for name in ("x", "y", "magnitude")})
    skipped = Counter()
    found = list(cut_galaxies(mosaic, twice, instrument=hst, faintest=21.5, skipped=skipped))
    assert skipped["the same source as that of another row"] >= len(found) - 1
    assert len(found) <= (catalog["magnitude"] < 21.5).sum()


def test_positions_need_columns_and_coordinates():
    mosaic = FieldImage("simulated", np.zeros((300, 300)), None, None, None, "", fits.Header())
    with pytest.raises(ValueError, match="the catalog must have the columns x and y, or ra and dec, got magnitude"):
        positions(Table({"magnitude": [1.0]}), mosaic)
    with pytest.raises(ValueError, match="simulated: has no world coordinates, so the catalog must give x and y"):
        positions(Table({"ra": [1.0], "dec": [2.0]}), mosaic)


def test_types_of_the_catalog_are_kept(small_field, hst):
    mosaic, catalog = small_field
    typed = catalog.copy()
    typed["type"][::2] = "?"
    found = list(cut_galaxies(mosaic, typed[:3], instrument=hst, faintest=24.0, skipped=Counter()))
    assert len(found) > 1
    for galaxy in found:
        kind = typed["type"][int(galaxy["identity"].split(":")[1]) - 1]
        assert galaxy["galaxy_type"] == (GALAXY_TYPES.index(kind) if kind in GALAXY_TYPES else -1)


@pytest.fixture(scope="module")
def survey(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("survey")
    image, catalog = small[0], small[1].copy()
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1, "CRPIX2": 1, "ABMAGZP": 25.9463})
    header.update({"CDELT1": -0.06 / 3600, "CDELT2": 0.06 / 3600, "CRVAL1": 53.0, "CRVAL2": -27.0})
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(folder / "mosaic.fits")
    catalog.rename_column("magnitude", "H")
    catalog.write(folder / "catalog.csv")
    return folder


def collected(survey, **options):
    settings = {"catalog": survey / "catalog.csv", "columns": {"magnitude": "H"}} | options
    return isolate_galaxies([survey / "mosaic.fits"], instrument=HST, **settings)


def test_a_library_of_a_mosaic(survey, tmp_path):
    found = collected(survey)
    assert len(found.library) >= 5
    assert np.isfinite(found.library.ra).all()
    assert np.abs(found.library.dec + 27).max() < 0.01
    names = write_library(tmp_path / "isolated", found.library)
    assert names == ["library.h5", "keep.csv", "contact-001.png"]
    assert {entry.name for entry in (tmp_path / "isolated").iterdir()} == {*names, ".probdeblend.json"}
    assert len(read_library(tmp_path / "isolated")) == len(found.library)
    table = found.summary()
    assert dict(zip(table["reason"], table["galaxies"], strict=True)).items() >= found.skipped.items()
    assert table["galaxies"].sum() == 12
    assert table["galaxies"][table["state"] == "kept"].tolist() == [found.library.keep.sum()]
    assert sum(found.skipped.values()) + len(found.library) == 12
    with pytest.raises(FileExistsError, match="isolated: exists already"):
        write_library(tmp_path / "isolated", found.library)
    both = read_library(tmp_path / "isolated", tmp_path / "isolated")
    assert len(set(both.identity)) == len(set(found.library.identity))


@pytest.mark.slow
def test_without_a_catalog(survey):
    found = collected(survey, catalog=None, columns=None)
    assert len(found.library) >= 5


@pytest.mark.slow
def test_fluxes_in_another_unit(survey, tmp_path):
    """The same image in nJy: fluxes times the ratio of the units, relative errors as before."""
    with fits.open(survey / "mosaic.fits") as hdus:
        factor = 10 ** (0.4 * (31.4 - 25.9463))
        hdus[0].header["ABMAGZP"] = 31.4
        fits.PrimaryHDU(hdus[0].data * factor, hdus[0].header).writeto(tmp_path / "mosaic.fits")
    options = {"catalog": survey / "catalog.csv", "columns": {"magnitude": "H"}}
    first = collected(survey).library
    second = isolate_galaxies([tmp_path / "mosaic.fits"], instrument=HST, **options).library
    np.testing.assert_allclose(second.auto_flux, factor * first.auto_flux, rtol=5e-3)
    np.testing.assert_allclose(second.flux_error, factor * first.flux_error, rtol=1e-2)
    np.testing.assert_allclose(second.magnitude, first.magnitude, atol=2e-3)


def test_a_mapping_to_sky_positions_wins(survey):
    table = Table.read(survey / "catalog.csv")
    table["RA"] = 53.0 - table["x"] * 0.06 / 3600 / np.cos(np.radians(27.0))
    table["DEC"] = -27.0 + table["y"] * 0.06 / 3600
    table["x"] = 5000.0
    table.write(survey / "sky.csv", overwrite=True)
    columns = {"ra": "RA", "dec": "DEC", "magnitude": "H"}
    found = collected(survey, catalog=survey / "sky.csv", columns=columns, faintest=21.2)
    assert len(found.library) >= 3


def test_files_that_do_not_fit(survey, tmp_path):
    mosaic = survey / "mosaic.fits"
    with pytest.raises(ValueError, match="catalog requires a single image, got 2"):
        isolate_galaxies([mosaic, mosaic], instrument=HST, catalog=survey / "catalog.csv")
    with pytest.raises(ValueError, match="the columns 'magnitude' are missing, there are id, x, y, "):
        collected(survey, columns={})
    with pytest.raises(ValueError, match="no galaxy is left to cut out: 12 too faint"):
        collected(survey, faintest=10.0)
    Table({"x": [], "y": [], "magnitude": []}).write(tmp_path / "empty.ecsv")
    with pytest.raises(ValueError, match="the catalog must have rows, got none"):
        collected(survey, catalog=tmp_path / "empty.ecsv", columns={})
    with fits.open(mosaic) as hdus:
        hdus[0].header["CDELT2"] = 0.2 / 3600
        hdus[0].header["CDELT1"] = -0.2 / 3600
        hdus.writeto(tmp_path / "coarse.fits")
    with pytest.raises(ValueError, match=r'coarse.fits: pixels must be 0.06" within 2%, got 0.2"'):
        isolate_galaxies([tmp_path / "coarse.fits"], instrument=HST)


def test_sky_positions_need_coordinates(survey, tmp_path):
    with fits.open(survey / "mosaic.fits") as hdus:
        fits.PrimaryHDU(hdus[0].data).writeto(tmp_path / "bare.fits")
    Table({"ra": [53.0], "dec": [-27.0], "magnitude": [20.0]}).write(tmp_path / "sky.csv")
    with pytest.raises(ValueError, match=r"bare.fits: has no world coordinates, so the catalog must give x and y"):
        isolate_galaxies([tmp_path / "bare.fits"], instrument=HST, catalog=tmp_path / "sky.csv")


@pytest.mark.slow
def test_isolated_galaxies_of_candels(data_dir):
    """Of the seven cut-outs: at least ten galaxies, some kept and some rejected, and the two depths are seen."""
    paths = sorted((data_dir / "candels_f160w").glob("*.fits"))
    found = isolate_galaxies(paths, instrument=HST, hdu="1", faintest=24.7)
    assert len(found.library) >= 10
    assert 5 <= found.library.keep.sum() < len(found.library)
    reasons = Counter(found.library.quality.tolist())
    straddling = found.library.origin == "gds_H.gf18160.fits"
    assert (found.library.quality[straddling] & 32 > 0).all()
    assert reasons[0] == found.library.keep.sum()
    assert ((found.library.sky_rms > 1.5e-3) & (found.library.sky_rms < 9e-3)).all()


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv"])
def test_columns_get_our_names(tmp_path, suffix):
    path = tmp_path / f"catalog.{suffix}"
    Table({"ALPHA": [1.0, 2.0], "DELTA": [3.0, 4.0], "H": [20.0, 21.0], "id": [7, 8]}).write(path)
    names = {"ra": "ALPHA", "dec": "DELTA", "magnitude": "H"}
    table = read_catalog(path, names)
    assert {"ra", "dec", "magnitude", "id"} <= set(table.colnames)
    assert table["magnitude"].tolist() == [20.0, 21.0]


def test_missing_columns_are_named(tmp_path):
    path = tmp_path / "catalog.csv"
    Table({"X": [1.0], "Y": [2.0]}).write(path)
    message = r"the columns 'H_MAG' are missing, there are X, Y"
    with pytest.raises(ValueError, match=message):
        read_catalog(path, {"magnitude": "H_MAG"})
    with pytest.raises(ValueError, match=r"the columns 'magnitude' are missing"):
        read_catalog(path, {})
    (tmp_path / "text.fits").write_text("no")
    with pytest.raises(ValueError, match=r"text.fits: not a table of the kind that its name says"):
        read_catalog(tmp_path / "text.fits", {})
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_catalog(tmp_path / "none.csv", {})
