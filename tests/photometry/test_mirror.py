"""Light of a neighbor, mirrored out."""

import numpy as np
import pytest

from probdeblend.deblending.sep import sep_posterior
from probdeblend.photometry.detection import detect, kron_flux
from probdeblend.photometry.mirror import mirrored, mirrored_flux

SKY_RMS = 0.01


def galaxy(x, y, flux=100.0, width=4.0):
    rows, columns = np.mgrid[:128, :128]
    return flux / (2 * np.pi * width**2) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    image = galaxy(63, 63) + galaxy(80, 63, 80.0) + SKY_RMS * rng.normal(size=(128, 128))
    return image, detect(image, SKY_RMS)


def test_pixels_of_others_are_those_opposite(pair):
    image, found = pair
    assert len(found) == 2
    source = int(np.argmin(found.x))
    clean = mirrored(image, found, source)
    others = (found.segmentation > 0) & (found.segmentation != source + 1)
    np.testing.assert_array_equal(clean[~others], image[~others])
    # The companion's peak is replaced by the far side of the galaxy, which is nearly empty.
    assert image[63, 80] > 0.5
    assert clean[63, 80] == image[round(2 * found.y[source] - 63), round(2 * found.x[source] - 80)]
    assert clean[63, 80] < 0.1


def test_the_flux_is_that_of_the_galaxy_alone(pair):
    image, found = pair
    lights = (galaxy(63, 63), galaxy(80, 63, 80.0))
    alone = np.array([kron_flux(light, detect(light, SKY_RMS), SKY_RMS)[0][0] for light in lights])
    flux, error = mirrored_flux(image, found, SKY_RMS)
    np.testing.assert_allclose(flux[np.argsort(found.x)], alone, rtol=0.03)
    assert (error > 0).all()


def test_light_that_has_no_opposite_is_dropped():
    image = galaxy(3, 63) + galaxy(20, 63, 80.0)
    found = detect(image, SKY_RMS)
    clean = mirrored(image, found, int(np.argmin(found.x)))
    assert (clean[:, 22:40][found.segmentation[:, 22:40] == 1 + np.argmax(found.x)] == 0).all()


def test_a_posterior_of_mirrored_fluxes(pair):
    image, found = pair
    posterior = sep_posterior(image[None], SKY_RMS, kind="mirrored", draws=500)
    assert posterior.dataset.attrs["flux_kind"] == "auto"
    flux, error = mirrored_flux(image, found, SKY_RMS)
    central = int(np.argmin(found.x))
    mean = float(posterior.flux[:, :, 0, 0, 0].mean())
    assert mean == pytest.approx(flux[central], abs=5 * error[central] / np.sqrt(500))
