"""Coordinates without bounds for the unknowns of blends of the population, which has ends.

A galaxy is within the limits of magnitude, its companions within a largest difference of it; the central galaxy is
within a pixel of the middle of the stamp, its companions within half the stamp of it; and no galaxy is flatter than the
flattest. The bijection to what is left, `Support`, moves nothing far from an end, so that a posterior without ends
near stays as it is; near an end, as measured by a width that the caller gives, it bends: with ``a`` and ``b`` the ends
and ``s`` the width, ``x = z + s ln(1 + exp((a - z) / s)) - s ln(1 + exp((z - b) / s))``.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform
from torch.nn.functional import logsigmoid, softplus

from ..scene import LN_FLUX_UNIT, STAMP_SIZE
from ..simulation.prior import FLATTENING
from .latents import LATENTS
from .model import BlendModel, Observed

__all__ = ["Support"]

BOXED = [LATENTS.index(name) for name in ("log_flux", "x", "y")]
STRETCH = [LATENTS.index(name) for name in ("stretch_plus", "stretch_cross")]
MOST_STRETCH = -math.log(min(least for least, _, _ in FLATTENING))
LEAST_STRETCH = 1e-9
CLOSEST = 1e-9  # to an end, in units of the width within which coordinates bend


class Support(Transform):
    """The bijection from coordinates without bounds to the unknowns of the blends that the population has.

    Parameters
    ----------
    model
        The generative model.
    observed
        How the images were taken: limits of magnitude are limits of flux over the sky noise.
    width
        How near to an end coordinates bend, for each unknown ``(blend, number)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, model: BlendModel, observed: Observed, width: Tensor) -> None:
        super().__init__()
        self.galaxies = model.galaxies
        magnitudes = torch.tensor(model.prior.magnitude_range[::-1]).double()
        log_noise = observed.sky_rms.double().log()[:, None]
        flux = (model.instrument.zero_point - magnitudes) / LN_FLUX_UNIT - log_noise
        pixel = torch.tensor([-1.0, 1.0]).double().expand_as(flux)
        # Ends of the central galaxy's box and of all others', and how far these reach from it.
        self.low, self.high = torch.stack([flux, pixel, pixel], -1)[:, :, None].unbind(1)
        self.least, self.most = torch.stack([flux, pixel * math.inf, pixel * math.inf], -1)[:, :, None].unbind(1)
        farthest = STAMP_SIZE / 2
        self.reach = torch.tensor([model.prior.max_difference / LN_FLUX_UNIT, farthest, farthest]).double()
        latents, _ = self._split(width)
        self.soft, self.soft_stretch = latents[..., BOXED], latents[..., STRETCH].mean(-1, keepdim=True)

    def _call(self, place: Tensor) -> Tensor:
        latents, nuisances = self._split(place)
        boxed, (radius, direction) = latents[..., BOXED], _polar(latents[..., STRETCH])
        low, high = self._ends(_pressed(boxed[..., :1, :], self.low, self.high, self.soft[..., :1, :]))
        radius = _pressed(radius, -MOST_STRETCH, MOST_STRETCH, self.soft_stretch)
        return _joined(latents, _pressed(boxed, low, high, self.soft), radius * direction, nuisances)

    def _inverse(self, unknown: Tensor) -> Tensor:
        latents, nuisances = self._split(unknown)
        boxed, (radius, direction) = latents[..., BOXED], _polar(latents[..., STRETCH])
        low, high = self._ends(boxed[..., :1, :])
        radius = _released(radius, -MOST_STRETCH, MOST_STRETCH, self.soft_stretch)
        return _joined(latents, _released(boxed, low, high, self.soft), radius * direction, nuisances)

    def log_abs_det_jacobian(self, place: Tensor, unknown: Tensor) -> Tensor:
        """Return the logarithm of the volume that the map makes of a unit.

        Parameters
        ----------
        place
            Coordinates ``(..., blend, number)``.
        unknown
            What the map makes of them.

        Returns
        -------
        Tensor
            ``(..., blend)``.
        """
        (latents, _), (mapped, _) = self._split(place), self._split(unknown)
        (radius, _), (pressed, _) = _polar(latents[..., STRETCH]), _polar(mapped[..., STRETCH])
        of_boxes = _log_slope(latents[..., BOXED], *self._ends(mapped[..., :1, BOXED]), self.soft)
        of_disk = _log_slope(radius, -MOST_STRETCH, MOST_STRETCH, self.soft_stretch) + (pressed / radius).log()
        return torch.cat([of_boxes, of_disk], -1).sum((-2, -1))

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        return vector[..., :-2].unflatten(-1, (self.galaxies, len(LATENTS))), vector[..., -2:]

    def _ends(self, central: Tensor) -> tuple[Tensor, Tensor]:
        """Return both ends of the boxes of all galaxies, given what is boxed of the central one."""
        least, most = torch.maximum(self.least, central - self.reach), torch.minimum(self.most, central + self.reach)
        others = (*central.shape[:-2], self.galaxies - 1, len(BOXED))
        low = torch.cat([self.low.expand_as(central), least.expand(others)], -2)
        return low, torch.cat([self.high.expand_as(central), most.expand(others)], -2)


def _joined(latents: Tensor, boxed: Tensor, stretch: Tensor, nuisances: Tensor) -> Tensor:
    latents = latents.index_copy(-1, torch.tensor(BOXED), boxed).index_copy(-1, torch.tensor(STRETCH), stretch)
    return torch.cat([latents.flatten(-2), nuisances], -1)


def _polar(stretch: Tensor) -> tuple[Tensor, Tensor]:
    radius = (stretch.square().sum(-1, keepdim=True) + LEAST_STRETCH**2).sqrt()
    return radius, stretch / radius


def _pressed(place: Tensor, low: Tensor | float, high: Tensor | float, soft: Tensor) -> Tensor:
    """Map the line to what lies between two ends; far from both, in units of `soft`, nothing moves."""
    return place + soft * (softplus((low - place) / soft) - softplus((place - high) / soft))


def _released(value: Tensor, low: Tensor | float, high: Tensor | float, soft: Tensor) -> Tensor:
    """Undo `_pressed`."""
    from_low, to_high = (((end / soft).clamp(min=CLOSEST)) for end in (value - low, high - value))
    return value + soft * ((-torch.expm1(-from_low)).log() - (-torch.expm1(-to_high)).log())


def _log_slope(place: Tensor, low: Tensor | float, high: Tensor | float, soft: Tensor) -> Tensor:
    """Return the logarithm of the derivative of `_pressed`."""
    between = (-torch.expm1((low - high) / soft)).log()
    return logsigmoid((place - low) / soft) + logsigmoid((high - place) / soft) + between
