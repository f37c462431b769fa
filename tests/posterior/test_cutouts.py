import numpy as np
import pytest

from probdeblend.posterior import Cutouts


def test_select_and_join_are_inverse(make_cutouts):
    cutouts = make_cutouts(7)
    joined = Cutouts.join([cutouts.select([0, 1]), cutouts.select(range(2, 7))])
    np.testing.assert_array_equal(joined.corner, cutouts.corner)
    for name, arrays in cutouts.known.items():
        for first, second in zip(arrays, joined.known[name], strict=True):
            np.testing.assert_array_equal(first, second)
    assert len(cutouts.select([])) == 0


def test_join_refuses_what_differs(make_cutouts):
    cutouts = make_cutouts(2)
    for other in (make_cutouts(2, shape=(60, 60)), Cutouts([(0, 0)], (40, 50), mask=[np.ones((2, 2))])):
        with pytest.raises(ValueError, match=r"cutouts must all have \['mask', .*\] of \(40, 50\), got \['mask'"):
            Cutouts.join([cutouts, other])


@pytest.mark.parametrize("number", [0, 1, 7])
def test_stored_in_rows(make_cutouts, number):
    cutouts = make_cutouts(number)
    again = Cutouts.from_dataset(cutouts.to_dataset())
    assert again.shape == cutouts.shape
    assert list(again.known) == list(cutouts.known) == ["mask", "mask_std", "image"]
    for name, arrays in cutouts.known.items():
        for first, second in zip(arrays, again.known[name], strict=True):
            np.testing.assert_array_equal(first, second)
            assert first.dtype == second.dtype


def test_refuses_wrong_arrays():
    mask = [np.ones((3, 4)), np.ones((2, 2))]
    with pytest.raises(ValueError, match="mask must have an array for each of 1 sources, got 2"):
        Cutouts([(0, 0)], (9, 9), mask=mask)
    with pytest.raises(ValueError, match=r"mask_std must have the axes \(y, x\) of \(3, 4\), got shape \(4, 3\)"):
        Cutouts([(0, 0), (0, 0)], (9, 9), mask=mask, mask_std=[np.ones((4, 3)), np.ones((2, 2))])
    with pytest.raises(ValueError, match=r"image must have the axes \(band, y, x\) of \(3, 4\), got shape \(3, 4\)"):
        Cutouts([(0, 0), (0, 0)], (9, 9), mask=mask, image=mask)
    for corner in ((-1, 0), (0, 8)):
        with pytest.raises(ValueError, match=r"corner must place all cutouts within the image of \(9, 9\), got \["):
            Cutouts([(6, 5), corner], (9, 9), mask=mask)
