"""The flux CNN: image to features.

With group normalization off, one channel in and two outputs this is the recipe of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056): five 3 x 3 convolutions of f, f, 2f, 2f and 4f filters with max-pooling between them, two
hidden layers of width f and two fluxes. It has 1.6, 25.7 and 102.7 million parameters for f = 64, 256 and 512.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import PassDropout, convolutions, fold, he_normal

__all__ = ["FluxCNN"]


class FluxCNN(nn.Module):
    """Image to the features from which a head makes a distribution of fluxes.

    Parameters
    ----------
    in_channels
        Channels of the input.
    first_filters
        Filters f of the first convolution.
    hidden
        Width of the two hidden layers; f if None.
    extra
        Number of further inputs to the hidden layers, beside those from the image.
    size
        Pixels on a side of the image, divisible by 16 times the patch.
    norm
        Group normalization (the paper has none).
    dropout
        Probability that a unit is dropped before each hidden layer.
    patch
        Side in pixels of the squares that are folded into channels, as in the U-Net; 1 for none (the paper's).

    Raises
    ------
    ValueError
        If the size does not fit or there are no filters.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        first_filters: int = 64,
        hidden: int | None = None,
        extra: int = 0,
        size: int = 128,
        norm: bool = False,
        dropout: float = 0.2,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if size % (16 * patch) or size < 16 * patch:
            raise ValueError(f"size must be divisible by {16 * patch}, got {size}")
        if first_filters < 1:
            raise ValueError(f"first_filters must be at least 1, got {first_filters}")
        hidden = hidden or first_filters
        self.patch = patch
        filters = [in_channels * patch**2, *(first_filters * times for times in (1, 1, 2, 2, 4))]
        pairs = pairwise(filters)
        self.convolutions = nn.ModuleList(convolutions(i, o, count=1, norm=norm) for i, o in pairs)
        flat = filters[-1] * (size // (16 * patch)) ** 2 + extra
        self.dense = nn.Sequential(
            PassDropout(dropout),
            he_normal(nn.Linear(flat, hidden), fan=flat),
            nn.ReLU(),
            PassDropout(dropout),
            he_normal(nn.Linear(hidden, hidden), fan=hidden),
            nn.ReLU(),
        )
        self.out_features = hidden

    def encode(self, image: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the flattened features of the convolutions, before dropout.

        Parameters
        ----------
        image
            Pixels ``(blend, channel, y, x)``.
        extra
            Further inputs ``(blend, extra)``.

        Returns
        -------
        Tensor
            Features ``(blend, feature)``.
        """
        image = fold(image, self.patch)
        for level, block in enumerate(self.convolutions):
            image = block(nn.functional.max_pool2d(image, 2) if level else image)
        flat = image.flatten(1)
        return flat if extra is None else torch.cat([flat, extra.to(flat)], 1)

    def answer(self, features: Tensor) -> Tensor:
        """Return the last hidden layer ``(blend, out_features)`` from the features of `encode`.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            The hidden layer.
        """
        return self.dense(features)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last hidden layer ``(blend, out_features)``.

        Parameters
        ----------
        image
            Pixels ``(blend, channel, y, x)``.

        Returns
        -------
        Tensor
            The hidden layer.
        """
        return self.answer(self.encode(image))
