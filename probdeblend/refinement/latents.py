"""Unknowns of each source of a scene, and their prior.

They are the numbers that the scene network answers in: ln of the auto and of the total flux over the sky noise, in each
band; the center in pixels from the listed position; ln of the circularized half-light radius in pixels; the ellipticity
``(1 - q) / (1 + q)`` of the axis ratio q, times cosine and sine of twice the position angle; and ln of the Sérsic
index. Each has a range, outside of which there is no density, and `Within` maps any real number into it: so the guide
never leaves the support of the prior.

Brightness has a broad prior, the same for every camera. Sizes and shapes have a normal distribution for each type of
galaxy, with the moments of galaxies of `~probdeblend.simulation.population.Population`: its tails have indices and axis
ratios that the population leaves out and real galaxies have.
"""

import math
from copy import copy
from functools import lru_cache

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform

from ..scene import seeded
from ..simulation.morphology import SMOOTH_INDEX
from ..simulation.population import Population

__all__ = [
    "AXES", "FLUX_RANGE", "POSITION_RANGE", "POSITION_SPREAD", "SHAPE_RANGE", "FluxPrior", "ShapePrior", "Within",
    "galaxy_shapes",
]  # fmt: skip

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
FLATTEST = 0.995  # ellipticity; the corners of its range are beyond it
DRAWN, LEAST_DRAWN = 4096, 20  # galaxies that tell the moments of all types, and fewest of a type that counts


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

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "_SourcePrior":
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
        self.types, *_ = galaxy_shapes(population, pixel_scale)
        self.low, self.high, _ = (torch.tensor(ends) for ends in SHAPE_RANGE)
        super().__init__(torch.Size(batch_shape), torch.Size([4]), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw shapes ``(*sample, *batch, 4)``."""
        shape = self.types.sample(torch.Size(sample_shape) + self.batch_shape)
        return torch.minimum(torch.maximum(shape, self.low), self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density; minus infinity beyond the range."""
        return self.types.log_prob(value).masked_fill(_beyond(value, self.low, self.high), -math.inf)


@lru_cache(maxsize=8)
def galaxy_shapes(population: Population, pixel_scale: float) -> tuple[dist.MixtureSameFamily, Tensor, Tensor]:
    """Return a mixture of one normal distribution for each type of galaxy, and the mean and covariance of them all.

    They have the moments of galaxies that the population's program draws.
    """
    galaxies = population.replace(star_fraction=0.0)
    with seeded(0), torch.no_grad(), pyro.poutine.block(), pyro.plate("drawn", DRAWN, dim=-3):
        drawn = {name: value.flatten() for name, value in galaxies.source(pixel_scale).items()}
    kind, q, twice = drawn["source_type"], drawn["axis_ratio"], 2 * drawn["angle"]
    size, (index, span) = (1 - q) / (1 + q), torch.tensor(SMOOTH_INDEX)[kind].unbind(-1)
    ln_radius = (drawn["half_light_radius"] * q.sqrt() / pixel_scale).log()
    ln_index = (index + span * drawn["sersic_quantile"]).log()
    shape = torch.stack([ln_radius, size * twice.cos(), size * twice.sin(), ln_index], -1).float()
    parts = [own for number in kind.unique() if len(own := shape[kind == number]) > LEAST_DRAWN]
    mean, covariance = (torch.stack([moment(part.T) for part in parts]) for moment in (lambda v: v.mean(1), torch.cov))
    number = dist.Categorical(torch.tensor([float(len(part)) for part in parts]))
    types = dist.MixtureSameFamily(number, dist.MultivariateNormal(mean, covariance), validate_args=False)
    return types, shape.mean(0), torch.cov(shape.T)


def _beyond(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return which vectors ``(...)`` have a number outside its range; the ends belong to it."""
    return ((value < low) | (value > high)).any(-1)
