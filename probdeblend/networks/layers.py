"""Layers that the networks share: convolutions, the readout of a frozen encoder, and dropout that can be drawn.

Gal and Ghahramani (2016, arXiv:1506.02142) read dropout at prediction time as samples of networks. Here a pass drops
the same units for all blends, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["PassDropout", "Readout", "convolutions", "dropout_passes", "fold", "he_normal", "hidden_layers", "stretch"]


def he_normal(layer: nn.Module, *, fan: int, gain: float = 2.0) -> nn.Module:
    """Initialize a layer of `fan` inputs per output so that the signal keeps its variance; return it.

    The gain is 2 before a ReLU (He et al. 2015, arXiv:1502.01852) and 1 otherwise. Without it, the signal dies out in
    a deep network without normalization.
    """
    nn.init.normal_(layer.weight, std=(gain / fan) ** 0.5)
    nn.init.zeros_(layer.bias)
    return layer


def fold(image: Tensor, patch: int) -> Tensor:
    """Fold squares of `patch` x `patch` pixels into channels; unlike `pixel_unshuffle`, also for an empty batch."""
    blend, channel, y, x = image.shape
    squares = image.reshape(blend, channel, y // patch, patch, x // patch, patch).permute(0, 1, 3, 5, 2, 4)
    folded = squares.reshape(blend, channel * patch**2, y // patch, x // patch)
    return folded.contiguous(memory_format=torch.channels_last)


def stretch(image: Tensor) -> Tensor:
    """Return the channels ``(blend, 2 band + 1, y, x)`` that networks see of pixels over sky noise.

    They are the asinh of the image, the image over its peak, and ``exp(-r / 10)`` with the distance r from the center
    of the stamp in pixels: convolutions treat all positions alike, this channel marks the central galaxy.
    """
    peak = image.amax((-3, -2, -1), keepdim=True).clamp(min=1.0)
    y, x = (torch.arange(size, device=image.device) - (size - 1) / 2 for size in image.shape[-2:])
    center = torch.exp(-torch.hypot(y[:, None], x) / 10).to(image)
    return torch.cat([torch.asinh(image), image / peak, center.expand(len(image), 1, -1, -1)], 1)


def convolutions(inputs: int, outputs: int, *, count: int) -> nn.Sequential:
    """Build `count` 3 x 3 convolutions, each followed by a ReLU."""
    layers = []
    for channels in (inputs, *[outputs] * (count - 1)):
        layers += [he_normal(nn.Conv2d(channels, outputs, 3, padding=1), fan=9 * channels), nn.ReLU()]
    return nn.Sequential(*layers)


class PassDropout(nn.Module):
    """Dropout of units, or of whole channels, in training and under `dropout_passes`; the identity otherwise."""

    def __init__(self, probability: float, *, channels: bool = False) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability must be at least 0 and below 1, got {probability}")
        self.probability = probability
        self.channels = channels
        self.drawing = False

    def forward(self, features: Tensor) -> Tensor:
        """Return features ``(blend, ...)`` with units dropped."""
        if not (self.training or self.drawing) or self.probability == 0:
            return features
        axis = 1 if self.channels else -1
        shape = [*features.shape[:2], *[1] * (features.ndim - 2)] if self.channels else list(features.shape)
        keep = 1 - self.probability
        if not self.drawing:
            return features * ((torch.rand(shape, device=features.device) < keep).to(features) / keep)
        # A pass is drawn on the CPU, so that it is the same network on every device.
        units = [1] * features.ndim
        units[axis] = features.shape[axis]
        return features * ((torch.rand(units) < keep).to(features) / keep)


def hidden_layers(inputs: int, hidden: int, *, dropout: float, he: bool) -> nn.Sequential:
    """Build two hidden layers with dropout before and a ReLU after each, initialized by `he_normal` or by PyTorch."""
    layers = []
    for width in (inputs, hidden):
        linear = nn.Linear(width, hidden)
        layers += [PassDropout(dropout), he_normal(linear, fan=width) if he else linear, nn.ReLU()]
    return nn.Sequential(*layers)


class Readout(nn.Module):
    """Two hidden layers that learn from the features of a frozen encoder."""

    def __init__(self, inputs: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.dense = hidden_layers(inputs, hidden, dropout=dropout, he=False)

    def normalize(self, features: Tensor) -> None:
        """Scale features to zero mean and unit variance from now on, as those of many blends ``(blend, feature)``."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        """Return the last hidden layer ``(blend, hidden)``; features stay within 10 standard deviations."""
        return self.dense(((features - self.mean) / self.scale).clamp(-10, 10))


@contextmanager
def dropout_passes(network: nn.Module) -> Iterator[None]:
    """Make a network in evaluation mode drop units, the same for every blend."""
    layers = [layer for layer in network.modules() if isinstance(layer, PassDropout)]
    try:
        for layer in layers:
            layer.drawing = True
        yield
    finally:
        for layer in layers:
            layer.drawing = False
