"""The generative model of scenes."""

import math

import pytest
import torch

from probdeblend.refinement import SceneModel, listed_scenes
from probdeblend.simulation import Population, SimulatedSources, simulate
from tests.refinement.conftest import blank, gaussian_psf


def light_of(model, listed, *, flux=5.0, shape=(0.8, 0.1, 0.0, 0.5), star=0.0):
    scenes, sources = listed.x.shape
    bands = listed.photon.shape[1]
    return model.light(
        listed,
        torch.full((scenes, sources, bands), flux),
        torch.zeros(scenes, sources, 2),
        torch.tensor(shape).expand(scenes, sources, 4),
        star=torch.full((scenes, sources), star),
        growth=torch.zeros(scenes, bands),
    )


def test_light_is_that_of_the_simulation(model):
    """Of the same sources, galaxies and stars, over the sky noise."""
    population = Population.default().replace(star_fraction=0.3, snr=(30.0, 100.0))
    scene = simulate(2, population=population, sources=SimulatedSources(smooth=True), size=48, number=3, seed=5)
    listed = listed_scenes(scene)
    assert listed.there.all()
    q, size = scene.axis_ratio, 1 / scene.pixel_scale
    ellipticity, radius = (1 - q) / (1 + q), (scene.half_light_radius * size).nan_to_num(nan=1.0)
    # The index is not part of the truth: it is the one that fits the light best.
    light = scene.light[:, 0] / scene.sky_rms[scene.scene][..., None]
    best = torch.full((6,), torch.inf)
    for ln_index in torch.linspace(math.log(0.5), math.log(6.0), 14):
        shape = [radius.log(), ellipticity * (2 * scene.angle).cos(), ellipticity * (2 * scene.angle).sin()]
        shape = torch.stack([*shape, torch.full((6,), float(ln_index))], -1).reshape(2, 3, 4)
        flux = (scene.flux / scene.sky_rms[scene.scene]).log().reshape(2, 3, 1)
        star = (scene.source_type == 4).float().reshape(2, 3)
        rendered = model.light(listed, flux, torch.zeros(2, 3, 2), shape, star=star, growth=torch.zeros(2, 1))
        error = (rendered.reshape(6, 48, 48) - light).abs().amax((-2, -1))
        best = torch.minimum(best, error / light.reshape(6, -1).amax(-1))
    assert (best < 0.1).all()


def test_star_is_the_psf(model):
    scene, positions = blank([1])
    listed = listed_scenes(scene, positions=positions)
    light = light_of(model, listed, star=1.0)[0, 0, 0]
    found = light[8:23, 7:22] / math.exp(5.0)
    assert torch.allclose(found, gaussian_psf(), atol=1e-3 * float(gaussian_psf().max()))


def test_bands_share_shape_and_have_their_own_psf_and_flux(model):
    scene, positions = blank([2], bands=2)
    psf = torch.stack([gaussian_psf(2.5), gaussian_psf(4.5)])[None]
    listed = listed_scenes(scene, positions=positions)._replace(psf=psf)
    light = light_of(model, listed)[0]
    assert torch.allclose(light.sum((-2, -1)), torch.tensor(math.exp(5.0)), rtol=0.02)
    assert (light[:, 0].amax((-2, -1)) > 1.3 * light[:, 1].amax((-2, -1))).all()


def test_scenes_have_any_number_of_sources(model, draw):
    """Padding has no light and no density: a scene alone has the density that it has beside larger ones."""
    listed, trace = draw([1, 3], seed=4)
    values = {name: trace.nodes[name]["value"] for name in ("log_flux", "position", "shape", "star")}
    values |= {name: trace.nodes[name]["value"] for name in ("sky_level", "log_psf_growth")}
    both = model.log_joint(listed, values)
    alone = type(listed)(*(value[:1] for value in listed[:-1]), listed.pixel_scale)
    alone = alone._replace(x=alone.x[:, :1], y=alone.y[:, :1], there=alone.there[:, :1])
    own = {name: value[:1] for name, value in values.items()}
    own["log_flux"] = own["log_flux"][:, :, :1]
    own |= {name: own[name][:, :1] for name in ("position", "shape", "star")}
    assert both.shape == (2,)
    assert float(model.log_joint(alone, own)[0]) == pytest.approx(float(both[0]), rel=1e-5)


def test_unit_of_the_image_does_not_matter(model):
    scene, positions = blank([2])
    image = torch.randn(scene.image.shape, generator=torch.Generator().manual_seed(1))
    scenes = [
        type(scene)(image * unit, scene.sky_rms * unit, scene.psf, 0.1, exposure=scene.exposure / unit)
        for unit in (1.0, 1e-3)
    ]
    one, other = (listed_scenes(scene, positions=positions) for scene in scenes)
    for first, second in zip(one[:-1], other[:-1], strict=True):
        assert torch.allclose(first.float(), second.float(), rtol=1e-4)


def test_bad_pixels_and_noise_are_described(model):
    scene, positions = blank([1, 2], kernel=torch.ones(3, 3))
    scene.image[1, 0, 5, 6] = torch.nan
    listed = listed_scenes(scene, positions=positions)
    assert listed.good.sum() == listed.good.numel() - 1
    assert torch.isfinite(listed.image).all()
    assert listed.there.tolist() == [[True, False], [True, True]]
    # 25 counts per unit, sky noise of 2 and a correlation sum of 9.
    assert torch.allclose(listed.photon, torch.tensor(1 / (25 * 2.0 * 9)))


def test_widths_must_be_positive():
    with pytest.raises(ValueError, match="psf_growth must be positive, got 0"):
        SceneModel(psf_growth=0.0)
