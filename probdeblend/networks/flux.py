"""The flux CNN: image to features.

With one channel in and two outputs this is the recipe of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056): five 3 x 3 convolutions of f, f, 2f, 2f and 4f filters with max-pooling between them, two
hidden layers of width f and two fluxes. It has 1.6, 25.7 and 102.7 million parameters for f = 64, 256 and 512.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..scene import STAMP_SIZE
from .layers import convolutions, fold, hidden_layers

__all__ = ["FluxCNN"]


class FluxCNN(nn.Module):
    """Stamp, and `extra` further inputs, to the features from which a head makes a distribution of fluxes."""

    def __init__(
        self,
        in_channels: int = 1,
        *,
        first_filters: int = 64,
        hidden: int | None = None,
        extra: int = 0,
        dropout: float = 0.2,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if first_filters < 1:
            raise ValueError(f"first_filters must be at least 1, got {first_filters}")
        hidden = hidden or first_filters
        self.patch = patch
        filters = [in_channels * patch**2, *(first_filters * times for times in (1, 1, 2, 2, 4))]
        self.convolutions = nn.ModuleList(convolutions(*pair, count=1) for pair in pairwise(filters))
        flat = filters[-1] * (STAMP_SIZE // (16 * patch)) ** 2 + extra
        self.dense = hidden_layers(flat, hidden, dropout=dropout, he=True)
        self.out_features = hidden

    def encode(self, image: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the flattened features ``(blend, feature)`` of the convolutions, before dropout."""
        image = fold(image, self.patch)
        for level, block in enumerate(self.convolutions):
            image = block(nn.functional.max_pool2d(image, 2) if level else image)
        flat = image.flatten(1)
        return flat if extra is None else torch.cat([flat, extra.to(flat)], 1)

    def answer(self, features: Tensor) -> Tensor:
        """Return the last hidden layer ``(blend, out_features)`` from the features of `encode`."""
        return self.dense(features)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last hidden layer ``(blend, out_features)`` from pixels ``(blend, channel, y, x)``."""
        return self.answer(self.encode(image))
