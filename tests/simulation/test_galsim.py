"""The other rendering engine: it draws what torch draws, in the right place."""

from dataclasses import fields, replace

import galsim
import numpy as np
import pytest
import torch

from probdeblend.simulation import Camera, Components, Frame, Population, render, render_galsim
from probdeblend.simulation.morphology import source_components

HST = Camera.candels_f160w()
CENTER = 63.5  # of a stamp of 128 pixels


def drawn(light, engine):
    return engine(light, HST.psf[0], pixel_scale=HST.pixel_scale)


@pytest.mark.slow
def test_galsim_and_torch_draw_the_same_sources():
    """Every type, faint and bright, and a star."""
    values = Population.default().sample(4, Frame((128, 128), HST.pixel_scale, 3.0), seed=4, number=5)
    values = {name: value.flatten() for name, value in values.items()}
    values["source_type"] = torch.arange(20) % 5
    with torch.random.fork_rng():
        torch.manual_seed(5)
        light, _ = source_components(values, pixel_scale=HST.pixel_scale)
    galsim_images, torch_images = drawn(light, render_galsim), drawn(light, render)
    assert galsim_images.dtype == torch_images.dtype == torch.float32
    peak = galsim_images.amax((-2, -1))
    assert float(((galsim_images - torch_images).abs().amax((-2, -1)) / peak).max()) < 1e-3
    assert float((galsim_images - torch_images).sum((-2, -1)).abs().max()) < 3e-3


def one_galaxy(**changes):
    numbers = {"flux": 5.0, "half_light_radius": 0.3, "sersic_index": 1.0, "axis_ratio": 0.5, "angle": 0.4}
    numbers |= {"x": CENTER, "y": CENTER} | changes
    present = torch.ones(1, dtype=torch.bool)
    return Components(**{name: torch.full((1,), value) for name, value in numbers.items()}, present=present)


@pytest.mark.parametrize("engine", [render_galsim, render])
def test_positions_and_angles(engine):
    """The light's moments against those of a round galaxy at the center, which the PSF's own are taken out with."""
    y, x = torch.meshgrid(*(torch.arange(128.0).double(),) * 2, indexing="ij")

    def moments(**changes):
        image = drawn(one_galaxy(**changes), engine).double()
        assert float(image.sum()) == pytest.approx(5, rel=2e-3)
        share = image / image.sum()
        center = [float((share * axis).sum()) for axis in (x, y)]
        dx, dy = x - center[0], y - center[1]
        return np.array(center), np.array([float((share * p).sum()) for p in (dx * dx, dy * dy, dx * dy)])

    center, second = moments(x=70.0, y=50.25)
    middle, round_ = moments(axis_ratio=1.0)
    np.testing.assert_allclose(center - middle, [70.0 - CENTER, 50.25 - CENTER], atol=0.05)
    xx, yy, xy = second - round_
    assert 0.5 * np.arctan2(2 * xy, xx - yy) == pytest.approx(0.4, abs=0.03)


def test_galsim_draws_sums_and_leaves_out_what_is_absent():
    parts = [one_galaxy(x=60.0), one_galaxy(flux=2.0, sersic_index=2.0, y=70.0)]
    names = [field.name for field in fields(Components)]
    both = Components(**{name: torch.cat([getattr(p, name) for p in parts], -1) for name in names})
    images = [drawn(light, render_galsim) for light in parts]
    torch.testing.assert_close(drawn(both, render_galsim), sum(images), atol=2e-5, rtol=0)
    first = replace(both, present=torch.tensor([True, False]))
    torch.testing.assert_close(drawn(first, render_galsim), images[0], atol=1e-6, rtol=0)
    assert not drawn(replace(both, present=torch.zeros(2, dtype=torch.bool)), render_galsim).any()


def test_galsim_refuses_what_it_cannot_draw():
    with pytest.raises(galsim.GalSimRangeError, match="Sersic index"):
        drawn(one_galaxy(sersic_index=9.0), render_galsim)
