"""Real galaxies as the light of sources: where, how large and how blurred they are seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from probdeblend.simulation import Camera, Components, Population, Simulator, render
from probdeblend.surveys.library import Galaxy, identity_number
from probdeblend.surveys.templates import RealGalaxies, extended

SIDE = 121
CAMERA = Camera.candels_f160w()


def gaussian(fwhm, side=31):
    axis = np.arange(side) - side // 2
    image = np.exp(-4 * math.log(2) * (axis**2 + axis[:, None] ** 2) / fwhm**2)
    return (image / image.sum()).astype(np.float32)


def light(psf, *, radius=0.5, axis_ratio=0.5, angle=0.6, x=60.0, y=60.0):
    """A galaxy of unit flux, with radius in arcsec."""
    values = {"flux": 1.0, "half_light_radius": radius, "sersic_index": 1.0, "axis_ratio": axis_ratio, "angle": angle}
    values = {name: torch.tensor([[value]]) for name, value in (values | {"x": x, "y": y}).items()}
    components = Components(**values, present=torch.ones(1, 1, dtype=torch.bool))
    return render(components, torch.as_tensor(psf), pixel_scale=0.06, size=SIDE)[0].double().numpy()


def galaxy(pixels, footprint, psf, **changes):
    numbers = {"sky_rms": np.array([1e-7]), "zero_point": np.array([25.0]), "wavelength": np.array([1.2])}
    return Galaxy(
        "one", "made", pixels[None].astype(np.float32), footprint, psf[None], **numbers, pixel_scale=0.06, **changes
    )


SHARP = gaussian(2.2)
WHOLE = galaxy(light(SHARP), np.ones((SIDE, SIDE), dtype=bool), SHARP)


def seen(library, radius, *, x=60.0, y=60.0, camera=CAMERA, seed=0, **changes):
    """The light and its number in a frame of 121 pixels, of a source with a radius in pixels."""
    drawn = {"x": x, "y": y, "half_light_radius": radius * 0.06, "axis_ratio": 1.0, "angle": 0.0, "slope": 0.0}
    drawn |= {"sersic_quantile": 0.5, "bulge_fraction": 0.5}
    drawn = {name: torch.tensor([value]) for name, value in (drawn | changes).items()} | {
        "source_type": torch.tensor([1])
    }
    torch.manual_seed(seed)
    made = RealGalaxies(library)(drawn, camera)
    return made, made.seen(camera, corner=torch.zeros(1, 2), size=SIDE)


def test_the_psf_becomes_the_cameras():
    """At its own size, a galaxy looks as if the camera had seen it; turned in one of eight ways, and moved."""
    own = RealGalaxies([WHOLE]).templates[0].radius
    psf = CAMERA.psf[0]
    expected = [
        light(psf, angle=sign * angle, x=61.3, y=59.2) for angle in (0.6, math.pi / 2 - 0.6) for sign in (1, -1)
    ]
    found = set()
    for seed in range(12):
        image = seen([WHOLE], own, x=61.3, y=59.2, seed=seed)[1].image[0, 0].double().numpy()
        error = [np.abs(image - other).max() / other.max() for other in expected]
        assert min(error) < 5e-3
        found.add(int(np.argmin(error)))
    assert len(found) > 1


@pytest.mark.parametrize("factor", [0.07, 0.5, 0.8])
def test_it_has_the_size_that_the_population_drew(factor):
    own = RealGalaxies([WHOLE]).templates[0].radius
    image = seen([WHOLE], factor * own)[1].image[0, 0].double().numpy()
    expected = [light(CAMERA.psf[0], radius=factor * 0.5, angle=angle) for angle in (0.6, -0.6, 0.97, -0.97)]
    assert min(np.abs(image - other).max() / other.max() for other in expected) < 1e-2
    assert image.sum() == pytest.approx(1, abs=1e-2)


def test_it_is_magnified_only_as_far_as_its_psf_allows():
    own = RealGalaxies([WHOLE]).templates[0].radius
    images = [seen([WHOLE], factor * own)[1].image for factor in (5.0, 50.0)]
    assert torch.equal(*images)


def test_its_noise_limits_how_bright_it_is():
    """A third of the signal-to-noise ratio of its own image; that is known to 5 % here."""
    noise = np.random.default_rng(1).normal(size=WHOLE.pixels.shape).astype(np.float32)
    noisy = replace(WHOLE, pixels=WHOLE.pixels + 1e-3 * noise, sky_rms=np.array([1e-3]))
    snr = math.sqrt(float(np.square(WHOLE.pixels / 1e-3).sum()))
    _, (_, _, brightest) = seen([noisy], 8.0)
    assert float(brightest) == pytest.approx(snr / 3, rel=0.2)
    scene = next(Simulator(Population.default(), CAMERA, (96, 96), 3, RealGalaxies([noisy])).batches(1, seed=4))
    real = scene.identity == identity_number("one")
    assert real.any()
    assert torch.equal(scene.flux.isnan()[:, 0], real)
    assert scene.auto_flux.isfinite().all()
    assert torch.equal(scene.source_type == -1, real)
    own = scene.light[real].square().sum((1, 2, 3)).sqrt() / scene.sky_rms[0]
    assert float(own.max()) <= float(brightest) * 1.001


def test_light_goes_on_beyond_the_footprint():
    """What an isophote cuts off, a twentieth of the light, comes back within a fiftieth."""
    whole = light(SHARP)
    footprint = whole > 0.02 * whole.max()
    missing = whole[~footprint].sum()
    assert missing > 0.05
    cut = galaxy(np.where(footprint, whole, 0), footprint, SHARP)
    assert extended(cut).sum() == pytest.approx(whole.sum(), abs=0.02)


def test_holes_are_filled():
    whole = light(SHARP)
    footprint = whole > 1e-3 * whole.max()
    footprint[58:61, 66:69] = False
    spoiled = galaxy(np.where(footprint, whole, np.nan), footprint, SHARP)
    assert extended(spoiled).sum() == pytest.approx(whole.sum(), rel=0.01)


def test_a_galaxy_that_is_lost_in_its_noise_is_not_taken():
    """Whatever its pixels, a band without light or a footprint of one pixel gives no light that is not finite."""
    one = np.zeros((SIDE, SIDE), dtype=bool)
    one[60, 60] = True
    dark, little = galaxy(-light(SHARP), WHOLE.footprint, SHARP), galaxy(light(SHARP), one, SHARP)
    assert np.isfinite(extended(little)).all()
    with pytest.raises(ValueError, match="galaxies must hold one with a signal-to-noise ratio of 15, got none"):
        seen([dark], 2.0)
    assert all(seen([dark, WHOLE], 2.0, seed=seed)[0].number.tolist() == [1] for seed in range(5))


def test_colors_of_a_galaxy_in_one_band_follow_the_population():
    """A slope of ln flux with ln wavelength, with the same light in all bands."""
    camera = replace(
        CAMERA, psf=CAMERA.psf.repeat(2, 1, 1), sky_rms=CAMERA.sky_rms.repeat(2), exposure=CAMERA.exposure.repeat(2),
        noise_kernel=CAMERA.noise_kernel.repeat(2, 1, 1), wavelength=torch.tensor([0.8, 1.6]), zero_point=(26.0, 25.0),
    )  # fmt: skip
    _, (image, color, _) = seen([WHOLE], 3.0, camera=camera, slope=1.5)
    torch.testing.assert_close(image[:, 0], image[:, 1])
    assert color[0].tolist() == pytest.approx([0, 1.5 * math.log(2)])


def test_real_galaxies_may_stand_beside_others_of_another_library():
    """Each keeps its own name and limit."""
    other, noise = replace(WHOLE, identity="two"), np.random.default_rng(1).normal(size=WHOLE.pixels.shape)
    other = replace(other, pixels=(WHOLE.pixels + 1e-3 * noise).astype(np.float32), sky_rms=np.array([1e-3]))
    drawn = {name: torch.full((40,), value) for name, value in (("x", 60.0), ("y", 60.0), ("half_light_radius", 0.2))}
    drawn |= {name: torch.full((40,), 0.8) for name in ("axis_ratio", "angle", "slope", "sersic_quantile")}
    drawn |= {"bulge_fraction": torch.full((40,), 0.5), "source_type": torch.ones(40, dtype=torch.long)}
    torch.manual_seed(0)
    light = RealGalaxies([WHOLE], 0.5, RealGalaxies([other]))(drawn, CAMERA)
    brightest = light.seen(CAMERA, corner=torch.zeros(40, 2), size=96).brightest
    assert set(light.identity.tolist()) == {identity_number("one"), identity_number("two")}
    assert torch.equal(brightest < 100, light.identity == identity_number("two"))


def test_a_library_without_a_galaxy_to_keep_is_refused():
    with pytest.raises(ValueError, match="galaxies must hold one to keep, got none of 1"):
        RealGalaxies([replace(WHOLE, keep=False)])
