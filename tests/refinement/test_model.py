"""The Pyro program, its densities and its draws."""

import math
from dataclasses import replace
from itertools import permutations

import pyro
import pytest
import torch

from probdeblend.refinement import LATENTS, Observed
from probdeblend.refinement.latents import POSITION, SHAPE
from probdeblend.refinement.model import in_all_orders

SITES = ("shape", "position", "sky_level", "log_psf_growth")


@pytest.fixture(scope="module")
def drawn(model):
    return model.simulate(6, seed=4)


def named(model, unknown):
    """The values of the program's sites."""
    latents, sky_level, growth = model.split(unknown)
    return {
        "shape": latents[..., SHAPE],
        "position": latents[:, None][..., POSITION],
        "sky_level": sky_level[:, None],
        "log_psf_growth": growth[:, None],
    }


def trace(model, observed, unknown=None, **more):
    program = model if unknown is None else pyro.poutine.condition(model, data=named(model, unknown))
    return pyro.poutine.trace(program).get_trace(
        observed.image, sky_rms=observed.sky_rms, exposure=observed.exposure, **more
    )


def test_densities_are_those_of_the_program(model, drawn):
    observed, unknown = drawn
    found = trace(model, observed, unknown)
    found.compute_log_prob()
    parts = {name: found.nodes[name]["log_prob"].reshape(6, -1).sum(-1) for name in (*SITES, "limits", "image")}
    prior, likelihood = model.log_prior(unknown, observed), model.log_likelihood(unknown, observed)
    torch.testing.assert_close(sum(parts[name] for name in (*SITES, "limits")), prior)
    torch.testing.assert_close(parts["image"], likelihood)
    assert bool(prior.isfinite().all())
    several = model.log_likelihood(torch.stack([unknown, unknown + 0.01]), observed)
    torch.testing.assert_close(several[0], likelihood)
    assert several.shape == (2, 6)


def test_the_program_draws(model):
    pyro.set_rng_seed(3)
    dark = Observed(None, torch.full((5,), 4e-3), torch.full((5,), 3000.0))
    found = trace(model, dark)
    assert found.nodes["_RETURN"]["value"].shape == (5, 48, 48)
    assert found.nodes["shape"]["value"].shape == (5, 2, 5)


def test_more_galaxies_and_fewer(model):
    """Three galaxies need no new code, and those that are not there have no light and no density."""
    three = replace(model, galaxies=3)
    observed, unknown = three.simulate(4, seed=1)
    assert unknown.shape == (4, 3 * len(LATENTS) + 2)
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
    found = trace(three, observed, unknown, present=present)
    found.compute_log_prob()
    without = found.nodes["shape"]["log_prob"].reshape(4, 3)
    assert (without == 0).tolist() == (~present).tolist()
    two = model.log_likelihood(torch.cat([unknown[:, : 2 * len(LATENTS)], unknown[:, -2:]], -1), observed)
    torch.testing.assert_close(found.nodes["image"]["log_prob"].flatten()[1], two[1])


def test_pairs_beyond_the_limits_have_no_density(model, drawn):
    observed, unknown = drawn
    fainter = unknown.clone()
    fainter[:, len(LATENTS)] = unknown[:, 0] - 0.4 * math.log(10) * 2.1
    assert not bool(model.log_prior(fainter, observed).isfinite().any())


def test_galaxies_in_all_orders():
    unknown = torch.arange(2 * 23.0).reshape(2, 23)
    orders = in_all_orders(unknown)
    assert orders.shape == (6, 2, 23)
    torch.testing.assert_close(orders[0], unknown)
    torch.testing.assert_close(orders[..., 21:], unknown[:, 21:].expand(6, 2, 2))
    firsts = orders[:, 0, [0, 7, 14]]
    assert sorted(map(tuple, firsts.tolist())) == sorted(permutations((0.0, 7.0, 14.0)))


def test_what_is_known_is_no_site(model, drawn):
    observed, _ = drawn
    known = replace(model, sky_level=0.0, psf_growth=0.0)
    found = trace(known, observed)
    assert "sky_level" not in found.nodes
    assert "log_psf_growth" not in found.nodes
    _, same = known.simulate(3, seed=2)
    assert bool((same[:, -2:] == 0).all())


def test_same_seed_same_blends(model):
    first, again, other = (model.simulate(3, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert bool((first[0].image != other[0].image).any())


def test_small_images_are_the_middle_of_large_ones(model):
    large = replace(model, size=128)
    _, unknown = model.simulate(4, seed=8)
    latents, _, growth = model.split(unknown)
    whole = large.light(latents, growth)[..., 40:88, 40:88]
    part = model.light(latents, growth)
    # A small image holds less of the PSF's wings.
    assert float((whole - part).abs().amax() / whole.amax()) < 3e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 47}, "size must be even, at least 32 and at most 128, got 47"),
        ({"size": 130}, "size must be even, at least 32 and at most 128, got 130"),
        ({"galaxies": 0}, "galaxies must be at least 1, got 0"),
        ({"sky_level": -1.0}, "sky_level must not be negative, got -1"),
        ({"psf_growth": -1.0}, "psf_growth must not be negative, got -1"),
    ],
)
def test_refuses(model, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(model, **changes)
