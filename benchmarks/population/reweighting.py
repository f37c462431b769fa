"""Reweighted priors: one concentrated in magnitude, and one that reproduces a recovered population."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdeblend.scene import Components, Instrument
from probdeblend.simulation.prior import Prior, nested_tuples

__all__ = ["Imitation", "concentrated"]


@dataclass(frozen=True, eq=False)
class Imitation:
    """A recovered population, to be simulated as a `Prior` is: `pairs` that the prior sampled, taken by probability."""

    prior: Prior
    pairs: dict[str, Tensor]
    probability: NDArray[np.float64]

    def sample(self, count: int, *, seed: int) -> dict[str, Tensor]:
        """Draw pairs, as ``Prior.sample``; a pair may come more than once."""
        rng = np.random.default_rng(seed)
        chosen = torch.from_numpy(rng.choice(len(self.probability), count, p=self.probability))
        return {name: value[chosen] for name, value in self.pairs.items()}

    def components(self, pairs: Mapping[str, Tensor], instrument: Instrument, *, seed: int) -> Components:
        """Turn galaxies into light, as ``Prior.components``."""
        return self.prior.components(pairs, instrument, seed=seed)


def concentrated(prior: Prior, *, center: float, width: float) -> Prior:
    """Return the prior with galaxies weighted by a Gaussian in AB magnitude, and nothing else changed.

    Types, radii and shapes of galaxies of a magnitude stay, so that posteriors under the one prior tell of the other.
    The prior's Gaussians times a Gaussian are Gaussians: the product is exact.
    """
    mean, covariance = np.array(prior.means), np.array(prior.covariances)
    variance = covariance[..., 0, 0] + width**2
    offset, gain = center - mean[..., 0], covariance[..., 0] / variance[..., None]
    weight = np.array(prior.weights) * np.exp(-(offset**2) / (2 * variance)) / np.sqrt(variance)
    share = np.array(prior.type_probabilities) * weight.sum(1)
    return replace(
        prior,
        type_probabilities=nested_tuples((share / share.sum()).tolist()),
        weights=nested_tuples((weight / weight.sum(1, keepdims=True)).tolist()),
        means=nested_tuples((mean + gain * offset[..., None]).tolist()),
        covariances=nested_tuples((covariance - gain[..., None] * covariance[..., :1, :]).tolist()),
    )
