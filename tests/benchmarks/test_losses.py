"""The paper's losses: a scalar with a gradient, least where the truth is."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.boucaud2020.losses import JointError, MaskEntropy
from benchmarks.labels import LabelEntropy, labels
from probdeblend.networks import Blend2Flux, Blend2Mask2Flux, FullyConvolutional


def test_labels_of_masks():
    mask = torch.tensor([[[[0, 1, 0, 1]], [[0, 0, 1, 1]]]], dtype=torch.bool)
    assert labels(mask).tolist() == [[[0, 1, 2, 3]]]


@pytest.fixture
def batch():
    return torch.randn(3, 1, 128, 128), torch.rand(3, 2) * 100 + 10, torch.rand(3, 2, 128, 128) > 0.9


@pytest.fixture
def network():
    return Blend2Mask2Flux(unet_filters=2, first_filters=2, hidden=4, dropout=0.0)


def test_the_first_stage_trains_the_masks_and_the_second_all(batch, network):
    MaskEntropy(network.unet)(*batch).backward()
    assert network.unet.out.weight.grad.abs().sum() > 0
    assert network.cnn[-1].weight.grad is None
    JointError(network)(*batch).backward()
    assert network.cnn[-1].weight.grad.abs().sum() > 0


def test_the_joint_error_is_a_weighted_sum(batch, network):
    image, flux, mask = batch
    answer = network(image)
    entropy = binary_cross_entropy_with_logits(answer.mask, mask.float())
    error = 100 * ((answer.log_flux.exp() - flux).abs() / flux).mean()
    assert JointError(network)(*batch).item() == pytest.approx((entropy + 0.1 * error).item(), rel=1e-5)
    exchanged = JointError(network, mask_weight=0.1, flux_weight=1.0)(*batch)
    assert exchanged.item() == pytest.approx((0.1 * entropy + error).item(), rel=1e-5)
    assert MaskEntropy(network.unet)(*batch).item() == pytest.approx(entropy.item(), rel=1e-5)


def test_without_masks_the_joint_error_is_a_percentage(batch):
    network = Blend2Flux(first_filters=2, dropout=0.0)
    image, _, mask = batch
    truth = network(image).log_flux.exp().detach()
    loss = JointError(network, flux_weight=1.0)
    assert loss(image, truth, mask).item() == pytest.approx(0, abs=1e-4)
    assert loss(image, 2 * truth, mask).item() == pytest.approx(50, rel=1e-4)


def test_label_entropy_of_a_network_that_knows_nothing(batch):
    network = FullyConvolutional(first_filters=2).eval()
    for score in network.scores:
        torch.nn.init.zeros_(score.weight)
    assert LabelEntropy(network)(*batch).item() == pytest.approx(2 * 0.693147, abs=1e-5)
