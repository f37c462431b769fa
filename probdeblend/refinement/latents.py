"""Unconstrained parameters of each Sérsic galaxy of a blend, and their prior.

Each galaxy has seven: ``log_flux``, ln of the total flux over the sky noise; ``x`` and ``y``, its center in pixels from
the middle of the stamp; ``log_radius``, ln of the circularized half-light radius in arcsec; ``index``, the logit of the
Sérsic index between 0.5 and 6; ``stretch_plus`` and ``stretch_cross``, ``-ln(axis ratio)`` times cosine and sine of
twice the position angle. Galaxies follow `~probdeblend.simulation.prior.Prior` with ``smooth=True``, marginalized over
their types. Densities are those of the prior up to a constant: the fraction of drawn pairs that its limits keep.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..scene import GALAXY_TYPES, LN_FLUX_UNIT, STAMP_CENTER, STAMP_SIZE, Components
from ..simulation.morphology import SMOOTH_INDEX
from ..simulation.prior import FLATTENING, PUBLISHED_PIXEL_SCALE, RADIUS_RANGE, Prior
from ..simulation.separation import separation_limits

__all__ = ["FLUXES", "LATENTS", "POSITION", "SHAPE", "GalaxyPrior", "PositionPrior", "to_components", "to_latents"]

LATENTS = ("log_flux", "x", "y", "log_radius", "index", "stretch_plus", "stretch_cross")
"""Names of the unknowns of one galaxy, in the order of the last axis of latents."""
FLUXES = [0, len(LATENTS)]  # where a vector of all unknowns holds the two ln fluxes of a pair
POSITION = [1, 2]
SHAPE = [0, 3, 4, 5, 6]
LOWEST_INDEX, INDEX_SPAN = 0.5, 5.5
ANYWHERE = STAMP_SIZE / 2 - 8.0  # pixels: half the side of the square in which a distant companion lies
LEAST_STRETCH = 1e-6  # keeps gradients finite for round galaxies


def to_components(latents: Tensor, *, present: Tensor | None = None) -> Components:
    """Return Sérsic components, one per galaxy, with fluxes in units of the sky noise.

    `latents` is ``(blend, galaxy, latent)``; `present` marks galaxies that exist ``(blend, galaxy)``; all by default.
    """
    log_flux, x, y, log_radius, index, plus, cross = latents[..., None, :].unbind(-1)
    return Components(
        flux=log_flux.exp(),
        half_light_radius=log_radius.exp(),
        sersic_index=LOWEST_INDEX + INDEX_SPAN * index.sigmoid(),
        axis_ratio=torch.exp(-_stretch(plus, cross)),
        angle=torch.atan2(cross, plus) / 2,
        x=STAMP_CENTER + x,
        y=STAMP_CENTER + y,
        present=torch.ones_like(log_flux, dtype=torch.bool) if present is None else present[..., None],
    )


def to_latents(components: Components, *, sky_rms: Tensor | float = 1.0) -> Tensor:
    """Return latents ``(blend, galaxy, latent)`` of each galaxy's first component; `sky_rms` may be ``(blend,)``."""
    first = {name: getattr(components, name)[..., 0] for name in vars(components)}
    noise = torch.as_tensor(sky_rms).to(first["flux"]).reshape(-1, 1)
    stretch, twice = -first["axis_ratio"].log(), 2 * first["angle"]
    values = [
        (first["flux"] / noise).log(),
        first["x"] - STAMP_CENTER,
        first["y"] - STAMP_CENTER,
        first["half_light_radius"].log(),
        ((first["sersic_index"] - LOWEST_INDEX) / INDEX_SPAN).logit(eps=1e-5),
        stretch * twice.cos(),
        stretch * twice.sin(),
    ]
    return torch.stack(values, -1)


