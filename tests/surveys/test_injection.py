"""Scenes of library galaxies: light, noise, truth and seeds."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from libraries import made
from scipy.stats import binomtest

from probdeblend.scene import Scene
from probdeblend.simulation import Population
from probdeblend.surveys import Injector
from probdeblend.surveys.library import identity_number

CLUSTERED = Population.default()
PAIRS = Population.published()


def of(number, population=CLUSTERED):
    """The population with that many galaxies in every scene."""
    return population.replace(number=(0.0,) * number + (1.0,))


def scenes(hst, count, library=None, *, population=CLUSTERED, seed=1, **settings):
    injector = Injector(made(16) if library is None else library, hst, population, **settings)
    return Scene.join(injector.batches(count, seed=seed, batch_size=8))


def total_light(scene):
    return torch.zeros_like(scene.image).index_add_(0, scene.scene, scene.light)


@pytest.fixture(scope="module")
def clusters(hst):
    return scenes(hst, 8, population=of(5), size=160, dimming=0.0)


def test_a_scene_is_the_sum_of_its_galaxies(clusters, hst):
    assert clusters.image.shape == (8, 1, 160, 160)
    assert clusters.count.tolist() == [5] * 8
    assert torch.equal(clusters.psf[0], hst.psf)
    assert clusters.zero_point == hst.zero_point
    residual = clusters.image - total_light(clusters)
    empty = total_light(clusters) == 0
    assert float(residual[empty].std()) == pytest.approx(3e-3, rel=0.03)
    # In a footprint the galaxy's own noise takes the place of the sky's.
    assert float(residual[~empty].abs().max()) < 1e-6


def test_the_truth_is_that_of_the_galaxies(clusters):
    light = clusters.light[:, 0]
    inside = ((clusters.x - 80).abs() < 50) & ((clusters.y - 80).abs() < 50)
    assert int(inside.sum()) > 15
    torch.testing.assert_close(light.sum((1, 2))[inside], clusters.auto_flux[inside, 0] / 0.95, rtol=0.03, atol=0)
    grid = torch.arange(160.0)
    bright = (light - 0.02).clamp(min=0)
    for name, axis in (("x", 1), ("y", 2)):
        profile = bright.sum(axis)
        torch.testing.assert_close(
            ((profile * grid).sum(-1) / profile.sum(-1))[inside], getattr(clusters, name)[inside], atol=0.3, rtol=0
        )
    assert (clusters.source_type == 1).all()
    names = {identity_number(name) for name in made(16).identity}
    for number in range(8):
        own = clusters.identity[clusters.scene == number].tolist()
        assert len(set(own)) == 5
        assert set(own) <= names


def test_total_fluxes_of_real_galaxies_are_not_known(clusters):
    assert clusters.flux.isnan().all()
    assert clusters.auto_flux.isfinite().all()


@pytest.mark.parametrize("dimming", [0.0, 2.0])
def test_the_sky_noise_is_what_the_scene_says(hst, dimming):
    """In the sky, and in footprints too: dimming makes no image deeper."""
    scene = scenes(hst, 16, made(16, pixels=flat_noise()), population=of(3), dimming=dimming)
    torch.testing.assert_close(scene.sky_rms, torch.full((16, 1), 3e-3), rtol=1e-5, atol=0)
    apart = (scene.light[:, 0] != 0).float()
    covered = torch.zeros(16, 128, 128).index_add_(0, scene.scene, apart)
    for number in (0, 1):
        assert float(scene.image[:, 0][covered == number].std()) == pytest.approx(3e-3, rel=0.04)


def flat_noise():
    """Stamps without a galaxy."""
    return 3e-3 * np.random.default_rng(3).normal(size=(16, 128, 128)).astype(np.float32)


def test_footprints_turn_with_their_galaxies(hst):
    """A galaxy off the middle of its stamp, elongated: position and light agree whatever the turn."""
    y, x = np.mgrid[:128, :128]
    light = 2.0 * np.exp(-((x - 60.0) ** 2 / 50 + (y - 66.0) ** 2 / 8))
    pixels, segmentation = np.repeat(light[None].astype(np.float32), 4, 0), np.repeat(light[None] > 0.5, 4, 0)
    library = made(4, pixels=pixels, segmentation=segmentation, x=np.full(4, 60.0), y=np.full(4, 66.0))
    scene = scenes(hst, 12, library, population=of(1), dimming=0.0)
    peak = scene.light.flatten(1).argmax(1)
    torch.testing.assert_close(peak % 128, scene.x.long())
    torch.testing.assert_close(peak // 128, scene.y.long())
    row, column = (scene.light[:, 0].sum(axis).gt(1).sum(-1) for axis in (2, 1))
    assert 3 <= int((row > column).sum()) <= 9


def test_dimming_and_units(hst):
    """Galaxies keep their magnitude, made fainter by up to the limit, whatever the unit of their images."""
    library = made(8, zero_point=np.full(8, 23.4463))
    scene = scenes(hst, 16, library, population=of(2), dimming=1.0)
    flux = {identity_number(name): flux for name, flux in zip(library.identity, library.auto_flux, strict=True)}
    ratio = scene.auto_flux[:, 0] / torch.tensor([10 * flux[name] for name in scene.identity.tolist()])
    dimmed = -2.5 * ratio.log10()
    assert 0 <= float(dimmed.min()) < 0.15
    assert 0.85 < float(dimmed.max()) <= 1
    torch.testing.assert_close(scene.sky_rms, torch.full((16, 1), 3e-2))
    torch.testing.assert_close(scene.exposure, torch.full((16, 1), 320.0))


def test_magnitudes_differ_no_more_than_the_population_allows(hst):
    library = made(16, auto_flux=np.geomspace(1, 1e4, 16))
    scene = scenes(hst, 30, library, population=PAIRS, dimming=0.0)
    magnitude = {identity_number(name): mag for name, mag in zip(library.identity, library.magnitude, strict=True)}
    pairs = np.array([magnitude[name] for name in scene.identity.tolist()]).reshape(30, 2)
    assert np.abs(np.diff(pairs)).max() < 2
    assert np.abs(np.diff(pairs)).max() > 1
    middle = scene.x.reshape(30, 2)[:, 0] - 63.5
    assert float(middle.abs().max()) < 1.6


def test_numbers_follow_the_population(hst, false_alarm):
    scene = scenes(hst, 120, population=CLUSTERED.replace(number=(0.3, 0.3, 0.2, 0.2)), size=32)
    counts = torch.bincount(scene.count, minlength=4).tolist()
    assert sum(counts) == 120
    for found, expected in zip(counts, (0.3, 0.3, 0.2, 0.2), strict=True):
        assert binomtest(found, 120, expected).pvalue > false_alarm / 4


def test_clusters_are_denser_than_chance(hst):
    found = {}
    for layout in ("clustered", "anywhere"):
        scene = scenes(hst, 16, population=of(4, CLUSTERED.replace(layout=layout)), size=200)
        place = torch.stack([scene.x, scene.y], -1).reshape(16, 4, 2)
        apart = torch.cdist(place, place) + 1e3 * torch.eye(4)
        found[layout] = float(apart.amin(-1).median())
    assert found["clustered"] < 0.6 * found["anywhere"]


@pytest.mark.slow
def test_same_seed_same_scenes_whatever_the_workers(hst):
    injector = Injector(made(16), hst, of(3))
    alone, shared = (Scene.join(injector.batches(10, seed=7, batch_size=4, workers=n)) for n in (0, 2))
    for item in fields(Scene):
        first, second = getattr(alone, item.name), getattr(shared, item.name)
        same = torch.equal(first.nan_to_num(), second.nan_to_num()) if torch.is_tensor(first) else first == second
        assert same, item.name
    last = next(iter(injector.batches(10, seed=7, batch_size=4, first=2)))
    assert torch.equal(alone.image[8:], last.image)
    assert not torch.equal(alone.image, Scene.join(injector.batches(10, seed=8, batch_size=4)).image)


def test_scenes_do_not_depend_on_the_size_of_the_last_batch(hst):
    before = torch.random.get_rng_state()
    injector = Injector(made(8), hst, of(2))
    whole, part = (next(iter(injector.batches(count, seed=3, batch_size=4))) for count in (4, 2))
    assert torch.equal(whole.image[:2], part.image)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_galaxy_crosses_a_split(hst):
    training, _, test = made(30).split(seed=1)
    seen = [set(scenes(hst, 20, part, population=of(2)).identity.tolist()) for part in (training, test)]
    assert not seen[0] & seen[1]
    assert seen[0] <= {identity_number(name) for name in training.identity}


def test_settings_that_are_none(hst):
    with pytest.raises(ValueError, match="dimming must not be negative, got -1"):
        Injector(made(3), hst, of(1), dimming=-1.0)
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        Injector(made(3), hst, of(1), size=0)
    with pytest.raises(ValueError, match="library must hold 2 galaxies to keep, with magnitudes, got 1"):
        Injector(made(3, keep=np.array([True, False, False])), hst, of(2))
    bright = Injector(made(2, auto_flux=np.array([1.0, 1000.0])), hst, PAIRS)
    with pytest.raises(ValueError, match=r"library must contain 2 galaxies within 2.0 mag of each other, found none"):
        list(bright.batches(5))
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        bright.batches(-1)
