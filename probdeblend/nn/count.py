"""How many galaxies: image to the logits of one, two, and three or more.

The way down of a trained U-Net is the encoder, and stays as it is. The mean and the largest value of its features at
every resolution say how much there is and how far apart; two hidden layers turn them into logits. Networks of flux and
masks learn from pairs, and yet know more of the number than the same number of blends can teach convolutions of one's
own. The temperature that divides the logits (Guo et al. 2017, arXiv:1706.04599) is fitted on held-out blends.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from .composite import Blend2Mask2Flux
from .layers import PassDropout, fold, stretch

__all__ = ["CountNetwork"]

LIMIT = 10.0
CHUNK = 64


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
    classes
        Number of classes: one galaxy, two, ..., and as many as this or more.

    Raises
    ------
    TypeError
        If the encoder has no U-Net.
    ValueError
        If there are fewer than two classes or no hidden units.
    """

    def __init__(self, encoder: Blend2Mask2Flux, *, hidden: int = 128, dropout: float = 0.2, classes: int = 3) -> None:
        super().__init__()
        if not isinstance(encoder, Blend2Mask2Flux):
            raise TypeError(f"encoder must be a Blend2Mask2Flux, which has a U-Net, got {type(encoder).__name__}")
        for name, value, least in (("classes", classes, 2), ("hidden", hidden, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.encoder = encoder.unet.eval().requires_grad_(False)
        self.classes = classes
        inputs = 2 * sum(block[0].out_channels for block in self.encoder.down)
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_scale", torch.ones(inputs))
        self.register_buffer("temperature", torch.ones(()))
        self.dense = nn.Sequential(
            PassDropout(dropout),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            PassDropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

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
            Features ``(blend, feature)``: mean and largest value over the pixels, resolution by resolution.
        """
        pooled = []
        with torch.no_grad():
            features = fold(stretch(image), self.encoder.patch)
            for level, block in enumerate(self.encoder.down):
                features = block(nn.functional.max_pool2d(features, 2) if level else features)
                pooled += [features.mean((-2, -1)), features.amax((-2, -1))]
        return torch.cat(pooled, 1).float()

    def normalize(self, features: Tensor) -> None:
        """Make features of unit scale from now on.

        Parameters
        ----------
        features
            Features of many blends ``(blend, feature)``, as `encode` returns them.
        """
        self.feature_mean.copy_(features.mean(0))
        self.feature_scale.copy_(features.std(0).clamp(min=1e-3))

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
        scaled = (features - self.feature_mean) / self.feature_scale
        return self.dense(scaled.clamp(-LIMIT, LIMIT)) / self.temperature

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
