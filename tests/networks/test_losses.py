import pytest
import torch

from probdeblend.networks.composite import Blend2Flux, Blend2Mask2Flux, BlendAnswer
from probdeblend.networks.heads import NormalHead
from probdeblend.networks.losses import FluxError, JointError, MaskEntropy, NegativeLogLikelihood
from probdeblend.networks.unet import UNet


@pytest.fixture
def batch():
    torch.manual_seed(0)
    light = torch.rand(3, 2, 128, 128)
    return torch.randn(3, 1, 128, 128), torch.rand(3, 2) * 100 + 10, light > 0.9, light


@pytest.fixture
def network():
    return Blend2Mask2Flux(unet_filters=2, depth=2, first_filters=2, hidden=4, dropout=0.0)


def test_every_loss_is_a_scalar_with_a_gradient(batch, network):
    for loss in (FluxError(network), JointError(network), NegativeLogLikelihood(network)):
        network.zero_grad()
        value = loss(*batch)
        assert value.shape == ()
        value.backward()
        assert network.head.out.weight.grad.abs().sum() > 0


def test_flux_error_is_a_percentage(batch, network):
    image, flux, *_ = batch
    estimate = network(image).flux.mean.exp()
    expected = 100 * ((estimate - flux).abs() / flux).mean()
    assert FluxError(network)(*batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_joint_error_weights(batch, network):
    image, _, mask, _ = batch
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(network(image).mask, mask.float())
    error = FluxError(network)(*batch)
    assert JointError(network)(*batch).item() == pytest.approx((entropy + 0.1 * error).item(), rel=1e-5)
    exchanged = JointError(network, mask_weight=0.1, flux_weight=1.0)(*batch)
    assert exchanged.item() == pytest.approx((0.1 * entropy + error).item(), rel=1e-5)


def test_likelihood_is_least_at_the_truth(batch):
    network = Blend2Flux(first_filters=2)
    network.eval()
    image, _, mask, light = batch
    truth = network(image).flux.mean.exp().detach()
    loss = NegativeLogLikelihood(network)
    assert loss(image, truth, mask, light) < loss(image, 1.5 * truth, mask, light)


def test_mask_entropy(batch):
    network = UNet(1, 2, depth=2, first_filters=2)
    network.out.weight.data.zero_()
    network.out.bias.data.zero_()
    assert MaskEntropy(network)(*batch).item() == pytest.approx(0.693147, abs=1e-5)


def test_share_entropy_is_least_at_the_true_share(batch, network):
    *_, light = batch
    share = light[:, 0] / light.sum(1)
    network.forward = lambda image: answer
    losses = []
    for logits in (torch.logit(share), torch.logit(share) + 0.3, torch.logit(share) - 0.3):
        answer = BlendAnswer(NormalHead(1).distribution(torch.zeros(3, 5)), torch.zeros(3, 2, 128, 128), logits)
        losses.append(NegativeLogLikelihood(network, mask_weight=0.0, share_weight=1.0)(*batch).item())
    assert losses[0] < min(losses[1:])
    # Without weights, only the fluxes count.
    assert NegativeLogLikelihood(network, mask_weight=0.0, share_weight=0.0)(*batch).item() < losses[0]


def test_share_entropy_knows_no_light():
    dark = torch.full((1, 2, 8, 8), -0.1)
    answer = BlendAnswer(NormalHead(1).distribution(torch.zeros(1, 5)), torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8))
    network = torch.nn.Module()
    network.forward = lambda image: answer
    loss = NegativeLogLikelihood(network)(torch.zeros(1, 1, 8, 8), torch.ones(1, 2), dark > 0, dark)
    assert loss.isfinite()
