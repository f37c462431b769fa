"""The networks of Boucaud et al. (2020, doi:10.1093/mnras/stz3056), and of the study before it.

Blend2Flux and Blend2Mask2Flux measure both fluxes of a pair in a stamp, galaxy 0 in its middle, as numbers without an
uncertainty. Blend2Flux sees the image alone: five 3 x 3 convolutions of f, f, 2f, 2f and 4f filters with max-pooling
between them, two hidden layers and two fluxes; 1.6, 25.7 and 102.7 million parameters for f = 64, 256 and 512.
Blend2Mask2Flux sees the image and the two masks of its U-Net: with f = 128 and hidden layers of 256 it has 18.4
million, the paper says 18.5.

The fully convolutional network (Long, Shelhamer and Darrell 2015, arXiv:1411.4038) labels every pixel as background,
first galaxy alone, second galaxy alone, or overlap of the two: five stages of convolutions and pooling, scores of the
labels at strides 32, 16 and 8, each doubled in size and added to the next finer one, and the last enlarged to the
image.

All see asinh of the pixels, as bright cores would drown all else. Benchmarks train them.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..scene import STAMP_SIZE

__all__ = ["LABELS", "Blend2Flux", "Blend2Mask2Flux", "FullyConvolutional", "PairEstimate", "UNet"]

FIRST_LOG_FLUX = 9.0  # ln of the flux of a galaxy of 22.5 mag over the noise of CANDELS: where training starts
LABELS = ("background", "first", "second", "overlap")
PATCH = 2  # pixels on a side that the fully convolutional network folds into channels


def _convolutions(*channels: int) -> nn.Sequential:
    """Build 3 x 3 convolutions, each followed by a ReLU."""
    if min(channels) < 1:
        raise ValueError(f"first_filters must be at least 1, got {min(channels)}")
    layers = []
    for pair in pairwise(channels):
        layers += [nn.Conv2d(*pair, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _he_normal(layer: nn.Module) -> None:
    """Initialize a layer so that the signal keeps its variance (He et al. 2015, arXiv:1502.01852).

    Without it, the signal dies out in a deep network without normalization.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


class UNet(nn.Module):
    """Image over sky noise ``(scene, 1, y, x)`` to the logits of both masks ``(scene, 2, y, x)``.

    Filters double with every halving of the resolution (Ronneberger, Fischer and Brox 2015, arXiv:1505.04597); sides
    must be divisible by ``2 ** (depth - 1)``.
    """

    def __init__(self, *, depth: int = 5, first_filters: int = 32) -> None:
        super().__init__()
        if depth < 1 or first_filters < 1:
            raise ValueError(f"depth and first_filters must be at least 1, got {depth} and {first_filters}")
        widths = [first_filters * 2**level for level in range(depth)]
        self.down = nn.ModuleList(_convolutions(inputs, width, width) for inputs, width in pairwise([1, *widths]))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.up = nn.ModuleList(_convolutions(2 * width, width, width) for width in widths[:-1])
        self.out = nn.Conv2d(first_filters, 2, 1)
        self.apply(_he_normal)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        levels = [self.down[0](image.asinh())]
        for block in self.down[1:]:
            levels.append(block(functional.max_pool2d(levels[-1], 2)))
        features = levels.pop()
        for grow, block, skip in zip(self.grow[::-1], self.up[::-1], levels[::-1], strict=True):
            features = block(torch.cat([grow(features), skip], 1))
        return self.out(features)


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


def _flux_cnn(channels: int, *, first_filters: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build the network from stamps to ln of both fluxes."""
    filters = [channels, *(first_filters * times for times in (1, 1, 2, 2, 4))]
    layers = []
    for pair in pairwise(filters):
        layers += [*_convolutions(*pair), nn.MaxPool2d(2)]
    layers[-1] = nn.Flatten()
    for inputs in (filters[-1] * (STAMP_SIZE // 16) ** 2, hidden):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(hidden, 2)).apply(_he_normal)
    nn.init.normal_(network[-1].weight, std=0.01)
    nn.init.constant_(network[-1].bias, FIRST_LOG_FLUX)
    return network


class Blend2Flux(nn.Module):
    """Image over sky noise to both fluxes.

    Parameters
    ----------
    first_filters
        Filters of the first convolution, and width of the two hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer.

    Raises
    ------
    ValueError
        If the number of filters is not positive.
    """

    def __init__(self, *, first_filters: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.cnn = _flux_cnn(1, first_filters=first_filters, hidden=first_filters, dropout=dropout)

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
        return PairEstimate(self.cnn(image.asinh()).float(), None)


class Blend2Mask2Flux(nn.Module):
    """Image over sky noise to the masks of both galaxies, and from both to the fluxes.

    Parameters
    ----------
    unet_filters
        Filters at the first resolution of the U-Net.
    first_filters, hidden
        Filters of the flux CNN's first convolution, and width of its two hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer.

    Raises
    ------
    ValueError
        If a number of filters is not positive.
    """

    def __init__(
        self, *, unet_filters: int = 32, first_filters: int = 128, hidden: int = 256, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.unet = UNet(first_filters=unet_filters)
        self.cnn = _flux_cnn(3, first_filters=first_filters, hidden=hidden, dropout=dropout)

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
        return PairEstimate(self.cnn(torch.cat([image.asinh(), mask.sigmoid()], 1)).float(), mask)


class FullyConvolutional(nn.Module):
    """Image over sky noise to the logits of the four labels ``(scene, label, y, x)``.

    Squares of 2 x 2 pixels are folded into channels first, which is the first halving.

    Parameters
    ----------
    first_filters
        Channels of the first stage; they double up to the fourth.
    dropout
        Probability that a channel of the coarsest features is dropped.

    Raises
    ------
    ValueError
        If the number of filters is not positive.
    """

    def __init__(self, *, first_filters: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        widths = [first_filters * 2 ** min(stage, 3) for stage in range(5)]
        channels = pairwise([PATCH**2, *widths])
        self.stages = nn.ModuleList(_convolutions(inputs, width, width) for inputs, width in channels)
        self.dropout = nn.Dropout2d(dropout)
        self.scores = nn.ModuleList(nn.Conv2d(width, len(LABELS), 1) for width in widths[:1:-1])
        self.apply(_he_normal)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the labels.

        Parameters
        ----------
        image
            Pixels over sky noise ``(scene, 1, y, x)``, sides multiples of 32.

        Returns
        -------
        Tensor
            Logits ``(scene, label, y, x)`` in the order background, first, second, overlap.
        """
        kept = [self.stages[0](functional.pixel_unshuffle(image.asinh(), PATCH))]
        for stage in self.stages[1:]:
            kept.append(stage(functional.max_pool2d(kept[-1], 2)))
        total = self.scores[0](self.dropout(kept[-1]))
        for score, level in zip(self.scores[1:], kept[-2::-1], strict=False):
            total = score(level) + _enlarge(total, 2)
        return _enlarge(total, image.shape[-1] // total.shape[-1])


def _enlarge(maps: Tensor, factor: int) -> Tensor:
    return functional.interpolate(maps.float(), scale_factor=factor, mode="bilinear", align_corners=False)
