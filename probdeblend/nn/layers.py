"""The layers that the networks share: convolutions, and dropout that can be drawn as passes.

Gal and Ghahramani (2016, arXiv:1506.02142) read dropout at prediction time as samples of networks. Here a pass drops
the same units for all blends, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["PassDropout", "convolutions", "dropout_passes"]


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
        layers.append(nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1))
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
        if self.drawing:
            shape[0] = 1
        keep = 1 - self.probability
        # Drawn on the CPU, so that a pass is the same network on every device.
        kept = torch.rand(shape) < keep if self.drawing else torch.rand(shape, device=features.device) < keep
        return features * (kept.to(features) / keep)


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
    layers = [layer for layer in network.modules() if isinstance(layer, PassDropout)]
    try:
        for layer in layers:
            layer.drawing = True
        yield
    finally:
        for layer in layers:
            layer.drawing = False
