"""What refinement draws from: Student-t distributions about the modes of each blend, and their mixture.

A mixture learns from its weighted draws: each is divided among the modes as likely as it came from them, and modes have
shares and moments of what they are given (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions.transforms import IndependentTransform, Transform, identity_transform

from ..scene import seed_of

__all__ = ["Mixture", "Proposal"]

DEGREES = 6.0
SAME = 1e-6  # in coordinates there and back
OWN = 50.0  # effective draws that a proposal is worth beside the weighted ones
LEAST = 1e-300  # of a weight, to be divided by


@dataclass(frozen=True, eq=False)
class Proposal:
    """Student-t distributions of six degrees of freedom.

    Parameters
    ----------
    center, covariance
        Their moments in coordinates ``(blend, number)`` and ``(blend, number, number)``.
    coordinates
        The bijection from these to the unknowns; they are the unknowns themselves unless it is given.
    """

    center: Tensor
    covariance: Tensor
    coordinates: Transform = field(default_factory=lambda: IndependentTransform(identity_transform, 1))

    def _student_t(self) -> dist.MultivariateStudentT:
        scale = torch.linalg.cholesky(self.covariance * (DEGREES - 2) / DEGREES)
        return dist.MultivariateStudentT(torch.tensor(DEGREES).double(), self.center, scale, validate_args=False)

    def draw(self, draws: int, seeds: list[int]) -> Tensor:
        """Draw unknowns.

        Parameters
        ----------
        draws
            Number of draws.
        seeds
            One a blend.

        Returns
        -------
        Tensor
            ``(draw, blend, number)``.
        """
        scale, places = self._student_t().scale_tril, []
        for center, factor, seed in zip(self.center, scale, seeds, strict=True):
            torch.manual_seed(seed)
            normal = torch.randn(draws, len(center), dtype=torch.float64)
            stretch = (DEGREES / torch.distributions.Chi2(DEGREES).sample((draws, 1))).double().sqrt()
            places.append(center + stretch * normal @ factor.T)
        return self.coordinates(torch.stack(places, 1))

    def log_prob(self, unknown: Tensor) -> Tensor:
        """Return the density of unknowns.

        Parameters
        ----------
        unknown
            ``(..., blend, number)``.

        Returns
        -------
        Tensor
            ``(..., blend)``; minus infinity for what coordinates do not reach.
        """
        place = self.coordinates.inv(unknown)
        density = self._student_t().log_prob(place) - self.coordinates.log_abs_det_jacobian(place, unknown)
        reached = torch.isclose(self.coordinates(place), unknown, rtol=0.0, atol=SAME).all(-1)
        return torch.where(reached, density, -math.inf)

    def moved(self, unknown: Tensor, weight: Tensor) -> Proposal:
        """Go towards the moments of weighted draws, the farther the more of them are effective.

        Parameters
        ----------
        unknown
            ``(draw, blend, number)``.
        weight
            Of each draw ``(draw, blend)``.

        Returns
        -------
        Proposal
            In the same coordinates.
        """
        share, part = _trust(weight)[:, None], weight / weight.sum(0).clamp(min=LEAST)
        place = self.coordinates.inv(unknown)
        mean = torch.einsum("dbn,db->bn", place, part)
        offset = place - mean
        covariance = torch.einsum("dbn,dbm,db->bnm", offset, offset, part)
        center = torch.lerp(self.center, mean, share)
        return Proposal(center, torch.lerp(self.covariance, covariance, share[..., None]), self.coordinates)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Some proposals for the same blends.

    Parameters
    ----------
    parts
        The proposals, each about a mode of its own.
    share
        Of each one ``(part, blend)``; adds up to one.
    """

    parts: list[Proposal]
    share: Tensor

    def draw(self, draws: int, seeds: list[int]) -> Tensor:
        """Draw unknowns, from each part as many as are its share, to one.

        Parameters
        ----------
        draws
            Number of draws.
        seeds
            One a blend.

        Returns
        -------
        Tensor
            ``(draw, blend, number)``.
        """
        offset = []
        for seed in seeds:
            torch.manual_seed(seed_of(seed, 3))
            offset.append(torch.rand(()))
        place = (torch.arange(draws)[:, None] + torch.stack(offset)) / draws
        part = (place[..., None] > self.share.cumsum(0).T).sum(-1).clamp(max=len(self.parts) - 1)
        unknown = self.parts[0].draw(draws, seeds)
        for number, other in enumerate(self.parts[1:], 1):
            drawn = other.draw(draws, [seed_of(seed, 2, number) for seed in seeds])
            unknown = torch.where((part == number)[..., None], drawn, unknown)
        return unknown

    def log_prob(self, unknown: Tensor) -> Tensor:
        """Return the density of unknowns.

        Parameters
        ----------
        unknown
            ``(..., blend, number)``.

        Returns
        -------
        Tensor
            ``(..., blend)``.
        """
        return self._each(unknown).logsumexp(0)

    def divided(self, unknown: Tensor, weight: Tensor) -> Tensor:
        """Divide weights of draws among the parts, as likely as the draws are theirs.

        Parameters
        ----------
        unknown
            ``(draw, blend, number)``.
        weight
            Of each draw ``(draw, blend)``.

        Returns
        -------
        Tensor
            ``(part, draw, blend)``: adds up to the weight, but where no part reaches.
        """
        return weight * self._each(unknown).softmax(0).nan_to_num(0.0)

    def _each(self, unknown: Tensor) -> Tensor:
        """Return the density of each part, its share in it ``(part, ..., blend)``."""
        parts = zip(self.parts, self.share, strict=True)
        return torch.stack([part.log_prob(unknown) + share.log() for part, share in parts])

    def select(self, blends: NDArray) -> Mixture:
        """Take some of the blends, of proposals in the coordinates of the unknowns.

        Parameters
        ----------
        blends
            Their numbers, or which of them.

        Returns
        -------
        Mixture
            Of these alone.
        """
        parts = [Proposal(part.center[blends], part.covariance[blends]) for part in self.parts]
        return Mixture(parts, self.share[:, blends])

    def moved(self, unknown: Tensor, weight: Tensor) -> Mixture:
        """Go towards weighted draws.

        Parameters
        ----------
        unknown
            ``(draw, blend, number)``.
        weight
            Of each draw ``(draw, blend)``, adding up to one; or zero, which moves nothing.

        Returns
        -------
        Mixture
            Of as many parts.
        """
        each = self.divided(unknown, weight)
        share = torch.lerp(self.share, each.sum(1), _trust(weight))
        moved = [part.moved(unknown, own) for part, own in zip(self.parts, each, strict=True)]
        return Mixture(moved, share / share.sum(0))


def _trust(weight: Tensor) -> Tensor:
    """Return how far to go towards weighted draws ``(blend,)``, from 0 to 1."""
    effective = weight.sum(0).square() / weight.square().sum(0).clamp(min=LEAST)
    return effective / (effective + OWN)
