"""Simulated scenes: their truth belongs to their images, whatever the number of sources, bands and pixels."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from probdeblend.photometry.detection import auto_flux
from probdeblend.scene import SCENE_FIELDS, SOURCE_TYPES, Scene
from probdeblend.simulation import (
    Camera,
    Cameras,
    Frame,
    Population,
    SimulatedSources,
    Simulator,
    render_galsim,
    simulate,
)

CROWDS = Population.default()


def camera(bands=1, seed=0, **options):
    """A camera of some number of bands that is not HST's."""
    shares = tuple(float(number == bands) for number in (1, 2, 3))
    return Cameras(native_fraction=0.0, bands=shares, **options).sample(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def pairs():
    return simulate(10, seed=1)


@pytest.fixture(scope="module")
def crowds():
    return simulate(4, population=CROWDS, camera=camera(3, fwhm=(2.8, 4.0)), size=(64, 80), seed=2)


def same(first, second, tolerance=0.0):
    for name in (f.name for f in fields(Scene)):
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(
                one, other, rtol=1e-4 * (tolerance > 0), atol=tolerance, equal_nan=True, msg=name
            )
        else:
            assert one == other


def test_published_pairs(pairs):
    assert pairs.image.shape == (10, 1, 128, 128)
    assert pairs.count.tolist() == [2] * 10
    assert pairs.zero_point == (25.9463,)
    magnitude = 25.9463 - 2.5 * pairs.flux[:, 0].log10().reshape(10, 2)
    assert float((magnitude[:, 0] - magnitude[:, 1]).abs().max()) < 2.001
    assert float(magnitude.min()) > 18 - 1e-3
    assert float(magnitude.max()) < 23 + 1e-3
    inside = (pairs.light.sum((-2, -1)) / pairs.flux)[:, 0]
    assert float(inside.max()) < 1.005
    assert float(inside.median()) > 0.97
    assert float(pairs.mask.sum((-2, -1)).min()) > 20


def test_images_are_sums_of_the_sources_and_noise(pairs):
    """Residuals over their expected scatter: unit variance, and correlated as drizzled pixels are."""
    light = torch.zeros_like(pairs.image).index_add(0, pairs.scene, pairs.light)
    residual, rms = pairs.image - light, float(pairs.sky_rms[0, 0])
    assert abs(float(residual.mean())) < 5 * rms * 2.25 / (residual.numel() ** 0.5)
    sky = residual[light < 0.01 * rms]
    assert float(sky.std()) == pytest.approx(rms, rel=0.02)
    neighbors = (residual[..., 1:] * residual[..., :-1]).mean() / residual.square().mean()
    assert float(neighbors) == pytest.approx(0.52, abs=0.03)
    bright = light > 10 * rms
    assert residual[bright].std() > 1.05 * sky.std()


def test_auto_flux_is_that_of_each_source_alone(pairs):
    """Where the source is far from the edge; the measurement is on the source's own cutout, not on the image."""
    for source in (4, 6):
        found = auto_flux(pairs.light[source, 0].numpy(), float(pairs.sky_rms[0, 0]))
        assert float(pairs.auto_flux[source, 0]) == pytest.approx(found, rel=2e-3)
    ratio = pairs.auto_flux / pairs.flux
    assert 0.88 < float(ratio.median()) < 0.94
    assert ratio.isfinite().all()


def test_any_number_of_sources_and_bands(crowds):
    assert crowds.image.shape == (4, 3, 64, 80)
    assert len(set(crowds.count.tolist())) > 2
    assert crowds.flux.shape == crowds.auto_flux.shape == (len(crowds.scene), 3)
    assert ((crowds.x > 0) & (crowds.x < 79) & (crowds.y > 0) & (crowds.y < 63)).all()
    star = crowds.source_type == SOURCE_TYPES.index("star")
    assert torch.equal(crowds.half_light_radius.isnan(), star)
    assert (crowds.axis_ratio[star] == 1).all()
    centers = [float(value) for one in crowds.light[:, 0] for value in ((one * torch.arange(80)).sum() / one.sum(),)]
    assert float((torch.tensor(centers) - crowds.x).abs().median()) < 0.5


def test_signal_to_noise_ratios_are_those_of_the_population(false_alarm):
    """In the best band, with matched weights."""
    sharp = camera(2, seed=1, fwhm=(2.8, 4.0), seeing=(0.4, 0.8))
    made = simulate(8, population=CROWDS.replace(layout="anywhere"), camera=sharp, size=96, number=5, seed=3)
    snr = (made.light.square().sum((-2, -1)).sqrt() / made.sky_rms[made.scene]).amax(1).log()
    assert float(snr.exp().min()) > 4.7
    drawn = CROWDS.sample(3000, Frame((96, 96), sharp.pixel_scale, 3.0), seed=1, number=1)["ln_snr"][:, 0]
    assert kstest(snr.numpy(), drawn.numpy()).pvalue > false_alarm


def test_undersampled_cameras_are_drawn_finely():
    narrow = camera(1, seed=2, fwhm=(1.8, 1.9))
    assert narrow.fine_psf is not None
    made = simulate(4, population=CROWDS, camera=narrow, size=64, number=2, seed=1)
    inside = made.light.sum((-2, -1)) / made.flux
    assert 0.9 < float(inside.median()) < 1.01
    assert float(made.light.min()) > -0.01 * float(made.light.max())


def test_a_field_needs_little_memory_and_holds_all_its_sources():
    field = simulate(
        1, population=CROWDS.replace(layout="anywhere"), camera=camera(fwhm=(3, 4)), size=600, number=30, seed=5
    )
    assert field.light is None
    assert field.image.shape == (1, 1, 600, 600)
    assert len(field.x) == 30
    bright = field.flux[:, 0] > 300 * field.sky_rms[0, 0]
    assert bright.sum() > 5
    for x, y in zip(field.x[bright].round().int().tolist(), field.y[bright].round().int().tolist(), strict=True):
        assert field.image[0, 0, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].mean() > field.sky_rms[0, 0]
    small = simulate(1, population=CROWDS, camera=camera(fwhm=(3, 4)), size=600, number=0)
    assert len(small.x) == 0


def test_groups_lie_in_squares_of_their_own():
    """Twenty pairs in 300 pixels: each in 96 pixels, anywhere in the image."""
    (made,) = Simulator(Population.pairs(), shape=(96, 300), groups=20).batches(1, seed=1)
    assert made.count.tolist() == [40]
    first, second = made.x.reshape(20, 2).T
    assert float((first - second).abs().max()) < 96
    assert float(made.x.min()) < 60
    assert float(made.x.max()) > 200
    assert float(made.y.min()) >= 0
    assert float(made.y.max()) < 96
    middle = (made.light[:, 0].sum(-2) * torch.arange(300)).sum(-1) / made.light[:, 0].sum((-2, -1))
    assert float((middle - made.x).abs().median()) < 0.5
    with pytest.raises(ValueError, match=r"shape must be at least 96 on a side, got \(95, 300\)"):
        Simulator(Population.pairs(), shape=(95, 300), groups=1)


def test_light_reaches_beyond_the_first_cutout():
    """A large, bright galaxy: its light far from the center is that of one drawn on a larger stamp."""
    one = Population.published().replace(
        number=(0.0, 1.0), magnitude_range=(18.0, 18.5), type_probabilities=(1, 0, 0, 0)
    )
    made = simulate(1, population=one, size=200, seed=3)
    corner = made.light[0, 0, :30, :30]
    assert float(corner.min()) > 0
    assert float(made.light.sum()) > 0.97 * float(made.flux.sum())


def test_same_seed_same_scenes_whatever_the_count_and_the_engine():
    before = torch.random.get_rng_state()
    simulator = Simulator(population=CROWDS, camera=camera(), shape=(64, 64))
    short, long = (Scene.join(simulator.batches(n, seed=4, batch_size=2)) for n in (3, 5))
    same(short, long.select(slice(3)))
    (later,) = simulator.batches(5, seed=4, batch_size=2, first=2)
    same(later, long.select(slice(4, None)))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = next(simulator.batches(5, seed=5, batch_size=2))
    assert not torch.equal(other.image, short.select(slice(2)).image)


@pytest.mark.slow
def test_engines_and_workers_agree():
    settings = {"population": CROWDS, "camera": camera(), "size": 64, "seed": 1}
    made, drawn = simulate(2, **settings), simulate(2, sources=SimulatedSources(engine=render_galsim), **settings)
    assert len(made) == len(drawn) == 2
    same(made, drawn, tolerance=2e-3 * float(made.light.max()))
    same(made, simulate(2, workers=2, **settings))


def test_noise_can_be_white_and_without_photons():
    quiet = replace(Camera.candels_f160w(exposure=math.inf), noise_kernel=None)
    made = simulate(4, camera=quiet, seed=2)
    light = torch.zeros_like(made.image).index_add(0, made.scene, made.light)
    residual = (made.image - light) / quiet.sky_rms
    assert float(residual.std()) == pytest.approx(1, abs=0.01)
    assert float((residual[..., 1:] * residual[..., :-1]).mean()) == pytest.approx(0, abs=0.01)
    assert made.noise_kernel.shape == (4, 1, 1, 1)
    assert torch.isinf(made.exposure).all()


def test_scenes_say_how_they_were_taken(crowds):
    for name in SCENE_FIELDS:
        assert getattr(crowds, name) is not None, name
    assert crowds.psf.shape[:2] == (4, 3)
    assert crowds.zero_point == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"number": -2}, "number must be at least 0, got -2"),
        ({"size": 0}, r"shape must be at least 1 on a side, got \(0, 0\)"),
        ({"camera": camera()}, "camera must have zero points for a population whose fluxes follow from magnitudes"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(**({"count": 1} | options))


def test_wavelengths_are_those_of_the_camera():
    assert simulate(1, camera=Camera.candels_f160w(), seed=3).wavelength.tolist() == [[pytest.approx(1.54)]]
