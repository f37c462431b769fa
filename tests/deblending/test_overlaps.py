"""Which sources overlap, and how they are paired."""

import numpy as np
import pytest

from probdeblend.deblending.overlaps import contact, pair_up


def test_pairing_by_depth_of_overlap():
    links = np.array([[0, 1], [0, 2], [1, 2], [3, 4]])
    pairs, kept = pair_up(np.array([5.0, 4.0, 3.0, 1.0, 2.0]), links, np.array([0.5, 0.2, 0.3, 0.9]))
    assert pairs.tolist() == [[0, 2], [1, 2], [4, 3]]
    assert kept.tolist() == [[True, True], [True, False], [True, True]]


def test_contact_function_of_circles_and_ellipses():
    circles = np.eye(2)[None] * np.array([4.0, 9.0])[:, None, None]
    depth = contact(np.array([[5.0, 0.0]]), circles[:1], circles[1:])
    assert depth[0] == pytest.approx(1, abs=1e-3)
    ellipse = np.diag([16.0, 1.0])[None]
    offsets = np.array([[8.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    depth = contact(offsets, ellipse.repeat(3, 0), ellipse.repeat(3, 0))
    np.testing.assert_allclose(depth, [1, 1, 4], rtol=1e-3)
