"""A proposal for refinement by variational inference: the normal distribution of each blend with the highest ELBO.

The population has ends, so that the evidence lower bound of a distribution that is normal in the unknowns themselves
is minus infinity. The guide is normal in coordinates without bounds (`~probdeblend.refinement.support.Support`), which bend within
as much of an end as the curvature at the mode leaves the unknown.

Two edges are left that no such map removes. Where companions are too near or too far for the sizes of both galaxies
the density jumps, and gradients of draws see nothing of it; and spheroids alone, which are never very flat, have a
Sérsic index above four. The density that is fitted (`Relaxed`) has slopes there. Draws are weighted by the density as
it is, so that slopes cost effective draws and bias nothing.

The ELBO is Pyro's (Bingham et al. 2019, arXiv:1810.09538), of reparametrized draws (Kingma & Welling 2014,
arXiv:1312.6114) with the path derivative alone (Roeder et al. 2017, arXiv:1703.09194), whose noise vanishes where the
guide is the posterior. Blends are a plate and share the noise of their draws: a fit does not depend on its neighbors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ..simulation.prior import PUBLISHED_PIXEL_SCALE
from ..simulation.separation import separation_limits
from .latents import ANYWHERE, LATENTS
from .mode import prior_moments
from .model import POSITION, BlendModel, Observed
from .proposal import Proposal
from .support import Support

__all__ = ["NormalGuide", "Relaxed", "fit_elbo"]

STRETCH = [LATENTS.index(name) for name in ("stretch_plus", "stretch_cross")]
RADIUS = LATENTS.index("log_radius")
SLOPE = 0.3  # standard deviations of the companion's distance from the least one
LEAST_SLOPE = 1e-4  # pixels
STRAYS = 0.01  # of the blends, normal with the population's moments
LEAST_SHARE = 0.01  # of companions anywhere, so that none has no density
MEASURED = 256  # draws that slopes are measured on
RATES, BETAS = (0.03, 0.003), (0.9, 0.99)


class Relaxed:
    """The density of unknowns and images together, with slopes where that of the population jumps.

    The ring that companions lie in has logistic edges, `SLOPE` times as wide as their distance is uncertain; some
    companions lie anywhere, and some blends are normal with the moments of the population: no draw is impossible.

    Parameters
    ----------
    model, observed
        The generative model and its images.
    unknown
        Draws about where the posterior is ``(draw, blend, number)``, which the slopes are measured on.
    """

    def __init__(self, model: BlendModel, observed: Observed, unknown: Tensor) -> None:
        share = max(model.prior.anywhere_fraction, LEAST_SHARE)
        self.model = replace(model, prior=replace(model.prior, anywhere_fraction=share))
        self.observed = observed
        mean, precision = prior_moments(model, observed)
        self.strays = dist.MultivariateNormal(mean, precision_matrix=precision, validate_args=False)
        distance, inner, _ = self._ring(unknown)
        self.slope = (SLOPE * (distance - inner).std(0)).clamp(min=LEAST_SLOPE)

    def log_prior(self, unknown: Tensor) -> Tensor:
        """Return the density of unknowns.

        Parameters
        ----------
        unknown
            ``(..., blend, number)``.

        Returns
        -------
        Tensor
            ``(..., blend)``, finite for all that `~probdeblend.refinement.support.Support` maps to, as is its gradient.
        """
        unknown = unknown.clone()
        if unknown.requires_grad:
            # Where no type of galaxy has a density, strays alone do, and have a gradient.
            unknown.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))
        density = self.model.log_prior(unknown.float(), self.observed).double()
        if self.model.galaxies > 1:
            density = density + self._smoothing(unknown)
        strays = self.strays.log_prob(unknown) + math.log(STRAYS)
        return torch.logaddexp(density + math.log1p(-STRAYS), strays)

    def log_prob(self, unknown: Tensor) -> Tensor:
        """Return the density of unknowns and images together.

        Parameters
        ----------
        unknown
            ``(..., blend, number)``.

        Returns
        -------
        Tensor
            ``(..., blend)``.
        """
        return self.log_prior(unknown) + self.model.log_likelihood(unknown.float(), self.observed).double()

    def _ring(self, unknown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the distance of the first companion, and the least and the largest one, in pixels."""
        pair = self.model.split(unknown)[0][..., :2, :]
        major = (pair[..., RADIUS] + pair[..., STRETCH].norm(dim=-1) / 2).exp()
        distance = (pair[..., -1, POSITION] - pair[..., 0, POSITION]).norm(dim=-1)
        return distance, *separation_limits(major / PUBLISHED_PIXEL_SCALE)

    def _smoothing(self, unknown: Tensor) -> Tensor:
        """Return the logarithm of the density of where the companion is with slopes, over that without."""
        distance, inner, outer = self._ring(unknown)
        share = self.model.prior.anywhere_fraction
        anywhere = share / (2 * ANYWHERE) ** 2
        ring = (1 - share) / (math.pi * (outer.square() - inner.square()))
        smooth = ((distance - inner) / self.slope).sigmoid() - ((distance - outer) / self.slope).sigmoid()
        within = ((distance >= inner) & (distance <= outer)).to(distance)
        return (anywhere + ring * smooth).log() - (anywhere + ring * within).log()


