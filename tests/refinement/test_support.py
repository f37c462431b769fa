"""Coordinates without bounds: a bijection, its volume, and what it leaves alone."""

import math
from dataclasses import replace

import pytest
import torch

from probdeblend.refinement.latents import LATENTS
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.support import Support
from probdeblend.scene import LN_FLUX_UNIT, STAMP_SIZE, Instrument
from probdeblend.simulation.prior import FLATTENING, Prior

FARTHEST = STAMP_SIZE / 2
HST = Instrument.candels_f160w()
SKY_RMS = torch.tensor([0.002, 0.005, 0.003])
NOISE = Observed(torch.empty(0), SKY_RMS, torch.ones(3))


def scene(galaxies):
    """A support with ends that bend within different widths, and coordinates on either side of many ends."""
    model = BlendModel(Prior.default(), HST, galaxies=galaxies)
    generator = torch.Generator().manual_seed(galaxies)
    width = 0.5 + torch.rand(3, model.numbers, generator=generator).double()
    place = torch.randn(50, 3, model.numbers, generator=generator).double()
    latents, _, _ = model.split(place)
    latents[..., 0] = 2 * latents[..., 0] + (HST.zero_point - 22) / LN_FLUX_UNIT - SKY_RMS.log()[:, None]
    latents[..., 1:, 1:3] = 2 * latents[..., 1:, 1:3] + FARTHEST * latents[..., 1:, 1:3].sign()
    return model, Support(model, NOISE, width), place


@pytest.mark.parametrize("galaxies", [1, 2, 3])
def test_it_leads_to_where_the_prior_is(galaxies):
    model, support, place = scene(galaxies)
    latents, _, _ = model.split(support(place))
    magnitude = HST.zero_point - LN_FLUX_UNIT * (latents[..., 0] + SKY_RMS.log()[:, None])
    assert bool(((magnitude > 18) & (magnitude < 26)).all())
    assert bool(((magnitude[..., 1:] - magnitude[..., :1]).abs() < 2).all())
    assert bool((latents[..., 0, 1:3].abs() < 1).all())
    assert bool(((latents[..., 1:, 1:3] - latents[..., :1, 1:3]).abs() < FARTHEST).all())
    assert bool((latents[..., -2:].norm(dim=-1) < -math.log(min(least for least, _, _ in FLATTENING))).all())
    before, _, _ = model.split(place)
    # The coordinates themselves are not all there.
    assert float((before[..., 0, 1:3].abs() < 1).double().mean()) < 0.9


@pytest.mark.parametrize("galaxies", [1, 2, 3])
def test_it_is_a_bijection_of_known_volume(galaxies):
    _, support, place = scene(galaxies)
    unknown = support(place)
    assert unknown.shape == place.shape
    torch.testing.assert_close(support.inv(unknown), place, rtol=0, atol=1e-3)
    jacobian = torch.autograd.functional.jacobian(lambda one: support(one).sum(0), place[0]).movedim(0, 1)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], support.log_abs_det_jacobian(place, unknown)[0])


def test_it_moves_nothing_far_from_an_end():
    """Twenty widths from an end, what is left of it is rounding."""
    model, _, _ = scene(2)
    blends = model.draw_unknown(200, sky_rms=torch.full((200,), 0.002), seed=1).double()
    latents, _, _ = model.split(blends)
    inside = (latents[:, 0, 1:3].abs() < 0.8).all(-1) & ((latents[:, 0, 0] - latents[:, 1, 0]).abs() < 1.6)
    magnitude = HST.zero_point - LN_FLUX_UNIT * (latents[..., 0] + math.log(0.002))
    inside &= ((magnitude > 18.3) & (magnitude < 25.7)).all(-1) & (latents[..., -2:].norm(dim=-1) < 1.4).all(-1)
    taken = Observed(torch.empty(0), torch.full((200,), 0.002), torch.ones(200))
    support = Support(model, taken, torch.full((200, 16), 0.01).double())
    moved = (support(blends) - blends).abs().amax(-1)
    assert inside.sum() > 50
    assert float(moved[inside].max()) < 1e-8
    assert float(moved[~inside].max()) > 1e-3


def test_limits_follow_the_noise():
    """Of the same magnitude limits, in fluxes over a sky noise that is twice as large."""
    model, _, _ = scene(2)
    one, twice = (
        Support(model, NOISE._replace(sky_rms=rms), torch.full((3, 16), 0.1).double()) for rms in (SKY_RMS, 2 * SKY_RMS)
    )
    far = torch.full((3, 16), 50.0).double()
    far[:, LATENTS.index("log_radius")] = 0.0
    difference = one(far)[:, 0] - twice(far)[:, 0]
    torch.testing.assert_close(difference, torch.full_like(difference, math.log(2)), rtol=0, atol=1e-6)
    narrow = Support(
        replace(model, prior=replace(model.prior, max_difference=0.5)), NOISE, one.soft.new_full((3, 16), 0.1)
    )
    opposite = far.clone()
    opposite[:, len(LATENTS)] = -50.0
    gap = narrow(opposite)[:, 0] - narrow(opposite)[:, len(LATENTS)]
    torch.testing.assert_close(gap * LN_FLUX_UNIT, torch.full_like(gap, 0.5), rtol=0, atol=1e-6)
