"""Heads: features to a joint distribution of the logarithms of the fluxes.

The residuals of networks that measure blended fluxes are heavy-tailed and anticorrelated between the two galaxies. A
head therefore has a full covariance, and the Student-t one a free number of degrees of freedom besides.

The total flux of a blend is well constrained, its division between the galaxies is not. Where the division is
uncertain, both log-fluxes follow a curve along which the total is constant, which no ellipse describes. In ln of the
total flux and ln of the ratio the curve is a straight line: with f1 + f2 = t and f2 / f1 = r, ln f1 = ln t - ln(1 + r)
and ln f2 = ln t - ln(1 + 1 / r). The determinant of this map is one everywhere, as the two shares of the light are the
derivatives with respect to ln t, and they sum to one: densities carry over unchanged.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import f
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

__all__ = ["MixtureHead", "NormalHead", "PointHead", "StudentTHead", "TotalRatioHead"]

FIRST_SCALE = 0.3  # of log-flux before training: standard deviation, and spread of the components of a mixture
LEAST_SCALE = 1e-3


class PointHead(nn.Module):
    """Features to one number per flux, as in Boucaud et al. (2020): a distribution without width.

    Every head turns features into `numbers`, and these into a `distribution`; ``forward`` does both.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    """

    components = 1

    def __init__(self, in_features: int, fluxes: int = 2) -> None:
        super().__init__()
        self.fluxes = fluxes
        self.out = nn.Linear(in_features, self.count)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    @property
    def count(self) -> int:
        """Number of outputs per blend."""
        return self.fluxes

    def numbers(self, features: Tensor, start: Tensor | float) -> Tensor:
        """Return the outputs ``(blend, count)``: the locations of all components first, counted from `start`.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            Log-fluxes that the locations are counted from ``(blend, flux)``.

        Returns
        -------
        Tensor
            Outputs, from which `distribution` and `sample` continue.
        """
        out = self.out(features).float()
        start = torch.as_tensor(start, device=out.device).expand(*out.shape[:-1], self.fluxes)
        end = self.components * self.fluxes
        return torch.cat([out[..., :end] + start.tile(self.components), out[..., end:]], -1)

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes, event shape (fluxes,), from `numbers` of any batch shape.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        return dist.Delta(numbers, event_dim=1)

    def sample(self, numbers: Tensor, count: int) -> Tensor:
        """Draw log-fluxes ``(count, ..., flux)``.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.
        count
            Number of draws.

        Returns
        -------
        Tensor
            Draws.
        """
        return self.distribution(numbers).sample((count,))

    def forward(self, features: Tensor, start: Tensor | float = 0.0) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            Log-fluxes that the location is counted from ``(blend, flux)``.

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
        """Number of outputs per blend: locations, widths and the rest of the Cholesky factor."""
        return 2 * self.fluxes + self.fluxes * (self.fluxes - 1) // 2

    def location_and_scale(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return location ``(..., flux)`` and Cholesky factor ``(..., flux, flux)``.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        tuple
            Location and Cholesky factor.
        """
        n = self.fluxes
        location, width, lower, _ = numbers.tensor_split((n, 2 * n, 2 * n + n * (n - 1) // 2), -1)
        width = softplus(width + math.log(math.expm1(FIRST_SCALE))) + LEAST_SCALE
        rows, columns = torch.tril_indices(n, n, -1)
        factor = torch.diag_embed(width)
        factor[..., rows, columns] = lower * width[..., rows]
        return location, factor

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the normal distribution of the log-fluxes.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        pyro.distributions.TorchDistribution
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
        """Number of outputs per blend: those of the normal head and the degrees of freedom."""
        return super().count + 1

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the Student-t distribution of the log-fluxes, with more than three degrees of freedom.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        location, factor = self.location_and_scale(numbers)
        degrees = 3.0 + softplus(numbers[..., -1] + 3.0)
        return dist.MultivariateStudentT(degrees, location, factor, validate_args=False)

    def sample(self, numbers: Tensor, count: int) -> Tensor:
        """Draw log-fluxes ``(count, ..., flux)`` from the 99 % region of the distribution.

        The exponential of a Student-t variable has no moments: one draw far out in its tail would dominate the
        variance of the fluxes. The region is an ellipse, whose radius follows the F distribution.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.
        count
            Number of draws.

        Returns
        -------
        Tensor
            Draws.
        """
        exact = self.distribution(numbers)
        draws = exact.sample((count + count // 20 + 32,))
        whitened = torch.linalg.solve_triangular(exact.scale_tril, (draws - exact.loc)[..., None], upper=False)
        radius = whitened.square().sum((-2, -1)) / self.fluxes
        limit = torch.as_tensor(f.ppf(0.99, self.fluxes, exact.df.numpy(force=True))).to(radius)
        kept = (radius > limit).long().argsort(dim=0, stable=True)[:count]
        return draws.gather(0, kept[..., None].expand(*kept.shape, self.fluxes))


class MixtureHead(NormalHead):
    """Features to a mixture of normal distributions with full covariances (Bishop 1994).

    The components start a little apart from each other, so that they can develop differently.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes.
    components
        Number of normal distributions.

    Raises
    ------
    ValueError
        If there are no components.
    """

    def __init__(self, in_features: int, fluxes: int = 2, components: int = 4) -> None:
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components  # set first: the number of outputs depends on it
        super().__init__(in_features, fluxes)
        if components > 1:
            nn.init.normal_(self.out.bias[: components * fluxes], std=FIRST_SCALE)

    @property
    def count(self) -> int:
        """Number of outputs per blend: those of a normal head and a weight, for each component."""
        return self.components * (super().count + 1)

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the mixture of normal distributions of the log-fluxes.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        n = self.fluxes
        sizes = (n, n, n * (n - 1) // 2, 1)
        parts = numbers.split([self.components * size for size in sizes], -1)
        *normal, weight = (part.unflatten(-1, (self.components, size)) for part, size in zip(parts, sizes, strict=True))
        location, factor = self.location_and_scale(torch.cat(normal, -1))
        return dist.MixtureSameFamily(
            dist.Categorical(logits=weight[..., 0], validate_args=False),
            dist.MultivariateNormal(location, scale_tril=factor, validate_args=False),
            validate_args=False,
        )


class TotalRatioHead(MixtureHead):
    """Features to a mixture of normal distributions of ln of a pair's total flux and ln of its flux ratio.

    Like any head it returns the distribution of both log-fluxes.

    Parameters
    ----------
    in_features
        Number of features.
    fluxes
        Number of fluxes: two.
    components
        Number of normal distributions.

    Raises
    ------
    ValueError
        If there are not two fluxes, or no components.
    """

    def __init__(self, in_features: int, fluxes: int = 2, components: int = 4) -> None:
        if fluxes != 2:
            raise ValueError(f"fluxes must be 2 to have a ratio, got {fluxes}")
        super().__init__(in_features, fluxes, components)
        self.division = _Division()

    def numbers(self, features: Tensor, start: Tensor | float) -> Tensor:
        """Return the outputs ``(blend, count)``: first the components' ln total and ln ratio of companion to central.

        They are counted from the total and the ratio of the log-fluxes `start`.

        Parameters
        ----------
        features
            Features ``(blend, in_features)``.
        start
            Log-fluxes that the locations are counted from ``(blend, flux)``.

        Returns
        -------
        Tensor
            Outputs, from which `distribution` and `sample` continue.
        """
        pair = torch.as_tensor(start, device=features.device).expand(len(features), 2)
        return super().numbers(features, self.division.inv(pair))

    def distribution(self, numbers: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the log-fluxes, which has a mean.

        Parameters
        ----------
        numbers
            Outputs ``(..., count)`` from `numbers`.

        Returns
        -------
        pyro.distributions.TorchDistribution
            With event shape (fluxes,).
        """
        return _Divided(super().distribution(numbers), self.division, validate_args=False)


class _Divided(dist.TransformedDistribution):
    """Both log-fluxes of a mixture over total and ratio."""

    @property
    def mean(self) -> Tensor:
        """Mean ``(..., 2)``, over the ratio of each component by Gauss-Hermite quadrature."""
        parts = self.base_dist.component_distribution
        nodes, weights = (torch.from_numpy(values).to(parts.mean) for values in hermegauss(32))
        total, ratio = parts.mean[..., None, :].unbind(-1)
        ratio = ratio + parts.variance[..., None, 1].sqrt() * nodes
        means = weights / weights.sum() @ self.transforms[0](torch.stack([total.expand_as(ratio), ratio], -1))
        return (self.base_dist.mixture_distribution.probs[..., None] * means).sum(-2)


class _Division(Transform):
    """From ln of a pair's total flux and ln of its ratio to both log-fluxes."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def _call(self, whole: Tensor) -> Tensor:
        total, ratio = whole.unbind(-1)
        return torch.stack([total - softplus(ratio), total - softplus(-ratio)], -1)

    def _inverse(self, pair: Tensor) -> Tensor:
        central, companion = pair.unbind(-1)
        return torch.stack([torch.logaddexp(central, companion), companion - central], -1)

    def log_abs_det_jacobian(self, whole: Tensor, pair: Tensor) -> Tensor:
        """Return zeros: the determinant is one."""
        return torch.zeros_like(whole[..., 0])
