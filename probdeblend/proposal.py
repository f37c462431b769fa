"""What refinement draws from: Student-t distributions, one a blend, in coordinates of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import IndependentTransform, Transform, identity_transform

__all__ = ["Proposal"]

DEGREES = 6.0
SAME = 1e-6  # in coordinates there and back


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

    def moved(self, mean: Tensor, covariance: Tensor, share: Tensor) -> Proposal:
        """Go some of the way to other moments.

        Parameters
        ----------
        mean, covariance
            The other moments in coordinates, of the shapes of `center` and `covariance`.
        share
            How far ``(blend,)``: 0 stays, 1 has the other moments.

        Returns
        -------
        Proposal
            In the same coordinates.
        """
        center = torch.lerp(self.center, mean, share[:, None])
        return Proposal(center, torch.lerp(self.covariance, covariance, share[:, None, None]), self.coordinates)
