"""What refinement draws from: for each blend a mixture of Student-t distributions about its modes.

A mixture learns from its weighted draws: each draw is divided among the modes in proportion to their densities there,
and modes take on the shares and moments of their draws (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scene import seed_of

__all__ = ["Mixture"]

DEGREES = 6.0  # of freedom
OWN = 50.0  # effective draws that the present moments are worth beside those of the weighted draws
LEAST = 1e-300  # keeps weights that add up to zero from dividing by it


@dataclass(frozen=True, eq=False)
class Mixture:
    """Student-t distributions of six degrees of freedom.

    Each mode of a blend has a mean ``(mode, blend, number)``, a covariance ``(mode, blend, number, number)`` and a
    share ``(mode, blend)``; shares add up to one.
    """

    mean: Tensor
    covariance: Tensor
    share: Tensor

    @cached_property
    def _scale(self) -> Tensor:
        """Lower triangular factors ``(mode, blend, number, number)``."""
        return torch.linalg.cholesky(self.covariance * (DEGREES - 2) / DEGREES)

    def draw(self, draws: int, seeds: list[int]) -> Tensor:
        """Draw unknowns ``(draw, blend, number)``, as many of each mode as its share; every blend has its own seed."""
        edges, columns = self.share.cumsum(0), []
        for blend, seed in enumerate(seeds):
            torch.manual_seed(seed_of(seed, 3))
            place = (torch.arange(draws) + torch.rand(())) / draws
            mode = (place[:, None] > edges[:, blend]).sum(-1).clamp(max=len(edges) - 1)
            modes = [self._drawn(number, blend, draws, seed) for number in range(len(edges))]
            columns.append(torch.stack(modes)[mode, torch.arange(draws)])
        return torch.stack(columns, 1)

    def _drawn(self, mode: int, blend: int, draws: int, seed: int) -> Tensor:
        """Draw unknowns ``(draw, number)`` from one mode of a blend."""
        torch.manual_seed(seed_of(seed, 2, mode) if mode else seed)
        normal = torch.randn(draws, self.mean.shape[-1], dtype=torch.float64)
        stretch = (DEGREES / torch.distributions.Chi2(DEGREES).sample((draws, 1))).double().sqrt()
        return self.mean[mode, blend] + stretch * normal @ self._scale[mode, blend].T

    def log_prob(self, unknown: Tensor) -> Tensor:
        """Return the density ``(..., blend)`` of unknowns ``(..., blend, number)``."""
        return self._each(unknown).logsumexp(0)

    def divided(self, unknown: Tensor, weight: Tensor) -> Tensor:
        """Divide weights of draws ``(draw, blend)`` among the modes ``(mode, draw, blend)``."""
        return weight * self._each(unknown).softmax(0)

    def _each(self, unknown: Tensor) -> Tensor:
        """Return the density under each mode times its share ``(mode, ..., blend)``."""
        settings = {"df": torch.tensor(DEGREES).double(), "validate_args": False}
        modes = zip(self.mean, self._scale, strict=True)
        parts = [dist.MultivariateStudentT(loc=mean, scale_tril=scale, **settings) for mean, scale in modes]
        density = torch.stack([part.log_prob(unknown) for part in parts])
        return density + self.share.log().reshape(len(parts), *(1,) * (unknown.ndim - 2), -1)

    def select(self, blends: NDArray) -> Mixture:
        """Return some of the blends, by their numbers or a mask."""
        return Mixture(*(value[:, blends] for value in (self.mean, self.covariance, self.share)))

    def moved(self, unknown: Tensor, weight: Tensor) -> Mixture:
        """Update the proposal toward the weighted moments; the step grows with the effective number of draws.

        Weights ``(draw, blend)`` add up to one, or are all zero, which moves nothing.
        """
        each = self.divided(unknown, weight)
        part, trust = each / each.sum(1, keepdim=True).clamp(min=LEAST), _trust(each, 1)[..., None]
        mean = torch.einsum("dbn,mdb->mbn", unknown, part)
        offset = unknown - mean[:, None]
        covariance = torch.einsum("mdbi,mdbj,mdb->mbij", offset, offset, part)
        share = torch.lerp(self.share, each.sum(1), _trust(weight, 0))
        return Mixture(
            torch.lerp(self.mean, mean, trust),
            torch.lerp(self.covariance, covariance, trust[..., None]),
            share / share.sum(0),
        )


def _trust(weight: Tensor, axis: int) -> Tensor:
    """Return how far to go toward weighted draws along an axis, from 0 to 1."""
    effective = weight.sum(axis).square() / weight.square().sum(axis).clamp(min=LEAST)
    return effective / (effective + OWN)
