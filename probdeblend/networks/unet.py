"""A U-Net: image to logits of every pixel.

Ronneberger, Fischer and Brox (2015, arXiv:1505.04597), as Boucaud et al. (2020, doi:10.1093/mnras/stz3056) use it:
five resolutions and 32 filters at the first. Dropout follows the decoder, so that its features can be kept while
passes are drawn. With `patch` the convolutions work at a lower resolution on the same numbers: each square of pixels
enters as the channels of one position, and leaves in the same way (Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import PassDropout, convolutions, fold, he_normal

__all__ = ["UNet"]


class UNet(nn.Module):
    """Image to logits of every pixel, over `depth` resolutions whose filters double with every halving.

    Sides of the image must be divisible by ``patch * 2 ** (depth - 1)``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        depth: int = 5,
        first_filters: int = 32,
        dropout: float = 0.2,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if depth < 1 or first_filters < 1:
            raise ValueError(f"depth and first_filters must be at least 1, got {depth} and {first_filters}")
        self.patch = patch
        widths = [first_filters * 2**level for level in range(depth)]
        channels = pairwise([in_channels * patch**2, *widths])
        self.down = nn.ModuleList(convolutions(*pair, count=2) for pair in channels)
        self.grow = nn.ModuleList(
            he_normal(nn.ConvTranspose2d(2 * width, width, 2, stride=2), fan=2 * width, gain=1.0)
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(convolutions(2 * width, width, count=2) for width in widths[:-1])
        self.dropout = PassDropout(dropout, channels=True)
        self.out = nn.Conv2d(first_filters, out_channels * patch**2, 1)

    def descend(self, image: Tensor) -> list[Tensor]:
        """Return the features of the encoder, from the finest resolution to the coarsest."""
        features = [self.down[0](fold(image, self.patch))]
        for block in self.down[1:]:
            features.append(block(nn.functional.max_pool2d(features[-1], 2)))
        return features

    def encode(self, image: Tensor) -> Tensor:
        """Return the decoder's last features ``(blend, first_filters, y / patch, x / patch)``, before dropout."""
        *skips, image = self.descend(image)
        for grow, block, skip in zip(reversed(self.grow), reversed(self.up), reversed(skips), strict=True):
            image = block(torch.cat([grow(image), skip], 1))
        return image

    def answer(self, features: Tensor) -> Tensor:
        """Return logits ``(blend, out_channels, y, x)`` from the features of `encode`."""
        return self.logits(self.dropout(features))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits from the features of `encode`, without dropout."""
        return nn.functional.pixel_shuffle(self.out(features), self.patch).contiguous()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(blend, out_channels, y, x)`` from pixels ``(blend, channel, y, x)``."""
        return self.answer(self.encode(image))
