"""Dropout in passes, and what networks see of an image."""

import math

import pytest
import torch

from probdeblend.networks.layers import PassDropout, dropout_passes, fold, stretch


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


def test_stretch_is_asinh_and_linear_and_knows_the_middle():
    image = 10 * torch.randn(2, 1, 16, 16)
    channels = stretch(image)
    assert channels.shape == (2, 3, 16, 16)
    corner = 7.5 * 2**0.5
    assert channels[:, 2, 0, 15].tolist() == pytest.approx([math.exp(-corner / 10)] * 2)
    assert torch.equal(channels[:, 2], channels[:, 2].flip(-1).mT)
    assert torch.allclose(channels[:, :1].sinh(), image, rtol=1e-4, atol=1e-4)
    assert channels[:, 1].amax((-2, -1)).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_fold_is_pixel_unshuffle_also_without_images(patch):
    image = torch.arange(2 * 3 * 8 * 16.0).reshape(2, 3, 8, 16)
    folded = fold(image, patch)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(image, patch))
    assert torch.equal(torch.nn.functional.pixel_shuffle(folded, patch), image)
    assert fold(image[:0], patch).shape == (0, 3 * patch**2, 8 // patch, 16 // patch)
