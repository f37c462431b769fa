"""The generative model of an image of a blend, as a Pyro program.

For each blend of a batch:

1. The brightness, size and shape of each galaxy follow the population (`~probdeblend.refinement.latents.GalaxyPrior`):
   the plate ``galaxy``, masked where a blend has fewer galaxies.
2. The central galaxy lies within a pixel of the middle of the stamp, the others where blends have them
   (`~probdeblend.refinement.latents.PositionPrior`).
3. Sky subtraction has left a level of the sky, normal with a standard deviation of 0.05 of the sky noise; the PSF is
   wider than assumed by a factor, ln of it normal with a standard deviation of 0.02.
4. Sérsic profiles convolved with that PSF (`~probdeblend.simulation.profiles.render`) are the expected light.
5. The image has photon noise, and sky noise correlated by drizzling (`~probdeblend.refinement.likelihood.NoisyImage`).

All is in units of the sky noise. With the PSF or the sky taken as known, intervals of fluxes are too narrow, and
chi-square does not show it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scene import LN_FLUX_UNIT, STAMP_SIZE, Instrument, seed_of
from ..simulation.conditions import Conditions
from ..simulation.prior import Prior
from ..simulation.profiles import render, widen_psf
from .latents import LATENTS, POSITION, SHAPE, GalaxyPrior, PositionPrior, to_components, to_latents
from .likelihood import NoisyImage

__all__ = ["KNOWN", "NUISANCES", "BlendModel", "Observed", "in_all_orders"]

NUISANCES = ("sky_level", "log_psf_growth")
KNOWN = 1e-6  # standard deviation of a nuisance that is taken as known, where a density is needed
LEAST_SIZE = 32
NEAR = 0.9  # of the renderer's reach, to which positions are clipped


class Observed(NamedTuple):
    """Images of blends, and how they were taken.

    Parameters
    ----------
    image
        Pixels over the sky noise ``(blend, y, x)``.
    sky_rms
        Sky noise in flux units ``(blend,)``.
    exposure
        Effective exposure in counts per unit of flux ``(blend,)``.
    """

    image: Tensor
    sky_rms: Tensor
    exposure: Tensor

    def select(self, blends: NDArray[np.int64] | Tensor | slice) -> Observed:
        """Return some of the blends."""
        return Observed(*(value[blends] for value in self))


@dataclass(frozen=True, eq=False)
class BlendModel:
    """The generative model of blends of Sérsic galaxies.

    Parameters
    ----------
    prior
        The population; every galaxy is one Sérsic profile.
    instrument
        PSF, pixel scale, zero point and correlation of the noise.
    size
        Pixels along a side of the images, which are centered on the stamp.
    galaxies
        Number of galaxies per blend.
    sky_level
        Standard deviation of the sky level left by sky subtraction, over the sky noise; 0 takes the sky as known.
    psf_growth
        Standard deviation of ln of the PSF's true width over the assumed one; 0 takes the PSF as known.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    prior: Prior
    instrument: Instrument
    size: int = STAMP_SIZE
    galaxies: int = 2
    sky_level: float = 0.05
    psf_growth: float = 0.02

    def __post_init__(self) -> None:
        if self.size % 2 or not LEAST_SIZE <= self.size <= STAMP_SIZE:
            raise ValueError(f"size must be even, at least {LEAST_SIZE} and at most {STAMP_SIZE}, got {self.size}")
        if self.galaxies < 1:
            raise ValueError(f"galaxies must be at least 1, got {self.galaxies}")
        for name in ("sky_level", "psf_growth"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def numbers(self) -> int:
        """Number of unknowns per blend: those of its galaxies, sky level and PSF width."""
        return self.galaxies * len(LATENTS) + len(NUISANCES)

    def split(self, unknown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split vectors of all unknowns ``(..., number)`` into latents, sky level and ln of the PSF's growth.

        Latents are ``(..., galaxy, latent)``, in the order of `LATENTS`.

        Parameters
        ----------
        unknown
            Vectors of all unknowns.

        Returns
        -------
        tuple
            Latents, sky level and ln of the growth.
        """
        latents = unknown[..., :-2].unflatten(-1, (self.galaxies, len(LATENTS)))
        return latents, unknown[..., -2], unknown[..., -1]

    def light(self, latents: Tensor, log_psf_growth: Tensor, *, present: Tensor | None = None) -> Tensor:
        """Return the expected light of each galaxy.

        Parameters
        ----------
        latents
            ``(blend, galaxy, latent)``.
        log_psf_growth
            Natural logarithm of the PSF's width over the instrument's ``(blend,)``.
        present
            Which galaxies exist ``(blend, galaxy)``; all if None.

        Returns
        -------
        Tensor
            Images over the sky noise ``(blend, galaxy, y, x)``.
        """
        components = to_components(latents, present=present)
        shift = (STAMP_SIZE - self.size) / 2
        # A proposal may stray: galaxies out of the renderer's reach lie outside the stamp as well.
        reach = NEAR * self.size / 4
        moved = {name: (getattr(components, name) - shift).clamp(-reach, self.size - 1 + reach) for name in ("x", "y")}
        psf = self.instrument.psf
        excess = max(0, (psf.shape[-1] - self.size + 2) // 2)  # pixels of the PSF that the image cannot hold
        psf = psf[excess : len(psf) - excess, excess : len(psf) - excess].to(latents)
        components, psf = replace(components, **moved), widen_psf(psf, log_psf_growth.exp())
        return render(components, psf, pixel_scale=self.instrument.pixel_scale, size=self.size)

    def noisy(self, light: Tensor, sky_level: Tensor, observed: Observed) -> NoisyImage:
        """Return the distribution of images, given the light of all galaxies ``(..., y, x)`` and the sky level.

        Parameters
        ----------
        light
            Expected light over sky noise.
        sky_level
            Residual level of the sky over sky noise.
        observed
            The images, for sky noise and exposure.

        Returns
        -------
        NoisyImage
            The distribution of the pixels.
        """
        gain = (observed.sky_rms * observed.exposure).to(light).expand(sky_level.shape)
        return NoisyImage(light, sky_level, gain, kernel=self.instrument.noise_kernel)

    def log_prior(self, unknown: Tensor, observed: Observed) -> Tensor:
        """Return the prior density ``(..., blend)`` of unknowns ``(..., blend, number)``, given how images were taken.

        It is minus infinity beyond the limits of the population.

        Parameters
        ----------
        unknown
            Vectors of all unknowns.
        observed
            The images, for their sky noise.

        Returns
        -------
        Tensor
            The logarithm of the density.
        """
        latents, sky_level, growth = self.split(unknown)
        log_noise = observed.sky_rms.log()[:, None].expand(-1, self.galaxies).to(unknown)
        total = GalaxyPrior(self.prior, self.instrument.zero_point, log_noise).log_prob(latents[..., SHAPE]).sum(-1)
        total = total + PositionPrior(self.prior, _major(latents)).log_prob(latents[..., POSITION])
        total = total.masked_fill(self._beyond(latents), -torch.inf)
        for value, scale in ((sky_level, self.sky_level), (growth, self.psf_growth)):
            total = total + dist.Normal(0.0, scale or KNOWN, validate_args=False).log_prob(value)
        return total

    def _beyond(self, latents: Tensor, present: Tensor | bool = True) -> Tensor:
        """Return which blends differ by more magnitudes than the prior allows."""
        beyond = LN_FLUX_UNIT * (latents[..., 1:, 0] - latents[..., :1, 0]).abs() >= self.prior.max_difference
        return (beyond & present).any(-1)

    def draw_unknown(self, count: int, *, sky_rms: Tensor, seed: int = 0) -> Tensor:
        """Draw unknowns ``(blend, number)`` from the prior, within the limits of the population.

        Parameters
        ----------
        count
            Number of blends.
        sky_rms
            Sky noise of each blend ``(blend,)``.
        seed
            Random seed.

        Returns
        -------
        Tensor
            Vectors of all unknowns.
        """
        prior = replace(self.prior, smooth=True, crowding=(*(0.0,) * (self.galaxies - 1), 1.0))
        pairs = prior.sample(count, seed=seed_of(seed, 0))
        latents = to_latents(prior.components(pairs, self.instrument, seed=0), sky_rms=sky_rms)
        generator = torch.Generator().manual_seed(seed_of(seed, 1))
        nuisances = torch.randn(count, 2, generator=generator) * torch.tensor([self.sky_level, self.psf_growth])
        return torch.cat([latents[:, : self.galaxies].flatten(1), nuisances], -1)

    def simulate(self, count: int, *, conditions: Conditions | None = None, seed: int = 0) -> tuple[Observed, Tensor]:
        """Draw blends from the model.

        Parameters
        ----------
        count
            Number of blends.
        conditions
            Range of depths; the default one if None. The PSF varies as in the model.
        seed
            Same seed, same blends.

        Returns
        -------
        observed, unknown
            The images, and the true vectors ``(blend, number)``.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed_of(seed, 2))
            sky_rms, exposure = (conditions or Conditions()).sample(count)
            unknown = self.draw_unknown(count, sky_rms=sky_rms, seed=seed)
            latents, sky_level, growth = self.split(unknown)
            observed = Observed(torch.empty(0), sky_rms, exposure)
            image = self.noisy(self.light(latents, growth).sum(1), sky_level, observed).sample()
        return observed._replace(image=image), unknown

    def log_likelihood(self, unknown: Tensor, observed: Observed) -> Tensor:
        """Return the likelihood ``(..., blend)`` of images, given unknowns ``(..., blend, number)``.

        Parameters
        ----------
        unknown
            Vectors of all unknowns.
        observed
            The images.

        Returns
        -------
        Tensor
            The logarithm of the likelihood.
        """
        latents, sky_level, growth = self.split(unknown)
        light = self.light(latents.flatten(0, -3), growth.flatten()).sum(1).unflatten(0, growth.shape)
        return self.noisy(light, sky_level, observed).log_prob(observed.image.to(unknown))

    def __call__(
        self, image: Tensor | None, *, sky_rms: Tensor, exposure: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Run the Pyro program.

        Parameters
        ----------
        image
            Pixels over the sky noise ``(blend, y, x)`` to condition on; None to draw them.
        sky_rms, exposure
            As in `Observed`, ``(blend,)``.
        present
            Which galaxies exist ``(blend, galaxy)``; all if None. The first one always does.

        Returns
        -------
        Tensor
            The images.
        """
        count = len(sky_rms)
        there = torch.ones(count, self.galaxies, dtype=torch.bool) if present is None else present
        log_noise = sky_rms.log()[:, None].expand(-1, self.galaxies)
        with pyro.plate("blend", count, dim=-2):
            with pyro.plate("galaxy", self.galaxies, dim=-1), pyro.poutine.mask(mask=there):
                shape = pyro.sample("shape", GalaxyPrior(self.prior, self.instrument.zero_point, log_noise))
            latents = shape.new_zeros(count, self.galaxies, len(LATENTS))
            latents[..., SHAPE] = shape
            position = pyro.sample("position", PositionPrior(self.prior, _major(latents)[:, None]))[:, 0]
            latents = latents.index_copy(-1, torch.tensor(POSITION), position)
            sky_level = self._nuisance("sky_level", self.sky_level, shape)
            growth = self._nuisance("log_psf_growth", self.psf_growth, shape)
            pyro.factor("limits", torch.where(self._beyond(latents, there[:, 1:]), -torch.inf, 0.0)[:, None])
            light = self.light(latents, growth, present=there).sum(1)
            taken = Observed(light, sky_rms[:, None], exposure[:, None])
            noisy = self.noisy(light[:, None], sky_level[:, None], taken)
            return pyro.sample("image", noisy, obs=None if image is None else image[:, None])[:, 0]

    def _nuisance(self, name: str, scale: float, like: Tensor) -> Tensor:
        if not scale:
            return like.new_zeros(len(like))
        return pyro.sample(name, dist.Normal(like.new_zeros(len(like), 1), scale))[:, 0]


def in_all_orders(unknown: Tensor) -> Tensor:
    """Return unknowns ``(order, ..., number)`` with their galaxies in all orders, that of the input first."""
    galaxies = unknown[..., : -len(NUISANCES)].unflatten(-1, (-1, len(LATENTS)))
    others = unknown[..., -len(NUISANCES) :]
    orders = permutations(range(galaxies.shape[-2]))
    return torch.stack([torch.cat([galaxies[..., order, :].flatten(-2), others], -1) for order in orders])


def _major(latents: Tensor) -> Tensor:
    """Return major-axis half-light radii in arcsec ``(..., galaxy)``."""
    log_radius, _, plus, cross = latents[..., 3:].unbind(-1)
    return torch.exp(log_radius + torch.hypot(plus, cross) / 2)
