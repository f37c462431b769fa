"""A U-Net: image to logits of every pixel.

Ronneberger, Fischer and Brox (2015, arXiv:1505.04597), as Boucaud et al. (2020, doi:10.1093/mnras/stz3056) use it:
five resolutions, 32 filters at the first, one channel in and two masks out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import convolutions, he_normal, pixels_seen

__all__ = ["UNet"]


class UNet(nn.Module):
    """Image over sky noise ``(scene, 1, y, x)`` to the logits of both masks ``(scene, 2, y, x)``.

    Filters double with every halving of the resolution; sides must be divisible by ``2 ** (depth - 1)``.
    """

    def __init__(self, *, depth: int = 5, first_filters: int = 32) -> None:
        super().__init__()
        if depth < 1 or first_filters < 1:
            raise ValueError(f"depth and first_filters must be at least 1, got {depth} and {first_filters}")
        widths = [first_filters * 2**level for level in range(depth)]
        self.down = nn.ModuleList(convolutions(*pair, count=2) for pair in pairwise([1, *widths]))
        self.grow = nn.ModuleList(
            he_normal(nn.ConvTranspose2d(2 * width, width, 2, stride=2), fan=2 * width, gain=1.0)
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(convolutions(2 * width, width, count=2) for width in widths[:-1])
        self.out = nn.Conv2d(first_filters, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        levels = [self.down[0](pixels_seen(image))]
        for block in self.down[1:]:
            levels.append(block(nn.functional.max_pool2d(levels[-1], 2)))
        features = levels.pop()
        for grow, block, skip in zip(self.grow[::-1], self.up[::-1], levels[::-1], strict=True):
            features = block(torch.cat([grow(features), skip], 1))
        return self.out(features)
