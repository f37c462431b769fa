"""How many galaxies: image to the logits of one, two, and three or more.

The way down of a trained U-Net is the encoder, and stays as it is. The mean and the largest value of its features at
every resolution say how much there is and how far apart; two hidden layers turn them into logits. The U-Net has learned
from pairs, and yet its features say more of the number than convolutions that learn from the same stamps.

The central galaxy of a simulated stamp is in the middle, whatever lies beside it, so that light off the middle would
betray a companion that nothing else does. A catalog has no such middle: it has the center of the light, of one galaxy
or two. Every image is therefore moved first, until its light is in the middle.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from .composite import Blend2Mask2Flux
from .layers import Readout, fold, stretch

__all__ = ["CountNetwork", "recenter"]

WINDOW = 4.0  # standard deviation of the window in pixels, a little more than the FWHM of a PSF
FARTHEST = 8.0
ROUNDS = 10
PROJECTIONS = (("byx,by->bx", 1), ("byx,bx->by", 0))
CHUNK = 64


def recenter(image: Tensor) -> Tensor:
    """Move each image by whole pixels, so that the light around the middle is centered there.

    The center is that of the light in a Gaussian window, which follows it: the windowed position of SExtractor (Bertin
    & Arnouts 1996, doi:10.1051/aas:1996164). It stays within 8 pixels of the middle.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``; square.

    Returns
    -------
    Tensor
        The moved image; what leaves it on one side comes in on the other one, as zeros would tell the distance.
    """
    light, size = image.mean(1), image.shape[-1]
    places = torch.arange(size, device=image.device)
    center = image.new_zeros(len(image), 2)
    for _ in range(ROUNDS):
        distance = places - (size - 1) / 2 - center[..., None]
        weight = torch.exp(-distance.square() / (2 * WINDOW**2))
        along_x, along_y = (torch.einsum(sums, light, weight[:, other]) for sums, other in PROJECTIONS)
        first = torch.stack([along_x, along_y], 1) * weight
        total = first[:, :1].sum(-1).clamp(min=1.0)
        center = (center + 2 * (first * distance).sum(-1) / total).clamp(-FARTHEST, FARTHEST)
    column, row = ((places + shift[:, None]) % size for shift in center.round().long().unbind(-1))
    blend = torch.arange(len(image), device=image.device)[:, None, None]
    return image[blend, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


class CountNetwork(nn.Module):
    """Image over sky noise to the logits of the number of galaxies.

    Parameters
    ----------
    encoder
        A trained network; its U-Net is kept, and frozen.
    hidden
        Width of the hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer, in training alone.
    concrete
        Learn these probabilities, from this one on.
    classes
        Number of classes: one galaxy, two, ..., and as many as this or more.

    Raises
    ------
    TypeError
        If the encoder has no U-Net.
    ValueError
        If there are fewer than two classes or no hidden units.
    """

    def __init__(
        self,
        encoder: Blend2Mask2Flux,
        *,
        hidden: int = 128,
        dropout: float = 0.1,
        concrete: bool = False,
        classes: int = 3,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Blend2Mask2Flux):
            raise TypeError(f"encoder must be a Blend2Mask2Flux, which has a U-Net, got {type(encoder).__name__}")
        for name, value, least in (("classes", classes, 2), ("hidden", hidden, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.encoder = encoder.unet.eval().requires_grad_(False)
        self.classes = classes
        self.settings = {"hidden": hidden, "dropout": dropout, "concrete": concrete, "classes": classes}
        inputs = 2 * sum(block[0].out_channels for block in self.encoder.down)
        self.register_buffer("temperature", torch.ones(()))
        self.readout = Readout(inputs, hidden, dropout=dropout, concrete=concrete)
        self.out = nn.Linear(hidden, classes)

    def train(self, mode: bool = True) -> CountNetwork:
        """Switch dropout on or off; the encoder stays without.

        Parameters
        ----------
        mode
            Whether to train.

        Returns
        -------
        CountNetwork
            Itself.
        """
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, image: Tensor) -> Tensor:
        """Return what is computed once a blend.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        Tensor
            Features ``(blend, feature)`` of the recentered image: mean and largest value over the pixels, resolution by
            resolution.
        """
        pooled = []
        with torch.no_grad():
            features = fold(stretch(recenter(image)), self.encoder.patch)
            for level, block in enumerate(self.encoder.down):
                features = block(nn.functional.max_pool2d(features, 2) if level else features)
                pooled += [features.mean((-2, -1)), features.amax((-2, -1))]
        return torch.cat(pooled, 1).float()

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits, from features.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            ``(blend, class)``, divided by the temperature.
        """
        return self.out(self.readout(features)) / self.temperature

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of one galaxy, two, ..., and as many as there are classes or more.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        Tensor
            ``(blend, class)``.
        """
        return self.logits(self.encode(image))

    def label(self, count: Tensor) -> Tensor:
        """Return the class of a number of galaxies.

        Parameters
        ----------
        count
            Numbers of galaxies, from 1, of any shape.

        Returns
        -------
        Tensor
            Index of the logit; that of the last for all numbers beyond.
        """
        return count.clamp(1, self.classes) - 1

    def probability(self, image: Tensor) -> NDArray[np.float64]:
        """Return the probability of one galaxy, two, ..., and as many as there are classes or more.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        NDArray
            ``(blend, class)``.
        """
        self.eval()
        with torch.no_grad():
            logits = torch.cat([self(chunk) for chunk in image.split(CHUNK)])
        return logits.double().softmax(1).cpu().numpy()

    def fit_temperature(self, features: Tensor, count: Tensor) -> float:
        """Replace the temperature that divides the logits by the most likely one.

        Parameters
        ----------
        features
            What `encode` says of blends that the network has not learned from ``(blend, feature)``.
        count
            True numbers of galaxies ``(blend,)``, from 1.

        Returns
        -------
        float
            The temperature: above 1 for a network that was too sure of itself.
        """
        self.eval()
        self.temperature.fill_(1.0)
        with torch.no_grad():
            logits = self.logits(features).double()

        def loss(cold: float) -> float:
            return float(nn.functional.cross_entropy(logits * math.exp(cold), self.label(count)))

        self.temperature.fill_(math.exp(-minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
        return float(self.temperature)
