"""What refinement draws from: a mixture of Student-t distributions about the modes of a scene's posterior.

A mixture learns from its weighted draws: each draw is divided among the modes in proportion to their densities there,
and modes take on the shares and moments of their draws (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Mixture"]

DEGREES = 6.0  # of freedom
OWN = 50.0  # effective draws that the present moments are worth beside those of the weighted draws
LEAST = 1e-300  # keeps weights that add up to zero from dividing by it


@dataclass(frozen=True, eq=False)
class Mixture:
    """Student-t distributions of six degrees of freedom.

    Each mode has a mean ``(mode, number)``, a covariance ``(mode, number, number)`` and a share ``(mode,)``; shares add
    up to one.
    """

    mean: Tensor
    covariance: Tensor
    share: Tensor

    @cached_property
    def _scale(self) -> Tensor:
        """Lower triangular factors ``(mode, number, number)``."""
        return torch.linalg.cholesky(self.covariance * (DEGREES - 2) / DEGREES)

    def draw(self, draws: int) -> Tensor:
        """Draw vectors ``(draw, number)`` from torch's generator, as many of each mode as its share."""
        place = (torch.arange(draws) + torch.rand(())) / draws
        mode = (place[:, None] > self.share.cumsum(0)).sum(-1).clamp(max=len(self.share) - 1)
        normal = torch.randn(draws, self.mean.shape[-1], dtype=torch.float64)
        stretch = (DEGREES / torch.distributions.Chi2(DEGREES).sample((draws, 1))).double().sqrt()
        return self.mean[mode] + stretch * (self._scale[mode] @ normal[..., None])[..., 0]

    def log_prob(self, vector: Tensor) -> Tensor:
        """Return the density of vectors ``(draw, number)``."""
        return self._each(vector).logsumexp(0)

    def _each(self, vector: Tensor) -> Tensor:
        """Return the density under each mode times its share ``(mode, draw)``."""
        degrees = torch.tensor(DEGREES).double()
        modes = dist.MultivariateStudentT(degrees, self.mean[:, None], self._scale[:, None], validate_args=False)
        return modes.log_prob(vector) + self.share.log()[:, None]

    def moved(self, vector: Tensor, weight: Tensor) -> Mixture:
        """Update toward the weighted moments of draws; the step grows with their effective number.

        Weights ``(draw,)`` add up to one, or are all zero, which moves nothing.
        """
        each = weight * self._each(vector).softmax(0)
        part, trust = each / each.sum(1, keepdim=True).clamp(min=LEAST), _trust(each)[:, None]
        mean = part @ vector
        offset = vector - mean[:, None]
        covariance = torch.einsum("mdi,mdj,md->mij", offset, offset, part)
        share = torch.lerp(self.share, each.sum(1), _trust(weight))
        return Mixture(
            torch.lerp(self.mean, mean, trust),
            torch.lerp(self.covariance, covariance, trust[..., None]),
            share / share.sum(),
        )


def _trust(weight: Tensor) -> Tensor:
    """Return how far to go toward weighted draws ``(..., draw)``, from 0 to 1."""
    effective = weight.sum(-1).square() / weight.square().sum(-1).clamp(min=LEAST)
    return effective / (effective + OWN)
