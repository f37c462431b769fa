"""A simulated mosaic whose galaxies are known, and what is cut out of it."""

import math
from collections import Counter

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from probdeblend.photometry import FieldImage
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation import Camera, Population, simulate
from probdeblend.surveys.selection import collect, cut_galaxies


def mosaic_of(image):
    return FieldImage("simulated", image, None, 0.06, 25.9463, "", fits.Header())


def simulated(number, size, *, instrument, seed):
    """A mosaic with galaxies of the published population anywhere, and its catalog."""
    population = Population.published().replace(layout="anywhere", max_difference=math.inf)
    scene = simulate(1, population=population, camera=instrument, size=size, number=number, seed=seed)
    values = {name: getattr(scene, name).double().numpy() for name in ("x", "y")}
    values["flux"] = scene.auto_flux[:, 0].double().numpy()
    values["magnitude"] = instrument.zero_point[0] - 2.5 * np.log10(scene.flux[:, 0].double().numpy())
    kinds = [GALAXY_TYPES[kind] for kind in scene.source_type.tolist()]
    catalog = Table({"id": np.arange(1, number + 1)} | values | {"type": kinds})
    return scene.image[0, 0].double().numpy(), catalog


@pytest.fixture(scope="session")
def hst():
    return Camera.candels_f160w()


@pytest.fixture(scope="session")
def field(hst):
    image, catalog = simulated(60, 900, instrument=hst, seed=4)
    return mosaic_of(image), catalog


@pytest.fixture(scope="session")
def library(field, hst):
    cut = list(cut_galaxies(*field, instrument=hst, faintest=23.5, skipped=Counter()))
    return collect(cut, Counter(), hst.pixel_scale).library


@pytest.fixture(scope="session")
def small(hst):
    """A mosaic of 400 x 400 pixels with twelve galaxies, and their catalog."""
    return simulated(12, 400, instrument=hst, seed=3)


@pytest.fixture(scope="session")
def small_field(small):
    return mosaic_of(small[0]), small[1]
