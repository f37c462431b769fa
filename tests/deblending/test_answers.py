"""Flags that say what is wrong with the pixels of a source or with the sky around it."""

import numpy as np
import pytest
from tiny_weights import PSF, QUICK, light_of, listed, noise_of, scene_of

from probdeblend.deblending import Deblender
from probdeblend.posterior import Flag

GIVEN = {"psf": PSF, "sky_rms": 1.0} | QUICK
PLACES = np.array([[20.5, 20.5], [70.2, 24.7]])
STARS = light_of((48, 96), *PLACES.T, [20_000, 8_000], sigma=1.3)


def raised(posterior, flag):
    return ((posterior.flags & flag) > 0).tolist()


@pytest.mark.parametrize(("factor", "dtype"), [(1e-20, float), (10.0, np.int32)])
def test_sources_clipped_at_a_level_are_saturated(shipped: Deblender, factor, dtype):
    """The first star is above the level and the second is not."""
    image = np.minimum(factor * (STARS + noise_of(STARS.shape)), factor * 900).astype(dtype)
    posterior = shipped(image, **GIVEN | {"sky_rms": factor, "positions": PLACES})
    assert raised(posterior, Flag.SATURATED) == [True, False]


def test_pixels_as_high_by_symmetry_or_rounding_are_not_saturated(shipped: Deblender):
    flat = np.round(light_of(STARS.shape, *PLACES.T, 20_000, sigma=6.0))
    posterior = shipped.scenes(
        scene_of([STARS, np.minimum(STARS, 600), flat]), positions=listed(PLACES, PLACES, PLACES), **QUICK
    )
    assert raised(posterior, Flag.SATURATED) == [False, False, True, True, False, False]


@pytest.mark.parametrize(("level", "expected"), [(0.0, False), (0.5, True), (-1.0, True)])
def test_a_sky_that_is_not_zero_is_flagged(shipped: Deblender, level, expected):
    """Four standard errors of the level are 0.1 here, so the false alarm rate is below 1e-4."""
    image = light_of((80, 80), [40.0], [40.0], 600) + noise_of((80, 80)) + level
    scenes = shipped.scenes(scene_of([image]), positions=listed([[40.0, 40.0]]), **QUICK)
    assert raised(scenes, Flag.SKY) == [expected]
    assert raised(shipped(image, positions=[[40, 40]], **GIVEN), Flag.SKY) == [False]  # measured, and subtracted


def test_sky_that_cannot_be_seen_is_flagged(shipped: Deblender):
    image = light_of((40, 40), [20.0], [20.0], 600) + noise_of((40, 40))
    image[np.hypot(*(np.indices(image.shape) - 20)) > 11] = np.nan
    assert raised(shipped(image, positions=[[20, 20]], **GIVEN), Flag.SKY) == [True]


def test_a_galaxy_larger_than_those_of_the_training_is_flagged(shipped: Deblender):
    image = light_of((160, 160), [80.0], [80.0], 30_000, sigma=16.0) + noise_of((160, 160))
    small = light_of((160, 160), [80.0], [80.0], 30_000, sigma=6.0) + noise_of((160, 160))
    found = shipped.scenes(scene_of([image, small]), positions=listed([[80.0, 80.0]], [[80.0, 80.0]]), **QUICK)
    assert raised(found, Flag.BRIGHT) == [True, False]


@pytest.mark.parametrize("width", [3, 6])
def test_bad_columns_do_not_split_a_galaxy(shipped: Deblender, width):
    image = light_of((64, 64), [32.0], [32.0], 3000, sigma=3.5) + noise_of((64, 64))
    image[:, 32 - width // 2 : 32 - width // 2 + width] = np.nan
    for posterior in (shipped(image, **GIVEN), shipped.scenes(scene_of([image]), **QUICK)):
        x, y = posterior.dataset["x"].values, posterior.dataset["y"].values
        (number,) = np.flatnonzero(np.hypot(x - 32, y - 32) < 15)
        assert posterior.flags[number] & Flag.BAD_PIXELS
        assert np.median(posterior.flux[:, :, number]) == pytest.approx(3000, rel=0.25)


def test_a_block_of_zeros_over_half_of_a_galaxy_is_flagged(shipped: Deblender):
    image = light_of((64, 64), [32.0], [32.0], 3000, sigma=3.0) + noise_of((64, 64))
    image[24:40, 34:46] = 0
    flags = shipped(image, positions=[[32, 32]], **GIVEN).flags[0]
    assert flags & Flag.EDGE
    assert flags & Flag.BAD_PIXELS
