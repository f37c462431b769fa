"""The texture of galaxies: light is moved about, none is made, and a galaxy's is its own."""

import numpy as np
import pytest
import torch

from probdeblend.scene import SOURCE_TYPES
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.light import textured
from probdeblend.simulation.morphology import source_components
from probdeblend.simulation.profiles import render

CAMERA = Camera.candels_f160w()
SIZE = 128


def galaxies(kind, count=24, radius=0.6):
    """Values of sources of one type in the middle of images, and their light before."""
    middle = torch.full((count,), SIZE / 2)
    drawn = {name: torch.full((count,), value) for name, value in (("half_light_radius", radius), ("axis_ratio", 0.8))}
    drawn |= {"angle": torch.linspace(0, 3, count), "sersic_quantile": torch.full((count,), 0.5), "x": middle}
    drawn |= {"y": middle, "bulge_fraction": torch.full((count,), 0.5), "slope": torch.ones(count)}
    drawn |= {"source_type": torch.full((count,), SOURCE_TYPES.index(kind)), "seed": torch.arange(count)}
    light, _ = source_components(drawn, pixel_scale=CAMERA.pixel_scale, smooth=True)
    return drawn, render(light, CAMERA.psf[0], pixel_scale=CAMERA.pixel_scale, size=SIZE)[:, None]


def seen(drawn, image, camera=CAMERA, corner=0):
    return textured(image, drawn, camera, corner=torch.full((len(image), 2), corner))


@pytest.mark.parametrize("kind", SOURCE_TYPES)
def test_no_light_is_made_or_lost(kind):
    """Stars keep every pixel."""
    drawn, image = galaxies(kind)
    new = seen(drawn, image)
    torch.testing.assert_close(new.sum((-2, -1)), image.sum((-2, -1)))
    changed = (new - image).abs().amax((1, 2, 3)) > 1e-3 * image.amax((1, 2, 3))
    assert set(changed.tolist()) == {kind != "star"}


def test_irregular_galaxies_are_less_symmetric_than_disks_and_those_than_spheroids():
    medians = []
    for kind in ("sph", "disk", "irr"):
        drawn, image = galaxies(kind)
        new = seen(drawn, image)
        turned = new.flip(-1, -2).roll((1, 1), (-1, -2))  # about the center, a pixel right of and above the middle
        medians.append(float(((new - turned).abs().sum((1, 2, 3)) / new.sum((1, 2, 3))).median()))
    assert medians[0] < 0.5 * medians[1] < 0.5 * medians[2]


def test_a_texture_follows_from_the_seed_alone():
    """Whatever else is rendered, wherever the image's corner lies and however large it is; but for the sum."""
    drawn, image = galaxies("irr")
    new = seen(drawn, image)
    some = slice(3, 5)
    assert torch.equal(seen({name: value[some] for name, value in drawn.items()}, image[some]), new[some])
    cut = seen(drawn, image[..., 20:-20, 20:-20], corner=20)
    ratio = cut / new[..., 20:-20, 20:-20]
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio), rtol=1e-3, atol=0)
    other = seen(drawn | {"seed": drawn["seed"] + 100}, image)
    assert ((other - new).abs().amax((1, 2, 3)) > 0.01 * new.amax((1, 2, 3))).all()
    assert len(seen({name: value[:0] for name, value in drawn.items()}, image[:0])) == 0


def test_half_light_radii_stay_about_the_same():
    """Their median within a tenth, and most within a third."""
    drawn, image = galaxies("disk", 60)
    ratio = np.array([radius_of(own) for own in seen(drawn, image)]) / [radius_of(own) for own in image]
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert np.mean(np.abs(np.log(ratio)) < 0.3) > 0.85


def radius_of(image):
    """Root of the area of the brightest pixels that hold half of the light."""
    ordered = np.sort(image.numpy().ravel())[::-1].cumsum()
    return np.searchsorted(ordered, ordered[-1] / 2) ** 0.5
