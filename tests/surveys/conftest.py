"""A simulated mosaic whose galaxies are known, and what is cut out of it."""

from collections import Counter

import pytest
from astropy.io import fits

from probdeblend.photometry import FieldImage
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import simulate_mosaic
from probdeblend.simulation.prior import Prior
from probdeblend.surveys import Selection
from probdeblend.surveys.aperture import fit_aperture_correction, library_of
from probdeblend.surveys.selection import cut_galaxies


def mosaic_of(image):
    return FieldImage("simulated", image, None, 0.06, 25.9463, "", fits.Header())


@pytest.fixture(scope="session")
def hst():
    return Instrument.candels_f160w()


@pytest.fixture(scope="session")
def correction(hst):
    return fit_aperture_correction(hst, count=80)


@pytest.fixture(scope="session")
def field(hst):
    image, catalog = simulate_mosaic(60, (900, 900), prior=Prior.published(), instrument=hst, seed=4)
    return mosaic_of(image), catalog


@pytest.fixture(scope="session")
def library(field, hst, correction):
    cut = list(cut_galaxies(*field, instrument=hst, selection=Selection(23.5), skipped=Counter()))
    return library_of(cut, origin="simulated", instrument=hst, correction=correction)


@pytest.fixture(scope="session")
def small(hst):
    """A mosaic of 400 x 400 pixels with twelve galaxies, and their catalog."""
    return simulate_mosaic(12, (400, 400), prior=Prior.published(), instrument=hst, seed=3)


@pytest.fixture(scope="session")
def small_field(small):
    return mosaic_of(small[0]), small[1]
