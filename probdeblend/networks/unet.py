"""A U-Net: image to logits of every pixel.

Ronneberger, Fischer and Brox (2015, arXiv:1505.04597), as Boucaud et al. (2020, doi:10.1093/mnras/stz3056) use it:
five resolutions and 32 filters at the first. Dropout stands behind the decoder, so that its features can be kept
while passes are drawn. With `patch` the convolutions work at a lower resolution on the same numbers: each square of
pixels enters as the channels of one position, and leaves as such (Shi et al. 2016, arXiv:1609.05158).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import PassDropout, convolutions, fold, he_normal, unfold

__all__ = ["UNet"]


class UNet(nn.Module):
    """Image to logits of every pixel.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input, and maps in the output.
    depth
        Number of resolutions; each but the last is followed by a halving.
    first_filters
        Channels at the first resolution; they double with every halving.
    norm
        Group normalization (the paper has none).
    dropout
        Probability that a channel of the last features is dropped.
    patch
        Side in pixels of the squares that are folded into channels; 1 for none (the paper's).

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        depth: int = 5,
        first_filters: int = 32,
        norm: bool = False,
        dropout: float = 0.2,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if depth < 1 or first_filters < 1:
            raise ValueError(f"depth and first_filters must be at least 1, got {depth} and {first_filters}")
        self.patch = patch
        widths = [first_filters * 2**level for level in range(depth)]
        self.down = nn.ModuleList(
            convolutions(inputs, outputs, count=2, norm=norm)
            for inputs, outputs in zip([in_channels * patch**2, *widths], widths, strict=False)
        )
        self.grow = nn.ModuleList(
            he_normal(nn.ConvTranspose2d(2 * width, width, 2, stride=2), fan=2 * width, gain=1.0)
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(convolutions(2 * width, width, count=2, norm=norm) for width in widths[:-1])
        self.dropout = PassDropout(dropout, channels=True)
        self.out = nn.Conv2d(first_filters, out_channels * patch**2, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return the decoder's last features, before dropout.

        Parameters
        ----------
        image
            Pixels ``(blend, channel, y, x)``; sides divisible by ``patch * 2 ** (depth - 1)``.

        Returns
        -------
        Tensor
            Features ``(blend, first_filters, y / patch, x / patch)``.
        """
        image = fold(image, self.patch)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            image = block(nn.functional.max_pool2d(image, 2) if level else image)
            skips.append(image)
        for grow, block, skip in zip(reversed(self.grow), reversed(self.up), reversed(skips[:-1]), strict=True):
            image = block(torch.cat([grow(image), skip], 1))
        return image

    def answer(self, features: Tensor) -> Tensor:
        """Return logits ``(blend, out_channels, y, x)`` from the features of `encode`.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            The logits.
        """
        return self.logits(self.dropout(features))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits ``(blend, out_channels, y, x)`` from the features of `encode`, without dropout.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            The logits.
        """
        return unfold(self.out(features), self.patch)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(blend, out_channels, y, x)``.

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
