import numpy as np
import pytest
from astropy.wcs import WCS, Sip

from probdeblend.posterior import Cutouts, Posterior

BANDS = ("g", "r")
SHAPE = (40, 50)
COVARIANCE = np.array([[4.0, -1.5], [-1.5, 1.0]])


@pytest.fixture
def wcs():
    """A distorted image of pixels of 0.06 arcsec, with a date, as HST's are."""
    found = WCS(naxis=2)
    found.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    found.wcs.crval = [53.0, -27.8]
    found.wcs.crpix = [1, 1]
    found.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
    found.wcs.dateobs = "2012-03-04T05:06:07"
    found.sip = Sip(1e-4 * np.eye(3)[::-1], 1e-4 * np.eye(3)[::-1], None, None, [1, 1])
    found.wcs.set()
    return found


@pytest.fixture
def make_cutouts(rng):
    """A function that makes masks and images of some sources."""

    def make(number, *, bands=2, shape=SHAPE):
        sizes = [(6 + source % 3, 9) for source in range(number)]
        return Cutouts(
            corner=rng.integers(0, 30, (number, 2)),
            shape=shape,
            mask=[rng.uniform(size=size).astype(np.float32) for size in sizes],
            mask_std=[rng.uniform(size=size).astype(np.float32) for size in sizes],
            image=[rng.uniform(size=(bands, *size)).astype(np.float32) for size in sizes],
        )

    return make


@pytest.fixture
def draws(rng):
    """Normal total fluxes of two chains, five sources and two bands; the first two sources are correlated in a band."""
    flux = rng.normal([[80, 70], [40, 30], [20, 10], [9, 8], [5, 4]], 0.5, (2, 500, 5, 2))
    flux[:, :, :2, 0] = np.array([80.0, 40.0]) + rng.multivariate_normal([0, 0], COVARIANCE, size=(2, 500))
    return flux


@pytest.fixture
def posterior(draws, wcs, make_cutouts):
    """Three scenes: a pair and a single source, none, and a pair."""
    return Posterior.from_draws(
        draws,
        0.9 * draws,
        scene=[0, 0, 0, 2, 2],
        group=[4, 4, 7, 9, 9],
        label=[11, 3, 5, 8, 2],
        x=[10.0, 14.0, 30.0, 20.0, 24.0],
        y=[12.0, 15.0, 33.0, 8.0, 9.0],
        bands=BANDS,
        unit="electron / s",
        zero_point=(26.0, 25.0),
        pixel_scale=0.06,
        columns={
            "existence": [1.0, 0.9, 0.8, 0.7, 0.4],
            "kind_probability": np.eye(5),
            "half_light_radius": [0.3, 0.2, 0.1, 0.2, 0.3],
            "half_light_radius_err": [0.03, 0.02, 0.01, 0.02, 0.03],
            "flags": [0, 0, 1, 0, 8],
        },
        cutouts=make_cutouts(5),
        wcs=wcs,
    )
