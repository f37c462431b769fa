import math

import pytest
import torch

from probdeblend.networks.composite import Blend2Flux, Blend2Mask2Flux, stretch
from probdeblend.networks.flux import FluxCNN
from probdeblend.networks.heads import NormalHead, PointHead, StudentTHead
from probdeblend.networks.layers import PassDropout, dropout_passes, fold, unfold
from probdeblend.networks.unet import UNet


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


def test_paper_unet_size():
    # Two convolutions a resolution, five resolutions from 32 to 512 filters, transposed convolutions upwards.
    with torch.device("meta"):
        unet = UNet(1, 2, depth=5, first_filters=32)
    assert count(unet) / 1e6 == pytest.approx(7.76, abs=0.02)


@pytest.mark.parametrize(("filters", "millions"), [(64, 9.4), (128, 14.2), (256, 33.5)])
def test_composite_size(filters, millions):
    with torch.device("meta"):
        network = Blend2Mask2Flux(first_filters=filters, head=PointHead)
    assert count(network) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize(("norm", "patch"), [(False, 1), (True, 1), (False, 2), (True, 4)])
def test_composite_shapes(batch, norm, patch):
    network = small(norm=norm, patch=patch).eval()
    answer = network(torch.randn(batch, 1, 128, 128))
    assert answer.mask.shape == (batch, 2, 128, 128)
    assert answer.share.shape == (batch, 128, 128)
    assert answer.flux.batch_shape == (batch,)
    assert answer.flux.event_shape == (2,)
    flux = Blend2Flux(first_filters=2, norm=norm, patch=patch).eval()(torch.randn(batch, 1, 128, 128))
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


def test_a_pass_drops_the_same_units_for_every_blend():
    layer = PassDropout(0.5).eval()
    features = torch.ones(6, 100)
    with dropout_passes(layer):
        dropped = layer(features)
    assert torch.equal(dropped, dropped[:1].expand(6, 100))
    assert 0 < int((dropped[0] == 0).sum()) < 100
    layer.train()
    trained = layer(features)
    assert not torch.equal(trained, trained[:1].expand(6, 100))


def test_dropout_keeps_the_mean(false_alarm):
    layer = PassDropout(0.2, channels=True).train()
    torch.manual_seed(0)
    mean = layer(torch.ones(100, 200, 1, 1)).mean()
    # The standard error of the mean of 20,000 units is sqrt(p / (1 - p) / 20,000); four of them are one in 16,000.
    assert abs(mean - 1) < 4 * (0.25 / 20_000) ** 0.5


def test_head_distributions():
    numbers = torch.zeros(5, 5)
    numbers[:, 4] = -0.5
    normal = NormalHead(3).distribution(numbers)
    scale = normal.scale_tril[0]
    assert scale[0, 0] == pytest.approx(0.301, abs=1e-3)
    assert scale[1, 0] == pytest.approx(-0.5 * scale[1, 1].item(), abs=1e-6)
    student = StudentTHead(3).distribution(torch.zeros(5, 6))
    assert (student.df > 3).all()
    assert PointHead(3)(torch.randn(4, 3), torch.ones(4, 2)).sample().shape == (4, 2)


def test_student_draws_stay_in_the_99_percent_region():
    torch.manual_seed(0)
    head = StudentTHead(3)
    numbers = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, -4.0]])
    exact = head.distribution(numbers)
    free, kept = exact.sample((20_000,)), head.sample(numbers, 20_000)
    assert kept.shape == (20_000, 1, 2)

    def radius(draws):
        whitened = torch.linalg.solve_triangular(exact.scale_tril, (draws - exact.loc)[..., None], upper=False)
        return whitened.square().sum((-2, -1)).flatten().sqrt()

    edge = radius(free).quantile(0.99)
    assert radius(kept).max() == pytest.approx(edge.item(), rel=0.1)
    assert radius(kept).median() == pytest.approx(radius(free).median().item(), rel=0.03)


def test_head_fits_a_correlated_gaussian():
    # Maximum likelihood must find mean and covariance: the head has no blind spot.
    torch.manual_seed(1)
    true = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -1.0]), torch.tensor([[0.04, -0.02], [-0.02, 0.09]])
    )
    data = true.sample((4000,))
    head = NormalHead(1)
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss = -head(torch.ones(len(data), 1)).log_prob(data).mean()
        loss.backward()
        optimizer.step()
    fitted = head(torch.ones(1, 1))
    assert torch.allclose(fitted.mean[0], data.mean(0), atol=0.01)
    assert torch.allclose(fitted.covariance_matrix[0], torch.cov(data.T), atol=0.006)


def test_stretch_is_asinh_and_linear_and_knows_the_middle():
    image = 10 * torch.randn(2, 1, 16, 16)
    channels = stretch(image)
    assert channels.shape == (2, 3, 16, 16)
    corner = 7.5 * 2**0.5
    assert channels[:, 2, 0, 15].tolist() == pytest.approx([math.exp(-corner / 10)] * 2)
    assert torch.equal(channels[:, 2], channels[:, 2].flip(-1).mT)
    assert torch.allclose(channels[:, :1].sinh(), image, rtol=1e-4, atol=1e-4)
    assert channels[:, 1].amax((-2, -1)).tolist() == pytest.approx([1.0, 1.0])


def test_errors():
    with pytest.raises(ValueError, match="depth and first_filters must be at least 1, got 0 and 8"):
        UNet(1, depth=0, first_filters=8)
    with pytest.raises(ValueError, match="size must be divisible by 16, got 100"):
        FluxCNN(1, size=100)
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        FluxCNN(1, first_filters=0)
    with pytest.raises(ValueError, match="probability must be at least 0 and below 1, got 1"):
        PassDropout(1.0)


def test_patches_stay_where_they_are():
    # One pixel changes the features, and the logits without convolutions, in its own patch alone.
    torch.manual_seed(0)
    unet = UNet(1, 1, depth=1, first_filters=4, patch=2).eval()
    image = torch.randn(1, 1, 16, 16)
    touched = image.clone()
    touched[0, 0, 9, 4] += 10
    changed = (unet(touched) - unet(image))[0, 0].abs() > 1e-6
    rows, columns = changed.nonzero(as_tuple=True)
    # Two 3 x 3 convolutions over patches reach two patches around the pixel's own.
    assert (rows.min(), rows.max()) == (4, 13)
    assert (columns.min(), columns.max()) == (0, 9)


def test_the_signal_keeps_its_strength_through_the_network():
    torch.manual_seed(0)
    unet = UNet(3, 3, depth=4, first_filters=16, patch=2).eval()
    features = unet.encode(torch.randn(4, 3, 128, 128))
    assert 0.3 < features.square().mean() < 30


def test_light_is_divided_by_the_shares():
    network = small(dropout=0.0).eval()
    image = torch.rand(2, 1, 128, 128) + 1
    with torch.no_grad():
        network.unet.out.weight.zero_()
        network.unet.out.bias.copy_(torch.tensor([50.0, -50.0, math.log(3.0)]))
        start = network.encode(image).start.exp()
    light = image.sum((-3, -2, -1))
    torch.testing.assert_close(start, torch.stack([0.75 * light, 0.25 * light], 1))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_fold_is_pixel_unshuffle_also_without_images(patch):
    image = torch.arange(2 * 3 * 8 * 16.0).reshape(2, 3, 8, 16)
    folded = fold(image, patch)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(image, patch))
    assert torch.equal(unfold(folded, patch), image)
    assert fold(image[:0], patch).shape == (0, 3 * patch**2, 8 // patch, 16 // patch)
