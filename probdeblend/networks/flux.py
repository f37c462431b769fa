"""Blend2Flux and Blend2Mask2Flux: the networks of Boucaud et al. (2020, doi:10.1093/mnras/stz3056), as published.

They measure both fluxes of a pair in a stamp, galaxy 0 in its middle, as numbers without an uncertainty. Blend2Flux
sees the image alone: five 3 x 3 convolutions of f, f, 2f, 2f and 4f filters with max-pooling between them, two hidden
layers and two fluxes; 1.6, 25.7 and 102.7 million parameters for f = 64, 256 and 512. Blend2Mask2Flux sees the image
and the two masks of its U-Net: with f = 128 and hidden layers of 256 it has 18.4 million, the paper says 18.5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..scene import STAMP_SIZE
from .layers import convolutions, he_normal, pixels_seen
from .unet import UNet

__all__ = ["Blend2Flux", "Blend2Mask2Flux", "PairEstimate"]

FIRST_LOG_FLUX = 9.0  # ln of the flux of a galaxy of 22.5 mag over the noise of CANDELS: where training starts


class PairEstimate(NamedTuple):
    """What a network estimates for pairs of galaxies.

    Parameters
    ----------
    log_flux
        ln of both fluxes over sky noise ``(scene, galaxy)``.
    mask
        Logits of both masks ``(scene, galaxy, y, x)``; None for a network without masks.
    """

    log_flux: Tensor
    mask: Tensor | None


class FluxCNN(nn.Module):
    """Stamp to two numbers."""

    def __init__(self, channels: int, *, first_filters: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if first_filters < 1:
            raise ValueError(f"first_filters must be at least 1, got {first_filters}")
        filters = [channels, *(first_filters * times for times in (1, 1, 2, 2, 4))]
        self.convolutions = nn.ModuleList(convolutions(*pair, count=1) for pair in pairwise(filters))
        layers = []
        for inputs in (filters[-1] * (STAMP_SIZE // 16) ** 2, hidden):
            layers += [nn.Dropout(dropout), he_normal(nn.Linear(inputs, hidden), fan=inputs), nn.ReLU()]
        self.dense = nn.Sequential(*layers, nn.Linear(hidden, 2))
        nn.init.normal_(self.dense[-1].weight, std=0.01)
        nn.init.constant_(self.dense[-1].bias, FIRST_LOG_FLUX)

    def forward(self, image: Tensor) -> Tensor:
        """Return ln of both fluxes ``(scene, 2)``."""
        for level, block in enumerate(self.convolutions):
            image = block(nn.functional.max_pool2d(image, 2) if level else image)
        return self.dense(image.flatten(1)).float()


class Blend2Flux(nn.Module):
    """Image over sky noise to both fluxes.

    Parameters
    ----------
    first_filters, hidden
        Filters of the first convolution, and width of the two hidden layers (as many if None).
    dropout
        Probability that a unit is dropped before each hidden layer.

    Raises
    ------
    ValueError
        If the number of filters is not positive.
    """

    def __init__(self, *, first_filters: int = 64, hidden: int | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        self.cnn = FluxCNN(1, first_filters=first_filters, hidden=hidden or first_filters, dropout=dropout)

    def forward(self, image: Tensor) -> PairEstimate:
        """Estimate both fluxes.

        Parameters
        ----------
        image
            Pixels over sky noise ``(scene, 1, y, x)`` of stamps of 128 x 128 pixels.

        Returns
        -------
        PairEstimate
            Without masks.
        """
        return PairEstimate(self.cnn(pixels_seen(image)), None)


class Blend2Mask2Flux(nn.Module):
    """Image over sky noise to the masks of both galaxies, and from both to the fluxes.

    Parameters
    ----------
    unet_filters, depth
        Filters at the first resolution of the U-Net, and its number of resolutions.
    first_filters, hidden
        Filters of the flux CNN's first convolution, and width of its two hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer.

    Raises
    ------
    ValueError
        If a number of filters or the depth is not positive.
    """

    def __init__(
        self,
        *,
        unet_filters: int = 32,
        depth: int = 5,
        first_filters: int = 128,
        hidden: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.unet = UNet(depth=depth, first_filters=unet_filters)
        self.cnn = FluxCNN(3, first_filters=first_filters, hidden=hidden, dropout=dropout)

    def forward(self, image: Tensor) -> PairEstimate:
        """Estimate masks and fluxes.

        Parameters
        ----------
        image
            Pixels over sky noise ``(scene, 1, y, x)`` of stamps of 128 x 128 pixels.

        Returns
        -------
        PairEstimate
            With masks.
        """
        mask = self.unet(image).float()
        return PairEstimate(self.cnn(torch.cat([pixels_seen(image), mask.sigmoid()], 1)), mask)
