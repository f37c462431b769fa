"""The numbers that describe a blend of Sérsic galaxies, without bounds, and their prior distributions.

Each galaxy has seven: ``log_flux``, ln of the total flux over the sky noise; ``x`` and ``y``, its center in pixels from
the middle of the stamp; ``log_radius``, ln of the circularized half-light radius in arcsec; ``index``, the logit of the
Sérsic index between 0.5 and 6; ``stretch_plus`` and ``stretch_cross``, ``-ln(axis ratio)`` times cosine and sine of
twice the position angle. What a galaxy looks like follows `~probdeblend.simulation.prior.Prior` with ``smooth=True``: the type,
which only it knows, is summed over. Densities are those of the prior up to a constant, the fraction of drawn pairs that
its limits keep.
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

__all__ = ["LATENTS", "SHAPE_LATENTS", "GalaxyPrior", "PositionPrior", "to_components", "to_latents"]

LATENTS = ("log_flux", "x", "y", "log_radius", "index", "stretch_plus", "stretch_cross")
SHAPE_LATENTS = ("log_flux", "log_radius", "index", "stretch_plus", "stretch_cross")
INDEX_RANGE = (0.5, 6.0)
ANYWHERE = STAMP_SIZE / 2 - 8.0
LEAST_STRETCH = 1e-6


def to_components(latents: Tensor, *, present: Tensor | None = None) -> Components:
    """Return the light that latents describe, in units of the sky noise.

    Parameters
    ----------
    latents
        ``(blend, galaxy, latent)`` in the order of `LATENTS`.
    present
        Which galaxies exist ``(blend, galaxy)``; all if None.

    Returns
    -------
    Components
        One component a galaxy.
    """
    log_flux, x, y, log_radius, index, plus, cross = latents[..., None, :].unbind(-1)
    stretch = (plus.square() + cross.square() + LEAST_STRETCH**2).sqrt()
    low, high = INDEX_RANGE
    return Components(
        flux=log_flux.exp(),
        half_light_radius=log_radius.exp(),
        sersic_index=low + (high - low) * index.sigmoid(),
        axis_ratio=torch.exp(-stretch),
        angle=torch.atan2(cross, plus) / 2,
        x=STAMP_CENTER + x,
        y=STAMP_CENTER + y,
        present=torch.ones_like(log_flux, dtype=torch.bool) if present is None else present[..., None],
    )


def to_latents(components: Components, *, sky_rms: Tensor | float = 1.0) -> Tensor:
    """Return the latents of galaxies of one component each.

    Parameters
    ----------
    components
        Galaxies; their first components alone count.
    sky_rms
        What fluxes are divided by: one number, or one a blend ``(blend,)``.

    Returns
    -------
    Tensor
        ``(blend, galaxy, latent)`` in the order of `LATENTS`.
    """
    first = {name: getattr(components, name)[..., 0] for name in vars(components)}
    low, high = INDEX_RANGE
    noise = torch.as_tensor(sky_rms, dtype=first["flux"].dtype, device=first["flux"].device)
    stretch, twice = -first["axis_ratio"].log(), 2 * first["angle"]
    values = {
        "log_flux": (first["flux"] / noise.reshape(-1, 1)).log(),
        "x": first["x"] - STAMP_CENTER,
        "y": first["y"] - STAMP_CENTER,
        "log_radius": first["half_light_radius"].log(),
        "index": ((first["sersic_index"] - low) / (high - low)).logit(eps=1e-5),
        "stretch_plus": stretch * twice.cos(),
        "stretch_cross": stretch * twice.sin(),
    }
    return torch.stack([values[name] for name in LATENTS], -1)


class GalaxyPrior(dist.TorchDistribution):
    """The prior of how bright and of what shape galaxies are: `SHAPE_LATENTS`, independent between galaxies.

    Parameters
    ----------
    prior
        The population; every galaxy is taken to be one Sérsic profile.
    zero_point
        AB magnitude of unit flux.
    log_noise
        Natural logarithm of the sky noise, in flux units: one value for each element of the batch.
    validate_args
        As for every distribution.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self, prior: Prior, zero_point: float, log_noise: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.prior, self.zero_point, self.log_noise = prior, zero_point, log_noise
        super().__init__(log_noise.shape, torch.Size([len(SHAPE_LATENTS)]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> GalaxyPrior:
        """Return the distribution with a larger batch.

        Parameters
        ----------
        batch_shape
            The new shape.
        _instance
            Not used; torch's own distributions have it.

        Returns
        -------
        GalaxyPrior
            The same prior.
        """
        return GalaxyPrior(self.prior, self.zero_point, self.log_noise.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw galaxies.

        Parameters
        ----------
        sample_shape
            How many of each.

        Returns
        -------
        Tensor
            ``(*sample, *batch, latent)``; limits that concern pairs are not applied.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad(), pyro.poutine.block(), pyro.plate("drawn", shape.numel()):
            drawn = self.prior.galaxies()
        drawn = {name: value.reshape(shape.numel(), -1).squeeze(-1) for name, value in drawn.items()}
        magnitude, log_major = drawn["magnitude_and_radius"].unbind(-1)
        low, width = self._index_of(drawn["galaxy_type"])
        axis_ratio, twice = drawn["axis_ratio"], 2 * drawn["angle"]
        fraction = (low + width * drawn["shape"] - INDEX_RANGE[0]) / (INDEX_RANGE[1] - INDEX_RANGE[0])
        log_radius = log_major.clamp(*(math.log(end) for end in RADIUS_RANGE)) + axis_ratio.log() / 2
        stretch = -axis_ratio.log()
        log_flux = (self.zero_point - magnitude) / LN_FLUX_UNIT
        parts = [log_flux, log_radius, fraction.logit(eps=1e-5), stretch * twice.cos(), stretch * twice.sin()]
        values = torch.stack(parts, -1).to(self.log_noise).reshape(*shape, len(SHAPE_LATENTS))
        values[..., 0] -= self.log_noise
        return values

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density of latents, summed over types.

        Parameters
        ----------
        value
            ``(..., latent)`` in the order of `SHAPE_LATENTS`.

        Returns
        -------
        Tensor
            ``(...)``; minus infinity for magnitudes beyond the prior's limits.
        """
        log_flux, log_radius, index, plus, cross = value.unbind(-1)
        magnitude = self.zero_point - LN_FLUX_UNIT * (log_flux + self.log_noise)
        stretch = (plus.square() + cross.square() + LEAST_STRETCH**2).sqrt()
        fraction, span = index.sigmoid(), INDEX_RANGE[1] - INDEX_RANGE[0]
        place = torch.stack([magnitude, log_radius + stretch / 2], -1)
        kinds = torch.arange(len(GALAXY_TYPES)).reshape(-1, *(1,) * log_flux.ndim)
        low, width = self._index_of(kinds)
        # The population's numbers are float32.
        appearance = self.prior.magnitude_and_radius(kinds).log_prob(place.float()).to(value)
        shape = _log_beta((INDEX_RANGE[0] + span * fraction - low) / width, 2.0, 2.0) - width.log()
        share = torch.tensor(self.prior.type_probabilities).to(value).log().reshape(kinds.shape)
        slope = (span * fraction * (1 - fraction)).log() + math.log(LN_FLUX_UNIT)
        total = slope + torch.logsumexp(share + appearance + shape + _log_stretch(stretch, kinds), 0)
        least, most = self.prior.magnitude_range
        return total.masked_fill((magnitude < least) | (magnitude > most), -math.inf)

    def _index_of(self, kinds: Tensor) -> tuple[Tensor, Tensor]:
        low, width = torch.tensor(SMOOTH_INDEX)[kinds].unbind(-1)
        return low, width


class PositionPrior(dist.TorchDistribution):
    """The prior of where the galaxies of a blend are, given how large they are.

    Parameters
    ----------
    prior
        The population, with the rule of separation "published".
    major
        Major-axis half-light radii in arcsec ``(..., galaxy)``.
    validate_args
        As for every distribution.

    Raises
    ------
    ValueError
        If the prior has another rule of separation.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(self, prior: Prior, major: Tensor, *, validate_args: bool | None = None) -> None:
        if prior.separation != "published":
            raise ValueError(f"prior must have the rule of separation 'published', got {prior.separation!r}")
        self.prior, self.major = prior, major
        super().__init__(major.shape[:-1], torch.Size([major.shape[-1], 2]), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> PositionPrior:
        """Return the distribution with a larger batch.

        Parameters
        ----------
        batch_shape
            The new shape.
        _instance
            Not used; torch's own distributions have it.

        Returns
        -------
        PositionPrior
            The same prior.
        """
        major = self.major.expand(*batch_shape, self.major.shape[-1])
        return PositionPrior(self.prior, major, validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw positions.

        Parameters
        ----------
        sample_shape
            How many of each.

        Returns
        -------
        Tensor
            ``(*sample, *batch, galaxy, 2)`` in pixels from the middle of the stamp.
        """
        major = self.major.expand(*sample_shape, *self.major.shape)
        places = self.prior.positions(major.reshape(-1, major.shape[-1]) / PUBLISHED_PIXEL_SCALE)
        return torch.stack([places["x"], places["y"]], -1).reshape(*major.shape, 2) - STAMP_CENTER

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density of positions.

        Parameters
        ----------
        value
            ``(..., galaxy, 2)`` in pixels from the middle of the stamp.

        Returns
        -------
        Tensor
            ``(...)``; minus infinity where the central galaxy is more than a pixel from the middle.
        """
        central, others = value[..., 0, :], value[..., 1:, :] - value[..., :1, :]
        inside = (central.abs() <= 1).all(-1)
        anywhere = (others.abs() <= ANYWHERE).all(-1) / (2 * ANYWHERE) ** 2
        density = anywhere.to(value)
        if density.shape[-1]:
            inner, outer = separation_limits(self.major[..., :2] / PUBLISHED_PIXEL_SCALE)
            distance = others[..., 0, :].norm(dim=-1)
            ring = ((distance >= inner) & (distance <= outer)) / (math.pi * (outer.square() - inner.square()))
            share = self.prior.anywhere_fraction
            companion = share * density[..., 0] + (1 - share) * ring
            density = torch.cat([companion[..., None], density[..., 1:]], -1)
        return density.log().sum(-1) + torch.where(inside, -math.log(4.0), -math.inf)


def _log_beta(value: Tensor, first: float | Tensor, second: float | Tensor) -> Tensor:
    """Return the log-density of a beta distribution, minus infinity outside its support; its gradient is finite."""
    first, second = torch.as_tensor(first), torch.as_tensor(second)
    inside = (value > 0) & (value < 1)
    safe = torch.where(inside, value, 0.5)
    normalization = torch.lgamma(first + second) - torch.lgamma(first) - torch.lgamma(second)
    density = (first - 1) * safe.log() + (second - 1) * torch.log1p(-safe) + normalization
    return torch.where(inside, density, -math.inf)


def _log_stretch(stretch: Tensor, kinds: Tensor) -> Tensor:
    """Return the log-density in the plane of stretches, of each type ``(type, ...)``."""
    spheroid = kinds == GALAXY_TYPES.index("sph")
    least, first, second = (torch.where(spheroid, *ends) for ends in zip(*FLATTENING, strict=True))
    axis_ratio = torch.exp(-stretch)
    flat = _log_beta((1 - axis_ratio) / (1 - least), first, second) - torch.log1p(-least)
    return flat - stretch - (2 * math.pi * stretch).log()
