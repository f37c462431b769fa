"""An image whose galaxies are known."""

import pytest
from astropy.wcs import WCS
from galaxies import gaussian

from probdeblend.photometry.noise import correlated_noise
from probdeblend.simulation import Camera

SIDE = 200
HST = Camera.candels_f160w()


@pytest.fixture
def sky():
    """A function that makes an image of correlated noise with round galaxies: x, y, flux, radius in pixels."""
    import torch

    def make(*sources, seed=0, rms=3e-3):
        generator = torch.Generator().manual_seed(seed)
        image = rms * correlated_noise((SIDE, SIDE), HST.noise_kernel[0], generator=generator).double().numpy()
        return image + sum((flux * gaussian((SIDE, SIDE), (x, y), radius) for x, y, flux, radius in sources), 0.0)

    return make


@pytest.fixture
def wcs():
    made = WCS(naxis=2)
    made.wcs.ctype, made.wcs.crval, made.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53.0, -27.0], [1, 1]
    made.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
    return made
