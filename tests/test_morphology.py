import numpy as np
import pytest
import torch

from probdeblend.prior import Prior
from probdeblend.profiles import render
from probdeblend.scene import GALAXY_TYPES, Instrument


@pytest.fixture(scope="module")
def drawn():
    prior, instrument = Prior.published(), Instrument.candels_f160w()
    pairs = prior.sample(300, seed=6)
    return pairs, prior.components(pairs, instrument, seed=6), instrument


def test_components_by_type(drawn):
    pairs, components, _ = drawn
    count = components.present.sum(-1)
    for name, low, high in (("sph", 1, 1), ("disk", 1, 1), ("sphd", 2, 2), ("irr", 4, 9)):
        of_type = count[pairs["galaxy_type"] == GALAXY_TYPES.index(name)]
        assert of_type.min() >= low
        assert of_type.max() <= high


def test_total_flux_is_that_of_the_magnitude(drawn):
    pairs, components, instrument = drawn
    magnitude = instrument.zero_point - 2.5 * torch.log10(components.total_flux)
    assert torch.allclose(magnitude, pairs["magnitude"], atol=1e-3)
    assert (components.flux[components.present] > 0).all()


def test_parameters_are_in_the_range_of_the_renderer(drawn):
    _, components, _ = drawn
    present = components.present
    index = components.sersic_index[present]
    assert ((index >= 0.5) & (index <= 6)).all()
    ratio = components.axis_ratio[present]
    assert ((ratio > 0) & (ratio <= 1)).all()


def test_bulge_and_disk_have_the_drawn_half_light_radius():
    # Round, without a PSF worth the name: half the light must lie within the drawn radius.
    prior, instrument = Prior.published(), Instrument.candels_f160w()
    pairs = prior.sample(40, seed=3)
    pairs["galaxy_type"][:] = GALAXY_TYPES.index("sphd")
    pairs["axis_ratio"][:] = 1.0
    pairs["half_light_radius"][:] = 0.9
    pairs["x"][:], pairs["y"][:] = 63.5, 63.5
    components = prior.components(pairs, instrument, seed=0)
    components.axis_ratio[:] = 1.0
    point = torch.zeros(3, 3)
    point[1, 1] = 1
    image = render(components, point, pixel_scale=0.06)
    rows, columns = np.indices((128, 128))
    inside = torch.from_numpy(np.hypot(rows - 63.5, columns - 63.5) <= 15)
    share = (image * inside).sum((-2, -1)) / components.total_flux
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (share - 0.5).abs().max() < 0.03


def test_knots_are_lopsided_and_within_reach(drawn):
    pairs, components, instrument = drawn
    irregular = pairs["galaxy_type"] == GALAXY_TYPES.index("irr")
    dx = (components.x - pairs["x"][..., None])[irregular]
    dy = (components.y - pairs["y"][..., None])[irregular]
    distance = torch.hypot(dx, dy)
    assert distance.max() * instrument.pixel_scale <= 1.8 + 1e-3
    assert distance[:, 1:].median() > 1


def test_same_seed_same_knots(drawn):
    pairs, components, instrument = drawn
    again = Prior.published().components(pairs, instrument, seed=6)
    assert torch.equal(again.x, components.x)
    other = Prior.published().components(pairs, instrument, seed=7)
    assert not torch.equal(other.x, components.x)
