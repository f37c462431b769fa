"""The fully convolutional network and its labels."""

import pytest
import torch

from probdeblend.networks.fcn import LABELS, FullyConvolutional, labels, mask_probabilities


@pytest.mark.parametrize("count", [1, 7])
def test_logits_have_the_shape_of_the_image(count):
    network = FullyConvolutional(first_filters=2)
    assert network(torch.randn(count, 1, 64, 96)[..., :64]).shape == (count, len(LABELS), 64, 64)


def test_a_gradient_reaches_every_parameter():
    network = FullyConvolutional(first_filters=4)
    network(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in network.parameters())


def test_evaluation_is_deterministic():
    network = FullyConvolutional(first_filters=2).eval()
    image = torch.randn(2, 1, 64, 64)
    assert torch.equal(network(image), network(image))


def test_first_filters_are_positive():
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        FullyConvolutional(first_filters=0)


def test_labels_and_masks():
    mask = torch.tensor([[[[0, 1, 0, 1]], [[0, 0, 1, 1]]]], dtype=torch.bool)
    assert labels(mask).tolist() == [[[0, 1, 2, 3]]]
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().reshape(1, 4, 1, 1)
    torch.testing.assert_close(mask_probabilities(logits).flatten(), torch.tensor([0.6, 0.7]))
