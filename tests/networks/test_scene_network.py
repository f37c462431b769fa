"""The scene network as a whole: symmetry, sizes, gradients, and the parts that can be left out."""

import pytest
import torch
from scenery import scenes, understand

from probdeblend.networks.scenes import SHAPES, SceneNetwork


@torch.no_grad()
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_one_network_serves_any_number_of_sources_and_bands(network, sources, bands):
    _, features, answer = understand(network, sources=sources, bands=bands)
    assert features.overlap.shape == (2, sources, sources)
    assert answer.flux.batch_shape == (2,)
    assert answer.flux.event_shape == (sources, bands, 2)
    assert answer.shape.shape == answer.shape_width.shape == (2, sources, len(SHAPES))
    assert answer.kind.shape == (2, sources, 5)
    assert answer.existence.shape == (2, sources)
    assert answer.flux.log_prob(answer.flux.sample()).isfinite().all()
    assert (answer.shape_width > 0).all()


@torch.no_grad()
def test_the_order_of_the_sources_orders_the_answer_and_nothing_else(network):
    *inputs, x, y = scenes(sources=5, bands=2)
    maps, order = network.encode(*inputs), torch.tensor([3, 0, 4, 1, 2])
    everyone = [(scene, list(range(5))) for scene in range(2)]
    (_, features), (_, turned) = network.read(maps, x, y), network.read(maps, x[:, order], y[:, order])
    one, other = network.answer(features, everyone), network.answer(turned, everyone)
    value = one.flux.sample()
    torch.testing.assert_close(other.flux.log_prob(value[:, order]), one.flux.log_prob(value), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other.shape, one.shape[:, order], rtol=1e-4, atol=1e-4)
    # The list of members may have any order too.
    listed = network.answer(features, [(scene, order.tolist()) for scene in range(2)])
    torch.testing.assert_close(listed.existence, one.existence[:, order], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_groups_are_answered_as_if_alone(network):
    _, features, both = understand(network, sources=4, index=[(0, [0, 2]), (1, [1, 3])])
    alone = network.answer(features, [(1, [1, 3])])
    value = both.flux.sample()
    torch.testing.assert_close(both.flux.log_prob(value)[1:], alone.flux.log_prob(value[1:]), rtol=1e-4, atol=1e-4)


def test_a_gradient_reaches_every_parameter(network):
    *inputs, x, y = scenes(sources=3, bands=2)
    maps = network.encode(*inputs)
    shares, features = network.read(maps, x, y)
    answer = network.answer(features, [(0, [0, 1, 2]), (1, [0, 1, 2])])
    value = answer.flux.sample() + 0.1
    total = answer.flux.log_prob(value).sum() + answer.shape.sum() + answer.shape_width.log().sum()
    total = total + answer.kind.logsumexp(-1).sum() + answer.existence.sum()
    total = total + maps.heat.square().sum() + shares.mask.square().sum() + shares.log_share.clamp(min=-20).sum()
    total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_saved_weights_answer_alike(network):
    other = SceneNetwork().eval()
    other.load_state_dict(network.state_dict())
    *inputs, x, y = scenes()
    one, two = (n.read(n.encode(*inputs), x, y)[1] for n in (network, other))
    assert torch.equal(one.token, two.token)
