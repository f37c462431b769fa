"""The forms in which users give positions, and what is wrong with some."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, QTable, Table
from astropy.wcs import WCS
from photutils.segmentation import SegmentationImage

from probdeblend.deblending.positions import locate

SHAPE = (40, 60)
X, Y = np.array([10.25, 50.0, 3.0]), np.array([5.5, 30.0, 39.0])


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
    "columns": lambda sky: {"id": [4, 5, 6], "y": Y, "x": X.tolist()},
    "centroids": lambda sky: Table({"flux": X, "x_centroid": X, "y_centroid": Y}),
    "old centroids": lambda sky: Table({"xcentroid": X, "ycentroid": Y}),
    "structured": lambda sky: Table({"x": X, "y": Y}).as_array(),
    "degrees": lambda sky: Table({"ra": sky.ra.deg, "dec": sky.dec.deg}),
    "angles": lambda sky: QTable({"ra": sky.ra, "dec": sky.dec}),
    "sky": lambda sky: sky,
    "galactic": lambda sky: sky.galactic,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_give_the_same_places(form, sky, wcs):
    x, y, label = locate(form(sky), SHAPE, wcs)
    np.testing.assert_allclose(x, X, atol=1e-6)
    np.testing.assert_allclose(y, Y, atol=1e-6)
    assert x.dtype == y.dtype == np.dtype(float)
    assert label.tolist() == [1, 2, 3]


def test_one_place_on_the_sky(sky, wcs):
    assert locate(sky[0], SHAPE, wcs)[0] == pytest.approx(X[:1])


def test_labels_are_those_of_the_table():
    assert locate(Table({"label": [7, 3, 9], "x": X, "y": Y}), SHAPE, None)[2].tolist() == [7, 3, 9]


def test_segments_are_at_their_centroids_with_their_labels():
    data = np.zeros(SHAPE, dtype=int)
    data[4:7, 10:13], data[30, 50] = 8, 2
    x, y, label = locate(SegmentationImage(data), SHAPE, None)
    assert (x.tolist(), y.tolist(), label.tolist()) == ([50, 11], [30, 5], [2, 8])
    with pytest.raises(ValueError, match=r"segmentation map of the image's shape \(41, 60\), got \(40, 60\)"):
        locate(SegmentationImage(data), (41, 60), None)


HIDDEN = MaskedColumn(X, mask=[False, True, False])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (np.zeros((0, 2)), "positions must hold at least one source, got none"),
        ([], r"positions must have the shape \(n, 2\) of x and y, got \(0,\)"),
        ([1, 2], r"positions must have the shape \(n, 2\) of x and y, got \(2,\)"),
        (np.zeros((2, 3)), r"got \(2, 3\)"),
        ([[1, 2], [60, 3]], "positions must be inside the image of 60 x 40 pixels, got x, y = 60, 3"),
        ([[-0.6, 2]], "inside the image .* got x, y = -0.6, 2"),
        ([[1, 39.5]], "inside the image .* got x, y = 1, 39.5"),
        ([[1, np.nan]], "positions must be finite, got NaN"),
        (Table({"x": HIDDEN, "y": Y}), "positions must be finite, got NaN"),
        ([[1, 2], [4, 5], [1, 2]], "positions must differ, got x, y = 1, 2 twice"),
        (Table({"X": X, "y": Y}), "positions must have columns x and y, or ra and dec, got X, y"),
        (Table({"label": [1, 1, 2], "x": X, "y": Y}), "positions must have labels that are whole numbers"),
        (Table({"label": [0, 1, 2], "x": X, "y": Y}), "positions must have labels"),
        (Table({"label": ["a", "b", "c"], "x": X, "y": Y}), "positions must have labels"),
        (SkyCoord(1 * u.deg, 1 * u.deg), "wcs must be given"),
        (Table({"ra": X, "dec": Y}), "wcs must be given"),
    ],
)
def test_bad_positions(positions, message):
    with pytest.raises(ValueError, match=message):
        locate(positions, SHAPE, None)


@pytest.mark.parametrize("positions", ["sources.csv", [["a", "b"]], [[1, 2], [3]], [[1 + 1j, 2]], [[{}, 1]]])
def test_only_numbers_are_positions(positions):
    with pytest.raises(TypeError, match="positions must be an array of numbers, got"):
        locate(positions, SHAPE, None)


def test_places_outside_the_image_on_the_sky(wcs):
    with pytest.raises(ValueError, match="positions must be inside the image"):
        locate(SkyCoord(53.2 * u.deg, -27.8 * u.deg), SHAPE, wcs)


def test_the_edges_of_the_image_belong_to_it():
    assert len(locate([[-0.5, -0.5], [59.49, 39.49]], SHAPE, None)[0]) == 2
