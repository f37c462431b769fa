"""Dropout that learns its own probability (Gal, Hron and Kendall 2017, arXiv:1705.07832).

Whether a unit is dropped is a number between 0 and 1 that a gradient passes through: a draw of the concrete
distribution (Maddison et al. 2017, arXiv:1611.00712), which is mostly close to one of the two. The likelihood
alone would drop nothing. What holds against it is the divergence from the posterior over weights, which dropout is, to
their prior; training minimizes the mean negative log-likelihood of a blend plus this divergence over the number of
blends. With few blends much is dropped, with many little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ConcreteDropout", "draw_uniform"]

_TEMPERATURE = 0.1  # of the paper: low enough for zeros and ones, high enough for a gradient


def draw_uniform(shape: Sequence[int], *, drawing: bool, device: torch.device) -> Tensor:
    """Draw the numbers between 0 and 1 that say which units are dropped.

    Parameters
    ----------
    shape
        Of the units, the blends first.
    drawing
        Whether a pass is drawn, which drops the same for every blend.
    device
        Where the units are.

    Returns
    -------
    Tensor
        Of this shape on this device; in a pass of one blend, and on the CPU.
    """
    # Drawn on the CPU, so that a pass is the same network on every device.
    return torch.rand((1, *shape[1:])) if drawing else torch.rand(shape, device=device)


class ConcreteDropout(nn.Module):
    """Dropout of a learned probability in training, and in passes of dropout; the identity otherwise.

    Parameters
    ----------
    probability
        Probability that a unit is dropped, before it is learned.

    Attributes
    ----------
    drawing : bool
        Whether passes are drawn, which drop the same for every blend.

    Raises
    ------
    ValueError
        If the probability is not between 0 and 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1 to be learned, got {probability}")
        self.logit = nn.Parameter(torch.tensor(math.log(probability / (1 - probability))))
        self.drawing = False

    @property
    def probability(self) -> Tensor:
        """Probability that a unit is dropped: a scalar with a gradient."""
        return self.logit.sigmoid()

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
        if not (self.training or self.drawing):
            return features
        uniform = draw_uniform(features.shape, drawing=self.drawing, device=features.device)
        kept = ((uniform.to(features).logit() - self.logit) / _TEMPERATURE).sigmoid()
        return features * kept / (1 - self.probability)

    def divergence(self, layer: nn.Linear) -> Tensor:
        """Return the Kullback-Leibler divergence from dropout before a layer to the prior of its weights.

        Weights are independent and normal a priori, with standard deviation 1. Kept units are multiplied by
        ``1 / (1 - probability)``; the weights of the paper, which are not, are larger than the layer's by that factor.

        Parameters
        ----------
        layer
            The layer behind the dropout.

        Returns
        -------
        Tensor
            Scalar in nat, up to a constant: it may be negative.
        """
        entropy = nn.functional.softplus(self.logit) - self.logit * self.probability
        return layer.weight.square().sum() / (2 * (1 - self.probability)) - layer.in_features * entropy