class GalaxyPrior(dist.TorchDistribution):
    """The prior of brightness and shape: the latents `SHAPE` of galaxies, which are independent of each other.

    `log_noise` is ln of the sky noise in flux units; its shape is the batch shape.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, prior: Prior, zero_point: float, log_noise: Tensor) -> None:
        self.prior, self.zero_point, self.log_noise = prior, zero_point, log_noise
        super().__init__(log_noise.shape, torch.Size([len(SHAPE)]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> GalaxyPrior:
        """Return the distribution with a larger batch."""
        return GalaxyPrior(self.prior, self.zero_point, self.log_noise.expand(batch_shape))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw galaxies ``(*sample, *batch, latent)``; the limits on pairs are not applied."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad(), pyro.poutine.block(), pyro.plate("drawn", shape.numel()):
            drawn = self.prior.galaxies()
        drawn = {name: value.reshape(shape.numel(), -1).squeeze(-1) for name, value in drawn.items()}
        magnitude, log_major = drawn["magnitude_and_radius"].unbind(-1)
        low, width = torch.tensor(SMOOTH_INDEX)[drawn["galaxy_type"]].unbind(-1)
        axis_ratio, twice = drawn["axis_ratio"], 2 * drawn["angle"]
        fraction = (low + width * drawn["shape"] - LOWEST_INDEX) / INDEX_SPAN
        log_radius = log_major.clamp(*(math.log(end) for end in RADIUS_RANGE)) + axis_ratio.log() / 2
        stretch = -axis_ratio.log()
        log_flux = (self.zero_point - magnitude) / LN_FLUX_UNIT
        parts = [log_flux, log_radius, fraction.logit(eps=1e-5), stretch * twice.cos(), stretch * twice.sin()]
        values = torch.stack(parts, -1).to(self.log_noise).reshape(*shape, len(SHAPE))
        values[..., 0] -= self.log_noise
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density, summed over types; minus infinity beyond the prior's limits of magnitude."""
        log_flux, log_radius, index, plus, cross = value.unbind(-1)
        magnitude = self.zero_point - LN_FLUX_UNIT * (log_flux + self.log_noise)
        stretch, fraction = _stretch(plus, cross), index.sigmoid()
        place = torch.stack([magnitude, log_radius + stretch / 2], -1)
        kinds = torch.arange(len(GALAXY_TYPES)).reshape(-1, *(1,) * log_flux.ndim)
        low, width = torch.tensor(SMOOTH_INDEX)[kinds].unbind(-1)
        # The population's numbers are float32.
        appearance = self.prior.magnitude_and_radius(kinds).log_prob(place.float()).to(value)
        shape = _log_beta((LOWEST_INDEX + INDEX_SPAN * fraction - low) / width, *torch.full((2,), 2.0)) - width.log()
        share = torch.tensor(self.prior.type_probabilities).to(value).log().reshape(kinds.shape)
        slope = (INDEX_SPAN * fraction * (1 - fraction)).log() + math.log(LN_FLUX_UNIT)
        total = slope + torch.logsumexp(share + appearance + shape + _log_stretch(stretch, kinds), 0)
        brightest, faintest = self.prior.magnitude_range
        return total.masked_fill((magnitude < brightest) | (magnitude > faintest), -math.inf)


class PositionPrior(dist.TorchDistribution):
    """The prior of positions ``(galaxy, 2)`` in pixels, given major-axis half-light radii in arcsec."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, prior: Prior, major: Tensor) -> None:
        if prior.separation != "published":
            raise ValueError(f"prior must have the rule of separation 'published', got {prior.separation!r}")
        self.prior, self.major = prior, major
        super().__init__(major.shape[:-1], torch.Size([major.shape[-1], 2]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> PositionPrior:
        """Return the distribution with a larger batch."""
        return PositionPrior(self.prior, self.major.expand(*batch_shape, self.major.shape[-1]))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw positions ``(*sample, *batch, galaxy, 2)`` in pixels from the middle of the stamp."""
        major = self.major.expand(*sample_shape, *self.major.shape)
        places = self.prior.positions(major.reshape(-1, major.shape[-1]) / PUBLISHED_PIXEL_SCALE)
        return torch.stack([places["x"], places["y"]], -1).reshape(*major.shape, 2) - STAMP_CENTER

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density; minus infinity where the central galaxy is more than a pixel from the middle."""
        central, others = value[..., 0, :], value[..., 1:, :] - value[..., :1, :]
        inside = (central.abs() <= 1).all(-1)
        density = (others.abs() <= ANYWHERE).all(-1).to(value) / (2 * ANYWHERE) ** 2
        if density.shape[-1]:
            inner, outer = separation_limits(self.major[..., :2] / PUBLISHED_PIXEL_SCALE)
            distance = others[..., 0, :].norm(dim=-1)
            ring = ((distance >= inner) & (distance <= outer)) / (math.pi * (outer.square() - inner.square()))
            share = self.prior.anywhere_fraction
            companion = share * density[..., 0] + (1 - share) * ring
            density = torch.cat([companion[..., None], density[..., 1:]], -1)
        return density.log().sum(-1) + torch.where(inside, -math.log(4.0), -math.inf)


def _stretch(plus: Tensor, cross: Tensor) -> Tensor:
    """Return ``-ln(axis ratio)``, a little more than zero for round galaxies."""
    return (plus.square() + cross.square() + LEAST_STRETCH**2).sqrt()


def _log_beta(value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the log-density of a beta distribution: minus infinity outside its support, with finite gradients."""
    inside = (value > 0) & (value < 1)
    safe = torch.where(inside, value, 0.5)
    normalization = torch.lgamma(first + second) - torch.lgamma(first) - torch.lgamma(second)
    density = (first - 1) * safe.log() + (second - 1) * torch.log1p(-safe) + normalization
    return torch.where(inside, density, -math.inf)


def _log_stretch(stretch: Tensor, kinds: Tensor) -> Tensor:
    """Return the log-density in the plane of stretches for each type ``(type, ...)``."""
    spheroid = kinds == GALAXY_TYPES.index("sph")
    least, first, second = (torch.where(spheroid, *ends) for ends in zip(*FLATTENING, strict=True))
    axis_ratio = torch.exp(-stretch)
    flat = _log_beta((1 - axis_ratio) / (1 - least), first, second) - torch.log1p(-least)
    return flat - stretch - (2 * math.pi * stretch).log()
