"""A U-Net: image to the logits of each galaxy's mask.

Ronneberger, Fischer and Brox (2015, arXiv:1505.04597), as Boucaud et al. (2020, doi:10.1093/mnras/stz3056) use it:
five resolutions and 32 filters at the first. Dropout stands behind the decoder, so that its features can be kept
while passes are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import PassDropout, convolutions

__all__ = ["UNet"]


class UNet(nn.Module):
    """Image to mask logits.

    Parameters
    ----------
    in_channels, masks
        Channels of the input and number of masks.
    depth
        Number of resolutions; each but the last is followed by a halving.
    first_filters
        Channels at full resolution; they double with every halving.
    norm
        Group normalization (the paper has none).
    dropout
        Probability that a channel of the last features is dropped.

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1,
        masks: int = 2,
        *,
        depth: int = 5,
        first_filters: int = 32,
        norm: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if depth < 1 or first_filters < 1:
            raise ValueError(f"depth and first_filters must be at least 1, got {depth} and {first_filters}")
        widths = [first_filters * 2**level for level in range(depth)]
        self.down = nn.ModuleList(
            convolutions(inputs, outputs, count=2, norm=norm)
            for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.up = nn.ModuleList(convolutions(2 * width, width, count=2, norm=norm) for width in widths[:-1])
        self.dropout = PassDropout(dropout, channels=True)
        self.out = nn.Conv2d(first_filters, masks, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return the decoder's last features, before dropout.

        Parameters
        ----------
        image
            Pixels ``(blend, channel, y, x)``; sides divisible by two to the power of the depth less one.

        Returns
        -------
        Tensor
            Features ``(blend, first_filters, y, x)``.
        """
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            image = block(nn.functional.max_pool2d(image, 2) if level else image)
            skips.append(image)
        for grow, block, skip in zip(reversed(self.grow), reversed(self.up), reversed(skips[:-1]), strict=True):
            image = block(torch.cat([grow(image), skip], 1))
        return image

    def answer(self, features: Tensor) -> Tensor:
        """Return mask logits ``(blend, mask, y, x)`` from the features of `encode`.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            The logits.
        """
        return self.out(self.dropout(features))

    def forward(self, image: Tensor) -> Tensor:
        """Return mask logits ``(blend, mask, y, x)``.

        Parameters
        ----------
        image
            Pixels ``(blend, channel, y, x)``.

        Returns
        -------
        Tensor
            The logits.
        """
        return self.answer(self.encode(image))
