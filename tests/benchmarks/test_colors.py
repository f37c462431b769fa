"""Separation by color: starlets, shapes that are symmetric and monotonic, and blends of different and equal colors."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.peers import _scarlet2, colors
from benchmarks.peers._factorization import (
    constrained,
    inverse_starlets,
    monotonic,
    morpho_spectral,
    starlets,
    symmetric,
)
from benchmarks.peers.colors import by_factorization, by_posterior, measure, recolored, summary
from probdeblend.deblending.sep import SepDeblender
from probdeblend.simulation import Population, simulate
from probdeblend.simulation.cameras import Camera

Y, X = np.mgrid[:48, :48]
PLACE = np.array([[19.0, 24.0], [28.5, 24.0]])
RED, BLUE = (1.0, 2.0, 4.0), (4.0, 2.0, 1.0)


def profile(x, y, *, scale=2.5):
    """Exponential profile of unit flux, softened as by a PSF."""
    light = np.exp(-np.sqrt((X - x) ** 2 + (Y - y) ** 2 + 4) / scale)
    return light / light.sum()


def blend(rng, colors=(RED, BLUE), *, flux=(1500, 1000)):
    """Pixels over their noise of two galaxies 9.5 pixels apart, and their true fluxes (source, band)."""
    true = np.array(flux)[:, None] * np.array(colors)
    light = true[..., None, None] * np.stack([profile(*at) for at in PLACE])[:, None]
    return light.sum(0) + rng.normal(size=(3, *X.shape)), true


def test_starlets_add_up_and_tell_scales(rng):
    image = rng.normal(size=X.shape)
    planes = starlets(image)
    assert planes.shape == (5, *X.shape)
    np.testing.assert_allclose(inverse_starlets(planes), image, atol=1e-12)
    flat = starlets(np.full(X.shape, 3.0))
    np.testing.assert_allclose(flat[:-1], 0, atol=1e-12)
    np.testing.assert_allclose(flat[-1], 3)
    # A wide source is in wider planes than a point is.
    power = [np.square(starlets(one)).sum((1, 2))[:-1].argmax() for one in (X + Y == 0, profile(24, 24, scale=4))]
    assert power[0] == 0
    assert power[1] > 1


def test_a_symmetric_monotonic_shape_stays_and_others_become_it():
    whole, half = (24.0, 24.0), (24.5, 23.0)
    for at in (whole, half):
        image = profile(*at)
        np.testing.assert_allclose(symmetric(image, at), image, atol=1e-12)
        # Where the middle is between two pixels, squares about one of them are off by half a pixel.
        np.testing.assert_allclose(monotonic(image, at), image, atol=0 if at == whole else 2e-4)
    bumpy = profile(*whole) + profile(34, 24)
    smooth = monotonic(bumpy, whole)
    assert (smooth <= bumpy).all()
    assert (np.diff(smooth[24, 25:]) <= 0).all()
    assert (np.diff(bumpy[24, 25:]) > 0).any()
    even = symmetric(bumpy, whole)
    np.testing.assert_allclose(even[24, 14], even[24, 34])
    assert even.sum() == pytest.approx(bumpy.sum())


def test_sources_of_different_colors_come_apart(rng):
    images, true = blend(rng)
    for separate, tolerance, faintest in ((constrained, 0.03, 0.03), (morpho_spectral, 0.05, 0.3)):
        light = separate(images, PLACE)
        assert light.shape == (2, 3, *X.shape)
        assert (light >= 0).all()
        ratio = light.sum((2, 3)) / true
        np.testing.assert_allclose(ratio[[0, 0, 1, 1], [1, 2, 0, 1]], 1, atol=tolerance)
        np.testing.assert_allclose(ratio[[0, 1], [0, 2]], 1, atol=faintest)  # bands of which the other has more


def test_constraints_are_what_separates_equal_colors(rng):
    """Positive factors are not unique where colors are equal, and noise has light in both."""
    images, true = blend(rng, (RED, RED))
    errors = []
    for projected in (True, False):
        flux = constrained(images, PLACE, projected=projected).sum((2, 3))
        errors.append(np.abs(flux / true - 1).max())
    assert errors[0] < 0.06
    assert errors[1] > 2 * errors[0]


def test_one_color_is_one_shape_divided_by_distance(rng):
    images, true = blend(rng, (RED, RED))
    light = morpho_spectral(images, PLACE)
    assert not (light[0].any(0) & light[1].any(0)).any()
    flux = light.sum((2, 3))
    np.testing.assert_allclose(flux.sum(0), true.sum(0), rtol=0.03)
    np.testing.assert_allclose(flux[0] / flux[1], flux[0, 0] / flux[1, 0])
    assert (flux[1] > 1.04 * true[1]).all()  # the fainter gets light of the brighter


def test_faint_bands_and_a_lone_source(rng):
    images, _ = blend(rng, flux=(5, 5))
    for separate in (constrained, morpho_spectral):
        assert np.isfinite(separate(images, PLACE)).all()
        assert separate(images, PLACE[:1]).shape == (1, 3, *X.shape)


@pytest.fixture(scope="module")
def pairs():
    psf = torch.from_numpy(np.exp(-((X[:41, :41] - 20) ** 2 + (Y[:41, :41] - 20) ** 2) / 5)).float()
    camera = Camera(0.2, (psf / psf.sum()).expand(3, -1, -1), torch.tensor([1.0, 0.8, 1.2]))
    population = Population.default().replace(snr=(150.0, 300.0), star_fraction=0.0, layout="anywhere")
    return simulate(2, population=population, camera=camera, size=64, number=2, seed=3)


@pytest.mark.slow
def test_recolored_sources_have_the_colors_asked_for(pairs):
    for spread in (0.0, 0.8):
        scene = recolored(pairs, spread, seed=1)
        color = -2.5 * torch.log10(scene.flux[:, :-1] / scene.flux[:, 1:]).reshape(2, 2, 2)
        torch.testing.assert_close(color[:, 1] - color[:, 0], torch.full((2, 2), spread), atol=1e-4, rtol=0)
        torch.testing.assert_close(scene.flux[:, 0], pairs.flux[:, 0])
        whole = (pairs.flux[:, :, None, None] * scene.light / scene.flux[:, :, None, None] - pairs.light).abs().max()
        assert whole < 1e-3
        residual = scene.image - torch.stack([scene.light[:2].sum(0), scene.light[2:].sum(0)])
        assert ((residual / scene.sky_rms[..., None, None]).std((-2, -1)) - 1).abs().max() < 0.1
        assert (scene.auto_flux / scene.flux).sub(0.93).abs().max() < 0.15


@pytest.mark.slow
def test_measured_fluxes(pairs):
    scene = recolored(pairs, 0.8, seed=1)
    right = summary(measure(lambda s: (s.flux.double().numpy(), np.ones(2)), "total", scene))
    assert (right["sources"], right["detected"], right["seconds"]) == (4, 1, 1)
    assert right["error"] == right["color_mag"] == right["nmad_mag_0"] == 0
    gray = summary(measure(lambda s: (1.1 * s.flux.double().numpy(), np.ones(2)), "total", scene))
    assert gray["error"] == pytest.approx(10)
    assert gray["bias_mag_2"] == pytest.approx(-2.5 * np.log10(1.1))
    assert gray["color_mag"] == pytest.approx(0, abs=1e-9)
    sep = summary(measure(partial(by_posterior, SepDeblender(draws=2), "auto"), "auto", scene))
    nmf = summary(measure(partial(by_factorization, constrained), "total", scene))
    assert max(sep["error"], nmf["error"]) < 15


def test_scarlet2_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(_scarlet2, "installed", lambda: False)
    with pytest.raises(ImportError, match="pip install scarlet2"):
        _scarlet2.fit(np.zeros((3, 9, 9)), np.ones((3, 1, 1)), np.ones((3, 1, 1)), PLACE)


@pytest.mark.slow
@pytest.mark.skipif(not _scarlet2.installed(), reason="needs scarlet2")
def test_scarlet2_separates_different_colors(rng):
    images, true = blend(rng)
    psf = np.exp(-((X[:21, :21] - 10) ** 2 + (Y[:21, :21] - 10) ** 2) / 4)[None].repeat(3, 0)
    found = _scarlet2.fit(images, np.ones((3, 1, 1)), psf / psf.sum((1, 2), keepdims=True), PLACE)
    np.testing.assert_allclose(found.flux, true, rtol=0.15)
    assert found.light.shape == (2, 3, *X.shape)
    with pytest.raises(ValueError, match="inside of the image"):
        _scarlet2.fit(images, np.ones((3, 1, 1)), psf, PLACE + 40)


@pytest.mark.slow
def test_command(run):
    table = run(colors, "--count", "1", "--scarlet2", "0")
    assert len(table) == 2 * 2 * 6
    assert set(table["colors"]) == {"equal", "different"}
    assert np.isfinite(table["error"][table["method"] != "SEP, Kron"]).all()
