"""Isolated galaxies: cut out of a window, neighbors replaced, measured and judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probdeblend.photometry.noise import correlated_noise
from probdeblend.surveys import Quality
from probdeblend.surveys.cutouts import WINDOW, NotIsolatedError, cut_galaxy, measure_galaxy

MIDDLE = WINDOW / 2


def window_with(hst, *galaxies, rms=None, seed=0):
    """A window of correlated noise with round Gaussian galaxies: x, y, flux, radius."""
    noise = correlated_noise((WINDOW, WINDOW), hst.noise_kernel, generator=torch.Generator().manual_seed(seed))
    image = (float(hst.sky_rms[0]) if rms is None else rms) * noise.double().numpy()
    y, x = np.mgrid[:WINDOW, :WINDOW]
    for x0, y0, flux, radius in galaxies:
        image += flux * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * radius**2)) / (2 * np.pi * radius**2)
    return image


def cut(window, hst, **options):
    return cut_galaxy(window, MIDDLE, MIDDLE, instrument=hst, rng=np.random.default_rng(0), **options)


def test_an_isolated_galaxy_has_no_flag(hst):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4)), hst)
    assert galaxy["quality"] == 0
    assert galaxy["auto_flux"] == pytest.approx(50, rel=0.03)
    assert galaxy["half_light_radius"] == pytest.approx(4 * 1.177, rel=0.1)


def test_a_neighbor_is_replaced_by_sky(hst):
    galaxy = cut(window_with(hst, (MIDDLE, MIDDLE, 50, 4), (MIDDLE + 45, MIDDLE, 80, 5)), hst)
    assert galaxy["quality"] == 0
    beyond = galaxy["pixels"][:, 100:]
    assert beyond.std() == pytest.approx(float(hst.sky_rms[0]), rel=0.15)
    shifted = np.corrcoef(beyond[:, 1:].ravel(), beyond[:, :-1].ravel())[0, 1]
    assert shifted == pytest.approx(0.52, abs=0.08)


@pytest.mark.parametrize(
    ("others", "flag"),
    [
        ([(MIDDLE + 16, MIDDLE, 40, 4)], Quality.NEIGHBOR),
        ([(MIDDLE + 7.8, MIDDLE, 40, 1.5)], Quality.DOUBLE_NUCLEUS),
    ],
)
def test_company_is_flagged(hst, others, flag):
    assert flag in Quality(cut(window_with(hst, (MIDDLE, MIDDLE, 50, 3), *others), hst)["quality"])


def test_lopsided_outskirts_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 60, 3), (MIDDLE + 10, MIDDLE, 30, 6))
    assert Quality.ASYMMETRIC in Quality(cut(window, hst)["quality"])


def test_missing_pixels_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    window[108:112, 100:120] = np.nan
    assert Quality.MISSING_PIXELS in Quality(cut(window, hst)["quality"])
    far = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    far[50:54, 50:54] = np.nan
    assert cut(far, hst)["quality"] == 0


def test_the_edge_is_flagged_where_the_galaxy_reaches_it(hst):
    for beyond, flag in ((100, True), (60, False)):
        window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
        window[:, :beyond] = np.nan
        assert (Quality.MISSING_PIXELS in Quality(cut(window, hst)["quality"])) is flag


def test_two_noise_levels_are_flagged(hst):
    window = window_with(hst, (MIDDLE, MIDDLE, 50, 4))
    window[:, WINDOW // 2 :] += window_with(hst, rms=6e-3, seed=1)[:, WINDOW // 2 :]
    assert Quality.TWO_NOISE_LEVELS in Quality(cut(window, hst)["quality"])


def test_nothing_there(hst):
    with pytest.raises(NotIsolatedError, match="no source within 8 pixels of the position"):
        cut(window_with(hst, (MIDDLE + 30, MIDDLE, 50, 4)), hst)
    with pytest.raises(NotIsolatedError, match="no sky around it"):
        cut(np.full((WINDOW, WINDOW), np.nan), hst)
    with pytest.raises(NotIsolatedError, match="too faint to be found at 3 times the sky noise"):
        measure_galaxy(np.zeros((128, 128)), 3e-3, (63.5, 63.5), exposure=np.inf, kernel=None)


def test_errors_hold_poisson_photons(hst):
    window = window_with(replace(hst, sky_rms=torch.tensor([1e-6])), (MIDDLE, MIDDLE, 1000.0, 4))[48:-48, 48:-48]
    galaxy = measure_galaxy(window, 1e-6, (63.5, 63.5), exposure=10.0, kernel=hst.noise_kernel)
    assert galaxy["flux_error"] == pytest.approx(np.sqrt(galaxy["auto_flux"] / 10.0), rel=1e-3)
