"""The U-Net: pixels keep their places, and the signal its strength."""

import pytest
import torch

from probdeblend.networks.unet import UNet


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


def test_settings_are_positive():
    with pytest.raises(ValueError, match="depth and first_filters must be at least 1, got 0 and 32"):
        UNet(depth=0)
