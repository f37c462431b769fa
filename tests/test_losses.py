import pytest
import torch

from probdeblend.losses import FluxError, JointError, MaskEntropy, NegativeLogLikelihood
from probdeblend.nn.composite import Blend2Flux, Blend2Mask2Flux
from probdeblend.nn.unet import UNet


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(3, 1, 128, 128), torch.rand(3, 2) * 100 + 10, torch.rand(3, 2, 128, 128) < 0.1


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
    image, flux, _ = batch
    estimate = network(image).flux.mean.exp()
    expected = 100 * ((estimate - flux).abs() / flux).mean()
    assert FluxError(network)(*batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_joint_error_weights(batch, network):
    image, _, mask = batch
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(network(image).mask, mask.float())
    error = FluxError(network)(*batch)
    assert JointError(network)(*batch).item() == pytest.approx((entropy + 0.1 * error).item(), rel=1e-5)
    exchanged = JointError(network, mask_weight=0.1, flux_weight=1.0)(*batch)
    assert exchanged.item() == pytest.approx((0.1 * entropy + error).item(), rel=1e-5)


def test_likelihood_is_least_at_the_truth(batch):
    network = Blend2Flux(first_filters=2)
    network.eval()
    image, _, mask = batch
    truth = network(image).flux.mean.exp().detach()
    loss = NegativeLogLikelihood(network)
    assert loss(image, truth, mask) < loss(image, 1.5 * truth, mask)


def test_mask_entropy(batch):
    network = UNet(1, 2, depth=2, first_filters=2)
    image, flux, mask = batch
    network.out.weight.data.zero_()
    network.out.bias.data.zero_()
    assert MaskEntropy(network)(image, flux, mask).item() == pytest.approx(0.693147, abs=1e-5)
