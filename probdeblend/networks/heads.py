"""Heads: features to a joint distribution of the logarithms of both fluxes.

The residuals of networks that measure blended fluxes are heavy-tailed and anticorrelated between the two galaxies; a
head therefore has a full covariance, and the Student-t one a free number of degrees of freedom besides.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from scipy.stats import f
from torch import Tensor, nn

__all__ = ["NormalHead", "PointHead", "StudentTHead"]

_FIRST_SCALE = 0.3
_LEAST_SCALE = 1e-3
_LEAST_DEGREES = 3.0
_DRAWN = 0.99
_SPARE = 32


class PointHead(nn.Module):
    """Features to one number a flux, as in Boucaud et al. (2020): a distribution without width.

    Every head turns features into `numbers`, and these into a `distribution`; ``forward`` does both.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    """

    def __init__(self, in_features: int, fluxes: int = 2) -> None:
        super().__init__()
        self.fluxes = fluxes
        self.out = nn.Linear(in_features, self.count)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    @property
    def count(self) -> int:
        """Number of outputs a blend."""
        return self.fluxes

    def numbers(self, features: Tensor, start: Tensor) -> Tensor:
        """Return the numbers that make the distribution.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            What the location is counted from ``(blend, flux)``.

        Returns
        -------
        Tensor
            ``(blend, count)``, the location first.
        """
        out = self.out(features).float()
        return torch.cat([out[..., : self.fluxes] + start, out[..., self.fluxes :]], -1)

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        return dist.Delta(numbers, event_dim=1)

    def sample(self, numbers: Tensor, count: int) -> Tensor:
        """Draw log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.
        count
            Number of draws.

        Returns
        -------
        Tensor
            ``(count, ..., flux)``.
        """
        return self.distribution(numbers).sample((count,))

    def forward(self, features: Tensor, start: Tensor | float = 0.0) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            What the location is counted from ``(blend, flux)``.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        return self.distribution(self.numbers(features, start))


class NormalHead(PointHead):
    """Features to a normal distribution of the log-fluxes with full covariance.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    """

    @property
    def count(self) -> int:
        """Number of outputs a blend: locations, widths and the rest of the Cholesky factor."""
        return 2 * self.fluxes + self.fluxes * (self.fluxes - 1) // 2

    def location_and_scale(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return location ``(..., flux)`` and Cholesky factor ``(..., flux, flux)``.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        tuple of Tensor
            Location and scale.
        """
        n = self.fluxes
        location, width, lower = (
            numbers[..., :n],
            numbers[..., n : 2 * n],
            numbers[..., 2 * n : 2 * n + n * (n - 1) // 2],
        )
        width = nn.functional.softplus(width + math.log(math.expm1(_FIRST_SCALE))) + _LEAST_SCALE
        rows, columns = torch.tril_indices(n, n, -1)
        factor = torch.diag_embed(width)
        factor[..., rows, columns] = lower * width[..., rows]
        return location, factor

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the normal distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.MultivariateNormal
            With event shape (fluxes,).
        """
        location, factor = self.location_and_scale(numbers)
        return dist.MultivariateNormal(location, scale_tril=factor, validate_args=False)


class StudentTHead(NormalHead):
    """Features to a Student-t distribution of the log-fluxes with full covariance and free degrees of freedom.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    """

    @property
    def count(self) -> int:
        """Number of outputs a blend: those of the normal head and the degrees of freedom."""
        return super().count + 1

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the Student-t distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.

        Returns
        -------
        pyro.distributions.MultivariateStudentT
            With event shape (fluxes,), more than three degrees of freedom.
        """
        location, factor = self.location_and_scale(numbers)
        degrees = _LEAST_DEGREES + nn.functional.softplus(numbers[..., -1] + 3.0)
        return dist.MultivariateStudentT(degrees, location, factor, validate_args=False)

    def sample(self, numbers: Tensor, count: int) -> Tensor:
        """Draw log-fluxes from the 99 % region of the distribution.

        The exponential of a Student-t variable has no moments: one draw far out in its tail would decide the variance
        of the fluxes. The region is an ellipse, whose radius follows the F distribution.

        Parameters
        ----------
        numbers
            What `numbers` returns, of any batch shape.
        count
            Number of draws.

        Returns
        -------
        Tensor
            ``(count, ..., flux)``.
        """
        exact = self.distribution(numbers)
        draws = exact.sample((count + count // 20 + _SPARE,))
        whitened = torch.linalg.solve_triangular(exact.scale_tril, (draws - exact.loc)[..., None], upper=False)
        radius = whitened.square().sum((-2, -1)) / self.fluxes
        limit = torch.as_tensor(f.ppf(_DRAWN, self.fluxes, exact.df.numpy(force=True))).to(radius)
        kept = (radius > limit).long().argsort(dim=0, stable=True)[:count]
        return draws.gather(0, kept[..., None].expand(*kept.shape, self.fluxes))
