"""Layers that the networks of Boucaud et al. (2020) share: convolutions, and how they are initialized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["convolutions", "he_normal", "pixels_seen"]


def he_normal(layer: nn.Module, *, fan: int, gain: float = 2.0) -> nn.Module:
    """Initialize a layer of `fan` inputs per output so that the signal keeps its variance; return it.

    The gain is 2 before a ReLU (He et al. 2015, arXiv:1502.01852) and 1 otherwise. Without it, the signal dies out in
    a deep network without normalization.
    """
    nn.init.normal_(layer.weight, std=(gain / fan) ** 0.5)
    nn.init.zeros_(layer.bias)
    return layer


def convolutions(inputs: int, outputs: int, *, count: int) -> nn.Sequential:
    """Build `count` 3 x 3 convolutions, each followed by a ReLU."""
    layers = []
    for channels in (inputs, *[outputs] * (count - 1)):
        layers += [he_normal(nn.Conv2d(channels, outputs, 3, padding=1), fan=9 * channels), nn.ReLU()]
    return nn.Sequential(*layers)


def pixels_seen(image: Tensor) -> Tensor:
    """Return what the networks see of pixels over sky noise: their asinh, as bright cores would drown all else."""
    return torch.asinh(image)
