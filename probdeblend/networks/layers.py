"""The layers that the networks share: convolutions, and dropout that can be drawn as passes.

Gal and Ghahramani (2016, arXiv:1506.02142) read dropout at prediction time as samples of networks. Here a pass drops
the same units for all blends, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .concrete import ConcreteDropout, draw_uniform

__all__ = ["PassDropout", "Readout", "convolutions", "dropout_passes", "fold", "he_normal", "stretch", "unfold"]

_CENTER_SCALE = 10.0
_FARTHEST = 10.0  # in units of a feature's spread, so that one odd feature does not decide
_LEAST_SPREAD = 1e-3


def he_normal(layer: nn.Module, *, fan: int, gain: float = 2.0) -> nn.Module:
    """Start a layer so that the signal keeps its variance.

    Without it, a deep network without normalization starts out silent.

    Parameters
    ----------
    layer
        A layer with weight and bias.
    fan
        Number of inputs to each output.
    gain
        Variance that the layer must make up for; 2 before a ReLU (He et al. 2015, arXiv:1502.01852), 1 otherwise.

    Returns
    -------
    torch.nn.Module
        The layer.
    """
    nn.init.normal_(layer.weight, std=(gain / fan) ** 0.5)
    nn.init.zeros_(layer.bias)
    return layer


def fold(image: Tensor, patch: int) -> Tensor:
    """Fold each square of pixels into the channels of one position, also where there is no image to fold.

    Parameters
    ----------
    image
        ``(blend, channel, y, x)``.
    patch
        Side of the squares in pixels.

    Returns
    -------
    Tensor
        ``(blend, channel * patch ** 2, y / patch, x / patch)``, channels last in memory.
    """
    blend, channel, y, x = image.shape
    squares = image.reshape(blend, channel, y // patch, patch, x // patch, patch).permute(0, 1, 3, 5, 2, 4)
    folded = squares.reshape(blend, channel * patch**2, y // patch, x // patch)
    return folded.contiguous(memory_format=torch.channels_last)


def unfold(features: Tensor, patch: int) -> Tensor:
    """Undo `fold`.

    Parameters
    ----------
    features
        ``(blend, channel * patch ** 2, y / patch, x / patch)``.
    patch
        Side of the squares in pixels.

    Returns
    -------
    Tensor
        ``(blend, channel, y, x)``.
    """
    blend, channel, y, x = features.shape
    squares = features.reshape(blend, channel // patch**2, patch, patch, y, x).permute(0, 1, 4, 2, 5, 3)
    return squares.reshape(blend, channel // patch**2, y * patch, x * patch)


def stretch(image: Tensor) -> Tensor:
    """Return what networks see: asinh of the image, the image over its peak, and where the middle of the stamp is.

    Convolutions treat all places alike. The last channel, ``exp(-r / 10)`` with the distance r from the middle in
    pixels, tells which galaxy is the central one.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``.

    Returns
    -------
    Tensor
        Channels ``(blend, 2 band + 1, y, x)``.
    """
    peak = image.amax((-3, -2, -1), keepdim=True).clamp(min=1.0)
    y, x = (torch.arange(size, device=image.device) - (size - 1) / 2 for size in image.shape[-2:])
    center = torch.exp(-torch.hypot(y[:, None], x) / _CENTER_SCALE).to(image)
    return torch.cat([torch.asinh(image), image / peak, center.expand(len(image), 1, -1, -1)], 1)


def convolutions(inputs: int, outputs: int, *, count: int, norm: bool) -> nn.Sequential:
    """Build 3 x 3 convolutions, each followed by ReLU and before it, if asked, by group normalization.

    Parameters
    ----------
    inputs, outputs
        Number of channels.
    count
        Number of convolutions.
    norm
        Normalize in groups of up to 8 channels (Wu and He 2018, arXiv:1803.08494).

    Returns
    -------
    torch.nn.Sequential
        The layers.
    """
    layers: list[nn.Module] = []
    for i in range(count):
        channels = outputs if i else inputs
        layers.append(he_normal(nn.Conv2d(channels, outputs, 3, padding=1), fan=9 * channels))
        if norm:
            layers.append(nn.GroupNorm(max(1, outputs // 8), outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class PassDropout(nn.Module):
    """Dropout in training, and in the passes drawn under `dropout_passes`; the identity otherwise.

    Parameters
    ----------
    probability
        Probability that a unit is dropped.
    channels
        Drop whole channels of ``(blend, channel, y, x)`` rather than single units.

    Raises
    ------
    ValueError
        If the probability is not at least 0 and below 1.
    """

    def __init__(self, probability: float, *, channels: bool = False) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be at least 0 and below 1, got {probability}")
        self.probability = probability
        self.channels = channels
        self.drawing = False

    def forward(self, features: Tensor) -> Tensor:
        """Drop units of the features.

        Parameters
        ----------
        features
            Any tensor whose first axis counts blends.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        if not (self.training or self.drawing) or self.probability == 0:
            return features
        shape = list(features.shape[:2] if self.channels else features.shape)
        shape += [1] * (features.ndim - len(shape))
        keep = 1 - self.probability
        kept = draw_uniform(shape, drawing=self.drawing, device=features.device) < keep
        return features * (kept.to(features) / keep)


class Readout(nn.Module):
    """Two hidden layers that learn from the features of a frozen encoder.

    Parameters
    ----------
    inputs
        Number of features.
    hidden
        Width of the layers.
    dropout
        Probability that a unit is dropped before each.
    concrete
        Learn the probabilities, from this one on (`~probdeblend.networks.concrete.ConcreteDropout`).
    """

    def __init__(self, inputs: int, hidden: int, *, dropout: float, concrete: bool = False) -> None:
        super().__init__()
        kind = ConcreteDropout if concrete else PassDropout
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.dense = nn.Sequential(
            kind(dropout),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            kind(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )

    def normalize(self, features: Tensor) -> None:
        """Make features of unit scale from now on.

        Parameters
        ----------
        features
            Features of many blends ``(blend, feature)``.
        """
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=_LEAST_SPREAD))

    def forward(self, features: Tensor) -> Tensor:
        """Return the last hidden layer.

        Parameters
        ----------
        features
            ``(blend, feature)``.

        Returns
        -------
        Tensor
            ``(blend, hidden)``.
        """
        return self.dense(((features - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST))

    def divergence(self) -> Tensor:
        """Return what learned dropout adds to the loss of all blends together.

        Returns
        -------
        Tensor
            Scalar in nat, the sum of ``ConcreteDropout.divergence``; zero where no dropout is learned.
        """
        pairs = zip(self.dense, self.dense[1:], strict=False)
        terms = [drop.divergence(layer) for drop, layer in pairs if isinstance(drop, ConcreteDropout)]
        return sum(terms, self.mean.new_zeros(()))


@contextmanager
def dropout_passes(network: nn.Module) -> Iterator[None]:
    """Make a network in evaluation mode drop units, the same for every blend.

    Parameters
    ----------
    network
        Any module; its other layers stay as they are.

    Yields
    ------
    None
        While the passes may be drawn.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, PassDropout | ConcreteDropout)]
    try:
        for layer in layers:
            layer.drawing = True
        yield
    finally:
        for layer in layers:
            layer.drawing = False
