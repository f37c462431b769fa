"""Losses: a scalar with a gradient, least where the truth is."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from probdeblend.networks import (
    Blend2Flux,
    Blend2Mask2Flux,
    BlendAnswer,
    FullyConvolutional,
    JointError,
    LabelEntropy,
    NegativeLogLikelihood,
    NormalHead,
)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    light = torch.rand(3, 2, 128, 128)
    return torch.randn(3, 1, 128, 128), torch.rand(3, 2) * 100 + 10, light > 0.9, light


@pytest.fixture
def network():
    return Blend2Mask2Flux(unet_filters=2, depth=2, first_filters=2, hidden=4, dropout=0.0)


def test_every_loss_is_a_scalar_with_a_gradient(batch, network):
    for loss in (JointError(network), NegativeLogLikelihood(network)):
        network.zero_grad()
        value = loss(*batch)
        assert value.shape == ()
        value.backward()
        assert network.head.out.weight.grad.abs().sum() > 0
        assert network.unet.out.weight.grad.abs().sum() > 0


def test_joint_error_weights(batch, network):
    image, flux, mask, _ = batch
    answer = network(image)
    entropy = binary_cross_entropy_with_logits(answer.mask, mask.float())
    error = 100 * ((answer.flux.mean.exp() - flux).abs() / flux).mean()
    assert JointError(network)(*batch).item() == pytest.approx((entropy + 0.1 * error).item(), rel=1e-5)
    exchanged = JointError(network, mask_weight=0.1, flux_weight=1.0)(*batch)
    assert exchanged.item() == pytest.approx((0.1 * entropy + error).item(), rel=1e-5)


def test_joint_error_without_masks_is_a_percentage(batch):
    network = Blend2Flux(first_filters=2, dropout=0.0)
    image, flux, *_ = batch
    expected = 100 * ((network(image).flux.mean.exp() - flux).abs() / flux).mean()
    assert JointError(network, flux_weight=1.0)(*batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_likelihood_is_least_at_the_truth(batch):
    network = Blend2Flux(first_filters=2).eval()
    image, _, mask, light = batch
    truth = network(image).flux.mean.exp().detach()
    loss = NegativeLogLikelihood(network)
    assert loss(image, truth, mask, light) < loss(image, 1.5 * truth, mask, light)


def test_label_entropy_of_a_network_that_knows_nothing(batch):
    network = FullyConvolutional(first_filters=2).eval()
    for score in network.scores:
        torch.nn.init.zeros_(score.weight)
    assert LabelEntropy(network)(*batch).item() == pytest.approx(2 * 0.693147, abs=1e-5)


def answering(mask, share):
    """A network that returns normal fluxes, and these masks and shares."""
    network = torch.nn.Module()
    flux = NormalHead(1).distribution(torch.zeros(len(mask), 5))
    network.forward = lambda image: BlendAnswer(flux, mask, share)
    return network


def test_share_entropy_is_least_at_the_true_share(batch):
    *_, light = batch
    logits = torch.logit(light[:, 0] / light.sum(1))
    losses, masks = [], torch.zeros(3, 2, 128, 128)
    for shift in (0.0, 0.3, -0.3):
        network = answering(masks, logits + shift)
        losses.append(NegativeLogLikelihood(network, mask_weight=0.0, share_weight=1.0)(*batch).item())
    assert losses[0] < min(losses[1:])
    # Without weights, only the fluxes count.
    assert NegativeLogLikelihood(network, mask_weight=0.0, share_weight=0.0)(*batch).item() < losses[0]


def test_share_entropy_is_finite_without_light():
    dark = torch.full((1, 2, 8, 8), -0.1)
    loss = NegativeLogLikelihood(answering(torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8)))
    assert loss(torch.zeros(1, 1, 8, 8), torch.ones(1, 2), dark > 0, dark).isfinite()
