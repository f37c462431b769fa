"""The U-Net: its size, and that pixels keep their positions."""

import pytest
import torch

from probdeblend.networks.unet import UNet


def test_paper_unet_size():
    # Two convolutions per resolution, five resolutions from 32 to 512 filters, transposed convolutions upwards.
    with torch.device("meta"):
        unet = UNet(1, 2, depth=5, first_filters=32)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(7.76, abs=0.02)


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
