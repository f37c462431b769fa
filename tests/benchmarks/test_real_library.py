"""The library of real galaxies: what is kept of each set, and its traps."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.real_library import BY_EYE, KEPT_BY_EYE, real_galaxies

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def galaxies(data_dir):
    return real_galaxies(data_dir)


def test_most_of_each_set_is_kept(galaxies):
    found = Counter(galaxy.origin for galaxy in galaxies)
    kept = Counter(galaxy.origin for galaxy in galaxies if galaxy.keep)
    assert found == {"candels_gs_3band": 141, "cosmos_f814w_bright": 70, "cosmos_f814w": 26, "candels_f160w": 20}
    assert kept == {"candels_gs_3band": 128, "cosmos_f814w_bright": 64, "cosmos_f814w": 25, "candels_f160w": 8}
    names = [galaxy.identity for galaxy in galaxies]
    assert len(set(names)) == len(names)
    assert set(names) >= {*BY_EYE, *KEPT_BY_EYE}


def test_footprints_hold_the_galaxies(galaxies):
    """Fluxes are those of the tables, and no pixel that is masked by zeros counts."""
    assert all((galaxy.pixels[:, galaxy.footprint] != 0).mean() > 0.95 for galaxy in galaxies)
    bright = next(galaxy for galaxy in galaxies if galaxy.identity == "goods-s:0")
    assert bright.magnitude == pytest.approx([20.415, 19.439, 18.703], abs=0.05)
    cosmos = next(galaxy for galaxy in galaxies if galaxy.identity == "cosmos:bright-100027")
    assert cosmos.magnitude == pytest.approx([20.913], abs=0.05)
    for galaxy in galaxies:
        if galaxy.origin.startswith("cosmos"):
            assert (galaxy.pixels[:, galaxy.footprint] != 0).all()


def test_psfs_have_the_widths_of_their_filters(galaxies):
    """In arcsec, of Gaussians of their area."""
    widths = {"candels_gs_3band": (0.12, 0.14, 0.26), "cosmos_f814w": (0.15,), "candels_f160w": (0.29,)}
    for origin, expected in widths.items():
        one = next(galaxy for galaxy in galaxies if galaxy.origin == origin)
        area = 1 / np.square(one.psf.astype(float)).sum((1, 2))
        assert one.pixel_scale * np.sqrt(2 * np.log(2) / np.pi * area) == pytest.approx(expected, rel=0.1)
