import numpy as np
import pytest
from tiny_weights import light_of, noise_of, untrained

from probdeblend.deblending import load

PLACES = np.array([[44.3, 50.8], [53.1, 55.4], [90.6, 40.2], [70.9, 91.5], [104.2, 100.7], [36.4, 98.9]])
FLUX = np.array([1500.0, 700.0, 900.0, 2000.0, 500.0, 1200.0])


@pytest.fixture(scope="session")
def shipped():
    """The weights that ship, without the calibrator."""
    return load()


@pytest.fixture(scope="session")
def blank():
    """Weights that have learned nothing, and find nothing."""
    return untrained()


@pytest.fixture(scope="session")
def places():
    """Positions x, y of the sources of `image`; the first two overlap."""
    return PLACES


@pytest.fixture(scope="session")
def image(places):
    """An image of six sources in white noise of unit variance; nobody may write to it."""
    pixels = light_of((144, 144), *places.T, FLUX) + noise_of((144, 144))
    pixels.flags.writeable = False
    return pixels
