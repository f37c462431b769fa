"""Draws from dropout passes: moments, and what they depend on."""

import numpy as np
import pytest
import torch
from scenery import understand
from scipy.stats import kstest

from probdeblend.networks.dropout import draw_groups, kept_units

PAIRS = [(0, [0, 1]), (1, [1, 2]), (1, [0, 2])]
FEW = {"draws": 40, "passes": 4}


@pytest.fixture
def features(network):
    with torch.no_grad():
        return understand(network, bands=2)[1]


def test_shapes(network, features):
    found = draw_groups(network, features, PAIRS, keys=[5, 6, 7], draws=41, passes=4, seed=1)
    assert found.log_flux.shape == (4, 11, 3, 2, 2, 2)
    assert found.log_flux.dtype == torch.float32
    assert found.log_flux.isfinite().all()
    assert found.shape.shape == found.shape_width.shape == (3, 2, 6)
    torch.testing.assert_close(found.kind.sum(-1), torch.ones(3, 2))
    assert ((found.existence > 0) & (found.existence < 1)).all()


def test_a_group_depends_on_the_seed_and_its_key_alone(network, features):
    together = draw_groups(network, features, PAIRS, keys=[5, 6, 7], **FEW, seed=1).log_flux
    state = torch.get_rng_state()
    alone = draw_groups(network, features, PAIRS[1:2], keys=[6], **FEW, seed=1).log_flux
    torch.testing.assert_close(alone[:, :, 0], together[:, :, 1], rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    other_key = draw_groups(network, features, PAIRS[1:2], keys=[7], **FEW, seed=1).log_flux
    other_seed = draw_groups(network, features, PAIRS[1:2], keys=[6], **FEW, seed=2).log_flux
    for other in (other_key, other_seed):
        assert (other - alone).abs().amax() > 0.1


def test_a_pass_drops_the_same_units_for_every_group(network, features):
    """With one draw each and all noise alike, two groups that are the same agree pass by pass, and passes differ."""
    found = draw_groups(network, features, [PAIRS[0], PAIRS[1], PAIRS[0]], keys=[3, 4, 3], **FEW).log_flux
    torch.testing.assert_close(found[:, :, 2], found[:, :, 0], rtol=1e-5, atol=1e-5)
    middle = draw_groups(network, features, PAIRS[:1], keys=[0], draws=8000, passes=4).log_flux.median(1).values
    assert middle.std(0).amin() > 1e-3


def test_streams_of_seeds_are_apart(network, features):
    """No pass of a seed is one of another seed, and no group's numbers are those of a group of another seed."""
    passes = torch.cat([kept_units(0.1, 40, seed).token.flatten(1) for seed in (0, 1, 32, 64, 2**32, 2**40)])
    assert len(passes.unique(dim=0)) == 6 * 40
    assert torch.equal(kept_units(0.1, 8, 64).query, kept_units(0.1, 40, 64).query[:8])
    drawn = [
        draw_groups(network, features, PAIRS[:1], keys=[key], **FEW, seed=seed).log_flux
        for seed, key in ((0, 64), (64, 0), (0, 65), (1, 64), (64, 64), (0, 0))
    ]
    assert len(torch.stack(drawn).flatten(1).unique(dim=0)) == 6


def test_a_rounding_error_changes_draws_by_no_more(network, features):
    """Random numbers are consumed alike whatever the network says: draws follow its answer smoothly."""
    moved = features._replace(token=features.token * (1 + 1e-6), anchor=features.anchor + 1e-6)
    one, other = (draw_groups(network, f, PAIRS, keys=[0, 1, 2], **FEW).log_flux for f in (features, moved))
    assert ((one - other).abs() > 1e-3).float().mean() < 1e-3


@torch.no_grad()
def test_without_passes_draws_are_those_of_the_network(network, features, false_alarm):
    """One chain, whose draws have the distribution that the network answers: heavy tails and all."""
    found = draw_groups(network, features, PAIRS[:1], keys=[0], draws=4000, passes=0)
    assert found.log_flux.shape[:2] == (1, 4000)
    expected = network.answer(features, PAIRS[:1])
    reference = expected.flux.sample((4000,))
    for source, kind in np.ndindex(2, 2):
        pair = (value[..., source, 1, kind].flatten().numpy() for value in (found.log_flux, reference))
        assert kstest(*pair).pvalue > false_alarm
    torch.testing.assert_close(found.shape, expected.shape)
    torch.testing.assert_close(found.shape_width, expected.shape_width)
    torch.testing.assert_close(found.existence, expected.existence.sigmoid())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"passes": -1}, "passes must be at least 0, got -1"),
        ({"seed": -2}, "seed must be at least 0, got -2"),
        ({"keys": [1]}, "argument 2 is shorter"),
        ({"keys": [1, -4, 2]}, "non-negative"),
    ],
)
def test_refuses(network, features, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw_groups(network, features, PAIRS, **{"keys": [0, 1, 2]} | wrong)
