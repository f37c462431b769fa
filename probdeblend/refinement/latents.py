"""Unknowns of each source of a scene, and their prior.

They are the numbers that the scene network answers in: ln of the auto and of the total flux over the sky noise, in each
band; the center in pixels from the listed position; ln of the circularized half-light radius in pixels; the ellipticity
``(1 - q) / (1 + q)`` of the axis ratio q, times cosine and sine of twice the position angle; and ln of the Sérsic
index. Each has a range, outside of which there is no density, and `Within` maps any real number into it: so the guide
never leaves the support of the prior.

Brightness has a broad prior, the same for every camera. Sizes and shapes follow the galaxies of
`~probdeblend.simulation.population.Population`, marginalized over magnitudes and types; a share of 0.02 has any shape,
since a type of galaxy leaves out indices and axis ratios that real galaxies have.
"""

from __future__ import annotations

import math
from copy import copy

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform

from ..scene import GALAXY_TYPES
from ..simulation.morphology import SMOOTH_INDEX
from ..simulation.population import FLATTENING, Population

__all__ = [
    "AXES",
    "FLUX_RANGE",
    "POSITION_RANGE",
    "POSITION_SPREAD",
    "SHAPE_RANGE",
    "FluxPrior",
    "ShapePrior",
    "Within",
]

AXES = 6  # unknowns of a source besides its fluxes: position (2) and shape (4)
# Lowest value, highest value, and width of the margin at both ends in which values are squeezed.
FLUX_RANGE = (-4.0, 17.0, 1.0)
POSITION_RANGE = (-4.0, 4.0, 0.5)
SHAPE_RANGE = (
    (math.log(0.1), -0.7, -0.7, math.log(0.5)),
    (math.log(50.0), 0.7, 0.7, math.log(6.0)),
    (0.2, 0.02, 0.02, 0.02),
)
POSITION_SPREAD = 1.0  # pixels
BRIGHTNESS, BRIGHTNESS_SPREAD, COLOR_SPREAD = 6.0, 2.5, 1.0  # of ln total flux over sky noise
APERTURE, APERTURE_SPREAD, APERTURE_FREEDOM = -0.1, 0.06, 4.0  # of ln(auto / total flux)
ANY_SHAPE = 0.02
FLATTEST = 0.995  # ellipticity; the corners of its range are beyond it
ROUND = 1e-3  # softens the density of shapes at round galaxies, where it has a pole


class Within(Transform):
    """Map real numbers into a range: the identity, but within a margin of its ends.

    `low`, `high` and `margin` are numbers or tensors that broadcast with the values.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: Tensor | float, high: Tensor | float, margin: Tensor | float) -> None:
        super().__init__(cache_size=1)
        low, high, margin = (torch.as_tensor(value, dtype=torch.float32) for value in (low, high, margin))
        self.middle, self.half, self.margin = (low + high) / 2, (high - low) / 2 - margin, margin

    def _call(self, x: Tensor) -> Tensor:
        offset = x - self.middle
        beyond = (offset.abs() - self.half).clamp(min=0) / self.margin
        # A hyperbola, not an exponential, so that rounding never reaches the end.
        return self.middle + offset.clamp(-self.half, self.half) + offset.sign() * self.margin * beyond / (1 + beyond)

    def _inverse(self, y: Tensor) -> Tensor:
        offset = y - self.middle
        squeezed = ((offset.abs() - self.half).clamp(min=0) / self.margin).clamp(max=1 - 1e-6)
        return (
            self.middle + offset.clamp(-self.half, self.half) + offset.sign() * self.margin * squeezed / (1 - squeezed)
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the derivative: zero inside the margins."""
        return -2 * torch.log1p(((x - self.middle).abs() - self.half).clamp(min=0) / self.margin)


class _SourcePrior(dist.TorchDistribution):
    """A prior that is the same for all sources: a plate changes nothing but its batch shape."""

    arg_constraints: dict = {}  # noqa: RUF012

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> _SourcePrior:
        """Return the distribution with a larger batch."""
        wider = copy(self)
        wider._batch_shape = torch.Size(batch_shape)
        return wider


