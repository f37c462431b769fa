"""The published networks: their sizes, shapes and gradients."""

import pytest
import torch

from probdeblend.networks import Blend2Flux, Blend2Mask2Flux, FullyConvolutional
from probdeblend.networks.published import LABELS, UNet


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def small(**settings):
    return Blend2Mask2Flux(unet_filters=4, first_filters=4, hidden=32, **settings)


@pytest.mark.parametrize(("filters", "published"), [(64, 1.6), (256, 25.7), (512, 102.7)])
def test_blend2flux_has_the_published_size(filters, published):
    with torch.device("meta"):
        network = Blend2Flux(first_filters=filters)
    # The paper cuts 102.77 off to 102.7.
    assert millions(network) == pytest.approx(published, abs=0.1)


def test_blend2mask2flux_has_nearly_the_published_size():
    with torch.device("meta"):
        network = Blend2Mask2Flux()
    assert millions(network.unet) == pytest.approx(7.76, abs=0.01)
    assert millions(network) == pytest.approx(18.5, abs=0.1)


@pytest.mark.parametrize("number", [1, 7])
def test_shapes(number):
    image = torch.randn(number, 1, 128, 128)
    answer = small().eval()(image)
    assert answer.log_flux.shape == (number, 2)
    assert answer.mask.shape == (number, 2, 128, 128)
    answer = Blend2Flux(first_filters=2).eval()(image)
    assert answer.log_flux.shape == (number, 2)
    assert answer.mask is None


def test_a_gradient_reaches_every_parameter():
    """End to end: the fluxes train the U-Net too."""
    network = small(dropout=0.0)
    network(3 * torch.randn(4, 1, 128, 128)).log_flux.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_bright_images_do_not_blow_up():
    estimate = small().eval()(1e6 * torch.rand(2, 1, 128, 128)).log_flux
    assert ((estimate > 0) & (estimate < 30)).all()


def test_evaluation_is_deterministic():
    network, image = small(dropout=0.9).eval(), torch.randn(2, 1, 128, 128)
    assert torch.equal(network(image).log_flux, network(image).log_flux)
    network.train()
    assert not torch.equal(network(image).log_flux, network(image).log_flux)


def test_filters_are_positive():
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        Blend2Flux(first_filters=0)


@pytest.mark.parametrize("count", [1, 7])
def test_logits_have_the_shape_of_the_image(count):
    network = FullyConvolutional(first_filters=2)
    assert network(torch.randn(count, 1, 64, 96)[..., :64]).shape == (count, len(LABELS), 64, 64)


def test_a_gradient_reaches_every_parameter_of_the_fully_convolutional_network():
    network = FullyConvolutional(first_filters=4)
    network(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in network.parameters())


def test_labels_are_deterministic():
    network = FullyConvolutional(first_filters=2).eval()
    image = torch.randn(2, 1, 64, 64)
    assert torch.equal(network(image), network(image))


def test_filters_of_the_fully_convolutional_network_are_positive():
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        FullyConvolutional(first_filters=0)


@torch.no_grad()
def test_a_pixel_changes_its_neighborhood_alone():
    """At one resolution, two 3 x 3 convolutions reach two pixels."""
    unet = UNet(depth=1, first_filters=4)
    image = torch.randn(1, 1, 16, 16)
    touched = image.clone()
    touched[0, 0, 9, 4] += 10
    rows, columns = ((unet(touched) - unet(image))[0].abs().amax(0) > 1e-6).nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (7, 11)
    assert (columns.min(), columns.max()) == (2, 6)


@torch.no_grad()
def test_coarse_levels_reach_far():
    unet = UNet(depth=4, first_filters=8)
    image = torch.zeros(1, 1, 128, 128)
    touched = image.clone()
    touched[..., 64, 10] = 100
    changed = (unet(touched) - unet(image))[0, 0, 64].abs()
    assert changed[40] > 0
    assert changed[126] == 0


def test_settings_of_the_unet_are_positive():
    with pytest.raises(ValueError, match="depth and first_filters must be at least 1, got 0 and 32"):
        UNet(depth=0)
