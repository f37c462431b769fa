"""The composite networks of the paper: their sizes, and what their forward pass returns."""

import math

import pytest
import torch

from probdeblend.networks import Blend2Flux, Blend2Mask2Flux, NormalHead, PointHead, StudentTHead
from probdeblend.networks.flux import FluxCNN
from probdeblend.networks.layers import dropout_passes


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small(**settings):
    torch.manual_seed(3)
    return Blend2Mask2Flux(unet_filters=4, depth=3, first_filters=4, hidden=32, **settings)


@pytest.mark.parametrize(("filters", "millions"), [(64, 1.6), (256, 25.7), (512, 102.7)])
def test_flux_cnn_has_the_published_number_of_parameters(filters, millions):
    with torch.device("meta"):
        cnn = FluxCNN(1, first_filters=filters)
        total = count(cnn) + count(torch.nn.Linear(cnn.out_features, 2))
    # The paper cuts 102.77 off to 102.7.
    assert total / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("filters", "millions"), [(64, 9.4), (128, 14.2), (256, 33.5)])
def test_composite_size(filters, millions):
    with torch.device("meta"):
        network = Blend2Mask2Flux(first_filters=filters, head=PointHead)
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_composite_shapes(batch, patch):
    network = small(patch=patch).eval()
    answer = network(torch.randn(batch, 1, 128, 128))
    assert answer.mask.shape == (batch, 2, 128, 128)
    assert answer.share.shape == (batch, 128, 128)
    assert answer.flux.batch_shape == (batch,)
    assert answer.flux.event_shape == (2,)
    flux = Blend2Flux(first_filters=2, patch=patch).eval()(torch.randn(batch, 1, 128, 128))
    assert flux.mask is None
    assert flux.flux.batch_shape == (batch,)


@pytest.mark.parametrize("head", [NormalHead, StudentTHead])
def test_gradient_reaches_every_parameter(head):
    network = small(head=head, dropout=0.0)
    answer = network(3 * torch.randn(4, 1, 128, 128))
    (
        answer.mask.square().mean() + answer.share.square().mean() - answer.flux.log_prob(torch.randn(4, 2)).mean()
    ).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_flux_loss_trains_the_masks_only_end_to_end():
    for end_to_end in (True, False):
        network = small(dropout=0.0)
        network.end_to_end = end_to_end
        network(torch.randn(3, 1, 128, 128)).flux.log_prob(torch.zeros(3, 2)).sum().backward()
        trained = network.unet.out.weight.grad is not None
        assert trained is end_to_end


def test_evaluation_is_deterministic_and_passes_are_not():
    network = small(dropout=0.9).eval()
    image = torch.randn(3, 1, 128, 128)
    features = network.encode(image)
    assert torch.equal(network.answer(features).flux, network.answer(features).flux)
    with dropout_passes(network):
        first, second = network.answer(features), network.answer(features)
    assert not torch.equal(first.flux, second.flux)
    assert not torch.equal(first.mask, second.mask)
    assert torch.equal(network.answer(features).flux, network.answer(features).flux)


def test_light_is_divided_by_the_shares():
    network = small(dropout=0.0).eval()
    image = torch.rand(2, 1, 128, 128) + 1
    with torch.no_grad():
        network.unet.out.weight.zero_()
        network.unet.out.bias.copy_(torch.tensor([50.0, -50.0, math.log(3.0)]))
        start = network.encode(image).start.exp()
    light = image.sum((-3, -2, -1))
    torch.testing.assert_close(start, torch.stack([0.75 * light, 0.25 * light], 1))


def test_errors():
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        Blend2Flux(first_filters=0)
    with pytest.raises(ValueError, match="depth and first_filters must be at least 1, got 0 and 8"):
        Blend2Mask2Flux(depth=0, unet_filters=8)
    with pytest.raises(ValueError, match="probability must be at least 0 and below 1, got 1"):
        Blend2Flux(first_filters=2, dropout=1.0)
