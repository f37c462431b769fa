"""The number of galaxies: image to the logits of one, two, and three or more.

The encoder is the contracting path of a trained U-Net, frozen. The mean and the largest value of its features at every
resolution reflect how much light there is and how far apart; two hidden layers turn them into logits. Although the
U-Net was trained on pairs, its features predict the number better than convolutions trained on these stamps.

In simulated stamps the central galaxy is always centered, so off-center light would give a companion away. Real
catalogs center on the light, whether of one galaxy or of two. Every image is therefore first shifted until its light is
centered.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from .composite import Blend2Mask2Flux
from .layers import Readout, stretch

__all__ = ["CountNetwork", "recenter"]

WINDOW = 4.0  # standard deviation of the window in pixels, a little more than the FWHM of a PSF
FARTHEST = 8.0  # pixels from the center of the stamp
CHUNK = 64  # blends at a time


def recenter(image: Tensor) -> Tensor:
    """Shift square images ``(blend, band, y, x)`` by whole pixels so that the light around the center is centered.

    The center of light is that in a Gaussian window which follows it: the windowed position of SExtractor (Bertin &
    Arnouts 1996, doi:10.1051/aas:1996164), at most 8 pixels from the center of the stamp. The shift is
    periodic, because padding with zeros would reveal it.
    """
    light, size = image.mean(1), image.shape[-1]
    pixels = torch.arange(size, device=image.device)
    center = image.new_zeros(len(image), 2)
    for _ in range(10):
        distance = pixels - (size - 1) / 2 - center[..., None]
        weight = torch.exp(-distance.square() / (2 * WINDOW**2))
        along_x = torch.einsum("byx,by->bx", light, weight[:, 1])
        along_y = torch.einsum("byx,bx->by", light, weight[:, 0])
        profile = torch.stack([along_x, along_y], 1) * weight
        total = profile[:, :1].sum(-1).clamp(min=1.0)
        center = (center + 2 * (profile * distance).sum(-1) / total).clamp(-FARTHEST, FARTHEST)
    column, row = ((pixels + shift[:, None]) % size for shift in center.round().long().unbind(-1))
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
        Probability that a unit is dropped before each hidden layer, in training only.
    classes
        Number of classes: one galaxy, two, ..., and this many or more.

    Raises
    ------
    TypeError
        If the encoder has no U-Net.
    ValueError
        If there are fewer than two classes or no hidden units.
    """

    def __init__(self, encoder: Blend2Mask2Flux, *, hidden: int = 128, dropout: float = 0.1, classes: int = 3) -> None:
        super().__init__()
        if not isinstance(encoder, Blend2Mask2Flux):
            raise TypeError(f"encoder must be a Blend2Mask2Flux, which has a U-Net, got {type(encoder).__name__}")
        for name, value, least in (("classes", classes, 2), ("hidden", hidden, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.encoder = encoder.unet.eval().requires_grad_(False)
        self.classes = classes
        self.settings = {"hidden": hidden, "dropout": dropout, "classes": classes}
        inputs = 2 * sum(block[0].out_channels for block in self.encoder.down)
        self.register_buffer("temperature", torch.ones(()))
        self.readout = Readout(inputs, hidden, dropout=dropout)
        self.out = nn.Linear(hidden, classes)

    def train(self, mode: bool = True) -> CountNetwork:
        """Switch dropout on or off; the encoder, which others may share, stays in evaluation mode.

        Parameters
        ----------
        mode
            Whether to switch dropout on.

        Returns
        -------
        CountNetwork
            The network itself.
        """
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, image: Tensor) -> Tensor:
        """Return mean and maximum of the features of the recentered image, by resolution: ``(blend, feature)``.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        Tensor
            Pooled features.
        """
        with torch.no_grad():
            levels = self.encoder.descend(stretch(recenter(image)))
            pooled = [pool for level in levels for pool in (level.mean((-2, -1)), level.amax((-2, -1)))]
        return torch.cat(pooled, 1).float()

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits ``(blend, class)``, divided by the temperature, from what `encode` returns.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        Tensor
            Logits of one, two, and three or more galaxies.
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
        """Return the class of a number of galaxies, from 1: the index of its logit.

        Parameters
        ----------
        count
            Numbers of galaxies.

        Returns
        -------
        Tensor
            Classes; the last one includes all larger numbers.
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
        """Set and return the temperature that is most likely for blends that were not trained on.

        It is above 1 if the network is overconfident; `features` are what `encode` returns, `count` the true numbers.

        Parameters
        ----------
        features
            What `encode` returns.
        count
            True numbers of galaxies ``(blend,)``.

        Returns
        -------
        float
            The temperature.
        """
        self.eval()
        self.temperature.fill_(1.0)
        with torch.no_grad():
            logits = self.logits(features).double()

        def loss(log_factor: float) -> float:
            return float(nn.functional.cross_entropy(logits * math.exp(log_factor), self.label(count)))

        self.temperature.fill_(math.exp(-minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
        return float(self.temperature)