class FluxPrior(_SourcePrior):
    """The prior of ln fluxes over sky noise ``(band, kind)``: bands share a brightness, and differ by colors."""

    support = constraints.independent(constraints.real, 2)

    def __init__(self, bands: int, batch_shape: tuple[int, ...] = ()) -> None:
        covariance = BRIGHTNESS_SPREAD**2 * torch.ones(bands, bands) + COLOR_SPREAD**2 * torch.eye(bands)
        self.total = dist.MultivariateNormal(torch.full((bands,), BRIGHTNESS), covariance)
        self.aperture = dist.StudentT(APERTURE_FREEDOM, APERTURE, APERTURE_SPREAD)
        super().__init__(torch.Size(batch_shape), torch.Size([bands, 2]), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ln fluxes ``(*sample, *batch, band, kind)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        low, high, margin = FLUX_RANGE
        total = self.total.sample(shape).clamp(low + margin, high - margin)
        return torch.stack([(total + self.aperture.sample(total.shape)).clamp(low, high), total], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density; minus infinity beyond the range."""
        density = self.total.log_prob(value[..., 1]) + self.aperture.log_prob(value[..., 0] - value[..., 1]).sum(-1)
        return density.masked_fill(_beyond(value, *FLUX_RANGE[:2]).any(-1), -math.inf)


class ShapePrior(_SourcePrior):
    """The prior of size and shape ``(4,)`` of galaxies, for a pixel scale in arcsec."""

    support = constraints.real_vector

    def __init__(self, population: Population, pixel_scale: float, batch_shape: tuple[int, ...] = ()) -> None:
        self.population, self.pixel_scale = population, pixel_scale
        weight, mean, covariance = (
            torch.tensor(v) for v in (population.weights, population.means, population.covariances)
        )
        scatter = (covariance[..., 1, 1] + population.size_scatter**2).sqrt()
        center = mean[..., 1] - math.log(pixel_scale)
        self.major = dist.MixtureSameFamily(dist.Categorical(weight), dist.Normal(center, scatter), validate_args=False)
        self.index_low, self.index_span = torch.tensor(SMOOTH_INDEX[: len(GALAXY_TYPES)]).unbind(-1)
        spheroid = torch.arange(len(GALAXY_TYPES)) == GALAXY_TYPES.index("sph")
        self.least, *flat = (torch.where(spheroid, *ends) for ends in zip(*FLATTENING, strict=True))
        self.flat = dist.Beta(*flat, validate_args=False)
        self.quantile = dist.Beta(torch.tensor(2.0), torch.tensor(2.0), validate_args=False)
        super().__init__(torch.Size(batch_shape), torch.Size([4]), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw shapes ``(*sample, *batch, 4)`` of galaxies by the population's program."""
        shape = torch.Size(sample_shape) + self.batch_shape
        galaxies = self.population.replace(star_fraction=0.0)
        with torch.no_grad(), pyro.poutine.block(), pyro.plate("drawn", shape.numel(), dim=-3):
            drawn = galaxies.source(self.pixel_scale)
        drawn = {name: value.reshape(shape) for name, value in drawn.items()}
        kind, anything, twice = drawn["source_type"], torch.rand(shape) < ANY_SHAPE, 2 * drawn["angle"]
        low, high, _ = (torch.tensor(ends) for ends in SHAPE_RANGE)
        ln_index = (self.index_low[kind] + self.index_span[kind] * drawn["sersic_quantile"]).log()
        ln_index = torch.where(anything, low[3] + (high[3] - low[3]) * torch.rand(shape), ln_index)
        size = (1 - drawn["axis_ratio"]) / (1 + drawn["axis_ratio"])
        size = torch.where(anything, high[1] * torch.rand(shape).sqrt(), size)
        ln_radius = (drawn["half_light_radius"] / self.pixel_scale).log() + torch.log((1 - size) / (1 + size)) / 2
        values = torch.stack([ln_radius, size * twice.cos(), size * twice.sin(), ln_index], -1).float()
        return torch.minimum(torch.maximum(values, low), high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density, summed over types; minus infinity beyond the range."""
        ln_radius, first, second, ln_index = value[..., None].unbind(-2)
        size = (first.square() + second.square() + ROUND**2).sqrt().clamp(max=FLATTEST)
        q = (1 - size) / (1 + size)
        major = self.major.log_prob((ln_radius - q.log() / 2).expand(*value.shape[:-1], len(GALAXY_TYPES)))
        flat = _beta(self.flat, (1 - q) / (1 - self.least)) - torch.log1p(-self.least)
        # The density of the axis ratio, spread over a circle of ellipticities.
        flat = flat + math.log(2.0) - 2 * torch.log1p(size) - (2 * math.pi * size).log()
        index = _beta(self.quantile, (ln_index.exp() - self.index_low) / self.index_span)
        own = flat + index + ln_index - self.index_span.log()
        low, high, _ = SHAPE_RANGE
        anything = torch.full_like(own, -math.log((high[3] - low[3]) * math.pi * high[1] ** 2))
        own = torch.logaddexp(own + math.log1p(-ANY_SHAPE), anything + math.log(ANY_SHAPE))
        total = (major + own + torch.tensor(self.population.type_probabilities).log()).logsumexp(-1)
        return total.masked_fill(_beyond(value, torch.tensor(low), torch.tensor(high)), -math.inf)


def _beyond(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return which vectors ``(...)`` have a number outside its range; the ends belong to it."""
    return ((value < low) | (value > high)).any(-1)


def _beta(beta: dist.Beta, value: Tensor) -> Tensor:
    """Return the log-density of a beta distribution: -1e3 outside its support, with finite gradients."""
    inside = (value > 0) & (value < 1)
    return torch.where(inside, beta.log_prob(torch.where(inside, value, 0.5)), -1e3)