class NormalGuide(nn.Module):
    """Normal distributions in the coordinates of the population, one a blend, with all correlations.

    Parameters
    ----------
    support
        The bijection from coordinates to unknowns.
    center, covariance
        Where they start: ``(blend, number)`` and ``(blend, number, number)``. Parameters are counted from there, in
        units of the covariance's lower triangular factor.
    """

    def __init__(self, support: Support, center: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.support, self.center, self.scale = support, center, torch.linalg.cholesky(covariance)
        self.shift = nn.Parameter(torch.zeros_like(center))
        self.log_width = nn.Parameter(torch.zeros_like(center))
        self.lower = nn.Parameter(torch.zeros_like(covariance))

    def forward(self) -> dist.MultivariateNormal:
        """Return the distribution of coordinates.

        Returns
        -------
        pyro.distributions.MultivariateNormal
            Batch shape (blend,), event shape (number,).
        """
        factor = self.lower.tril(-1) + torch.diag_embed(self.log_width.exp())
        center = self.center + (self.scale @ self.shift[..., None])[..., 0]
        return dist.MultivariateNormal(center, scale_tril=self.scale @ factor, validate_args=False)

    def place(self, noise: Tensor) -> Tensor:
        """Return coordinates, from draws of a unit normal distribution.

        Parameters
        ----------
        noise
            ``(draw, number)``, the same for all blends.

        Returns
        -------
        Tensor
            ``(draw, blend, number)``.
        """
        normal = self()
        return normal.loc + (normal.scale_tril @ noise[:, None, :, None])[..., 0]

    def negative_elbo(self, density: Relaxed, noise: Tensor) -> Tensor:
        """Return the negative evidence lower bound, summed over blends.

        Parameters
        ----------
        density
            What the guide is to be like.
        noise
            Draws of a unit normal distribution ``(draw, number)``, the same for all blends.

        Returns
        -------
        Tensor
            A scalar.
        """
        blends, number = self.center.shape

        def model() -> None:
            with pyro.plate("blend", blends):
                unknown = pyro.sample("unknown", dist.ImproperUniform(constraints.real_vector, (), (number,)))
                pyro.factor("density", density.log_prob(unknown))

        def guide() -> None:
            normal, place = self(), self.place(noise)
            unknown = self.support(place)
            frozen = dist.MultivariateNormal(normal.loc.detach(), scale_tril=normal.scale_tril.detach())
            log_density = frozen.log_prob(place) - self.support.log_abs_det_jacobian(place, unknown)
            with pyro.plate("blend", blends):
                pyro.sample("unknown", dist.Delta(unknown, log_density=log_density, event_dim=1))

        elbo = Trace_ELBO(num_particles=len(noise), vectorize_particles=True, max_plate_nesting=1)
        return elbo.differentiable_loss(model, guide)


def fit_elbo(
    model: BlendModel,
    observed: Observed,
    mode: Tensor,
    precision: Tensor,
    *,
    updates: int = 200,
    draws: int = 1,
    seed: int = 0,
) -> Proposal:
    """Fit normal distributions to the posteriors of blends.

    Parameters
    ----------
    model, observed
        The generative model and its images.
    mode, precision
        What `~probdeblend.refinement.mode.find_mode` returns, to start from: ``(blend, number)`` and
        ``(blend, number, number)``.
    updates
        Number of steps of Adam.
    draws
        Number of draws of each blend in a step.
    seed
        Seed of the noise of the draws, which all blends share.

    Returns
    -------
    Proposal
        With the moments of these distributions, in their coordinates.

    Raises
    ------
    ValueError
        If a number is not positive.
    """
    for name, value in (("updates", updates), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    generator = torch.Generator().manual_seed(seed)

    def noise(count: int) -> Tensor:
        return torch.randn(count, mode.shape[-1], generator=generator, dtype=torch.float64)

    covariance = torch.linalg.inv(precision)
    support = Support(model, observed, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    guide = NormalGuide(support, mode.double(), covariance)
    with torch.no_grad():
        density = Relaxed(model, observed, support(guide.place(noise(MEASURED))))
    optimizer = torch.optim.Adam(guide.parameters(), RATES[0], betas=BETAS)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (RATES[1] / RATES[0]) ** (1 / updates))
    with torch.enable_grad():
        for _ in range(updates):
            optimizer.zero_grad()
            guide.negative_elbo(density, noise(draws)).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        normal = guide()
    return Proposal(normal.loc, normal.covariance_matrix, support)
