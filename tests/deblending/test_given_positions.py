"""The forms in which users give positions, and what is wrong with some."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table, join
from astropy.wcs import WCS, Sip
from photutils.segmentation import SegmentationImage
from tiny_weights import PSF, QUICK, noise_of

from probdeblend.deblending import positions as module
from probdeblend.posterior import Posterior

SHAPE = (40, 60)
X, Y = np.array([10.25, 50.0, 3.0]), np.array([5.5, 30.0, 39.0])


def locate(positions, shape, wcs):
    """All of the sources are in the image, and nothing is noted."""
    listed = module.locate(positions, shape, wcs, notes := [])
    assert not notes
    return listed


@pytest.fixture(scope="module")
def wcs():
    world = WCS(naxis=2)
    world.wcs.ctype = "RA---TAN", "DEC--TAN"
    world.wcs.crval = 53.1, -27.8
    world.wcs.crpix = 20, 20
    world.wcs.cdelt = -0.06 / 3600, 0.06 / 3600
    return world


@pytest.fixture(scope="module")
def sky(wcs):
    return wcs.pixel_to_world(X, Y)


FORMS = {
    "array": lambda sky: np.stack([X, Y], 1),
    "big-endian": lambda sky: np.stack([X, Y], 1).astype(">f8"),
    "list": lambda sky: [tuple(place) for place in zip(X, Y, strict=True)],
    "x and y": lambda sky: Table({"x": X, "y": Y}),
    "quantities": lambda sky: QTable({"x": X * u.pix, "y": Y * u.pix}),
    "columns": lambda sky: {"mag": [4, 5, 6], "y": Y, "x": X.tolist()},
    "centroids": lambda sky: Table({"flux": X, "x_centroid": X, "y_centroid": Y}),
    "old centroids": lambda sky: Table({"xcentroid": X, "ycentroid": Y}),
    "SExtractor": lambda sky: Table({"NUMBER": [1, 2, 3], "X_IMAGE": X + 1, "Y_IMAGE": Y + 1}),
    "SExtractor's sky": lambda sky: Table({"ALPHA_J2000": sky.ra.deg, "DELTA_J2000": sky.dec.deg}),
    "capitals": lambda sky: Table({"RA": sky.ra.deg, "Dec": sky.dec.deg}),
    "hours": lambda sky: QTable({"ra": sky.ra.to("hourangle"), "dec": sky.dec}),
    "structured": lambda sky: Table({"x": X, "y": Y}).as_array(),
    "degrees": lambda sky: Table({"ra": sky.ra.deg, "dec": sky.dec.deg}),
    "angles": lambda sky: QTable({"ra": sky.ra, "dec": sky.dec}),
    "sky": lambda sky: sky,
    "galactic": lambda sky: sky.galactic,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_give_the_same_places(form, sky, wcs):
    x, y, label, _ = locate(form(sky), SHAPE, wcs)
    np.testing.assert_allclose(x, X, atol=1e-6)
    np.testing.assert_allclose(y, Y, atol=1e-6)
    assert x.dtype == y.dtype == np.dtype(float)
    assert label.tolist() == [1, 2, 3]


def test_one_place_on_the_sky(sky, wcs):
    assert locate(sky[0], SHAPE, wcs)[0] == pytest.approx(X[:1])


@pytest.mark.parametrize(
    ("name", "values", "label", "identifier"),
    [
        ("label", [7, 3, 9], [7, 3, 9], None),
        ("NUMBER", np.array([7, 3, 9], dtype=">i2"), [7, 3, 9], None),
        ("source_id", [7, 3, 2**40], [1, 2, 3], [7, 3, 2**40]),
        ("id", [0, 1, 2], [1, 2, 3], [0, 1, 2]),
        ("ID", ["a7", "b", "c"], [1, 2, 3], ["a7", "b", "c"]),
        ("Name", np.array([b"a7", b"b", b"c"]), [1, 2, 3], ["a7", "b", "c"]),
        ("name", np.array(["a7", "b", 3], dtype=object), [1, 2, 3], ["a7", "b", "3"]),
        ("number", [4, 4, 4], [1, 2, 3], None),
        ("number", [7.0, 3.0, 1.5], [1, 2, 3], None),
        ("id", MaskedColumn([7, 3, 9], mask=[False, True, False]), [1, 2, 3], None),
    ],
)
def test_labels_are_those_of_the_table_where_they_can_be(name, values, label, identifier):
    *_, labels, names = locate(Table({"x": X, "y": Y, name: values}), SHAPE, None)
    assert labels.tolist() == label
    assert (names if identifier is None else names.tolist()) == identifier


def test_segments_are_at_their_centroids_with_their_labels(tmp_path):
    """As photutils has them, as an array, or as a file."""
    data = np.zeros(SHAPE, dtype=np.int64)
    data[4:7, 10:13], data[30, 50] = 8, 2
    fits.PrimaryHDU(data).writeto(tmp_path / "labels.fits")
    for segments in (
        SegmentationImage(data),
        data.astype(">i8"),
        tmp_path / "labels.fits",
        f"{tmp_path}/labels.fits[0]",
    ):
        x, y, label, name = locate(segments, SHAPE, None)
        assert (x.tolist(), y.tolist(), label.tolist(), name) == ([50, 11], [30, 5], [2, 8], None)
    assert locate(data * 2**40, SHAPE, None)[3].tolist() == [2 * 2**40, 8 * 2**40]
    with pytest.raises(ValueError, match=r"segmentation map of the image's shape \(41, 60\), got \(40, 60\)"):
        locate(SegmentationImage(data), (41, 60), None)
    with pytest.raises(ValueError, match="positions must hold at least one source, got none"):
        locate(0 * data, SHAPE, None)
    fits.PrimaryHDU(data + 0.5).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"segmentation map .* got \(40, 60\) of float64"):
        locate(tmp_path / "image.fits", SHAPE, None)


def test_sources_outside_of_the_image_are_left_out(wcs, sky):
    """The others keep their order and labels, also where a distortion has no inverse or wraps into the image."""
    elsewhere = SkyCoord([233.1, 53.1, 54.1, 53.1] * u.deg, [27.8, -27.81, -26.8, 90] * u.deg)
    mine = SkyCoord([*sky.icrs, *elsewhere])[[3, 0, 4, 5, 1, 2, 6]]
    table = Table({"ra": mine.ra.deg, "dec": mine.dec.deg, "source_id": ["p", "a", "q", "r", "b", "c", "s"]})
    distorted = wcs.deepcopy()
    distorted.wcs.ctype = "RA---TAN-SIP", "DEC--TAN-SIP"
    terms = np.zeros((2, 4, 4))
    terms[0, 2, 0] = terms[1, 0, 2] = terms[0, 1, 1] = 2e-5
    distorted.sip = Sip(*terms, None, None, wcs.wcs.crpix)
    for world, within in ((wcs, 1e-6), (distorted, 0.1)):
        x, _, label, name = module.locate(table, SHAPE, world, notes := [])
        np.testing.assert_allclose(x, X, atol=within)
        assert (label.tolist(), name.tolist()) == ([2, 5, 6], ["a", "b", "c"])
        assert notes == ["4 of 7 positions are outside of the image, and not in the catalog"]


HIDDEN = MaskedColumn(X, mask=[False, True, False])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.zeros((0, 2)), "positions must hold at least one source, got none"),
        ([], r"positions must have the shape \(n, 2\) of x and y, .* got \(0,\)"),
        ([1, 2], r"positions must have the shape \(n, 2\) of x and y, .* got \(2,\)"),
        (np.zeros((2, 3)), r"got \(2, 3\)"),
        ([[60, 3], [1, 40]], "inside the image of 60 x 40 pixels, got none of 2 there, the first at x, y = 60, 3"),
        ([[-0.6, 2]], "inside the image .* at x, y = -0.6, 2"),
        ([[1, 39.5]], "inside the image .* at x, y = 1, 39.5"),
        ([[1, np.nan]], "positions must be finite, got NaN"),
        (Table({"x": HIDDEN, "y": Y}), "positions must be finite, got NaN"),
        ([[1, 2], [4, 5], [1, 2]], "positions must differ, got x, y = 1, 2 twice"),
        (Table({"X": X, "y": Y}), "positions must have columns x and y, or ra and dec, got X, y"),
        (Table({"label": [1, 1, 2], "x": X, "y": Y}), "positions must have labels of which no two are alike"),
        (Table({"ra": HIDDEN, "dec": Y}), "positions must be finite, got NaN"),
        (QTable({"x": X * u.arcsec, "y": Y * u.arcsec}), "positions x and y must be in pixels, got arcsec"),
        (np.stack([X, Y], 1) * u.deg, "positions x and y must be in pixels, got deg"),
        (SkyCoord(1 * u.deg, 1 * u.deg), "wcs must be given"),
        (Table({"ra": X, "dec": Y}), "wcs must be given"),
    ],
)
def test_bad_positions(positions, message):
    with pytest.raises(ValueError, match=message):
        locate(positions, SHAPE, None)


SEXAGESIMAL = Table({"ra": ["03:32:24.0"], "dec": ["-27:48:00"]})


@pytest.mark.parametrize("positions", [[["a", "b"]], [[1, 2], [3]], [[1 + 1j, 2]], [[{}, 1]], SEXAGESIMAL])
def test_only_numbers_are_positions(positions):
    with pytest.raises(TypeError, match="positions must be an array of numbers, got"):
        locate(positions, SHAPE, None)


def test_places_outside_the_image_on_the_sky(wcs):
    with pytest.raises(ValueError, match=r"positions must be inside the image .* got none of 1"):
        locate(SkyCoord(53.2 * u.deg, -27.8 * u.deg), SHAPE, wcs)


def test_the_edges_of_the_image_belong_to_it():
    assert len(locate([[-0.5, -0.5], [59.49, 39.49]], SHAPE, None)[0]) == 2


def test_a_catalog_is_joined_with_the_list_by_what_names_the_sources(blank, tmp_path):
    mine = Table({"source_id": ["p", "q", "rs"], "x": [40.0, 70.0, 20.0], "y": [10.0, 30.0, 30.0]})
    posterior = blank(noise_of((64, 64)), psf=PSF, sky_rms=1.0, positions=mine, **QUICK)
    posterior.save(tmp_path / "draws.nc")
    for known in (posterior, Posterior.open(tmp_path / "draws.nc")):
        catalog = known.catalog()
        assert (catalog["id"].tolist(), catalog["label"].tolist()) == (["p", "rs"], [1, 3])
        assert "1 of 3 positions are outside of the image" in catalog.meta["notes"]
    catalog.write(tmp_path / "catalog.ecsv")
    catalog = QTable.read(tmp_path / "catalog.ecsv")
    joined = join(mine, catalog, keys_left="source_id", keys_right="id", join_type="left")
    assert joined["flux"].mask.tolist() == [False, True, False]
