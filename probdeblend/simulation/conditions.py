"""The conditions of a training set, and the batches that a loss is evaluated on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..scene import Blend
from .profiles import reshape_psf

__all__ = ["Batch", "Conditions", "training_batch", "turn"]


class Batch(NamedTuple):
    """Input of a loss: image ``(blend, band, y, x)``, flux ``(blend, galaxy)``, mask and light of each galaxy alone.

    Mask and light are ``(blend, galaxy, y, x)``; all but the mask are in units of the sky noise.
    """

    image: Tensor
    flux: Tensor
    mask: Tensor
    light: Tensor


@dataclass(frozen=True)
class Conditions:
    """What varies from image to image of a training set: depth and PSF.

    Parameters
    ----------
    sky_rms
        Least and largest sky noise of a pixel in image units, log-uniform between.
    exposure
        Least and largest exposure in counts per unit of flux, uniform between.
    psf_growth
        Least and largest width of the PSF relative to that of the instrument, uniform between.
    psf_shear
        Largest reduced shear of the PSF, (a - b) / (a + b) of its half-axes; uniform in the plane of shears.

    Raises
    ------
    ValueError
        If a range is not positive and increasing, or the shear not between 0 and 1.
    """

    sky_rms: tuple[float, float] = (2e-3, 8e-3)
    exposure: tuple[float, float] = (1800.0, 5000.0)
    psf_growth: tuple[float, float] = (0.95, 1.05)
    psf_shear: float = 0.02

    def __post_init__(self) -> None:
        for name in ("sky_rms", "exposure", "psf_growth"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a positive, increasing range, got {(low, high)}")
        if not 0 <= self.psf_shear < 1:
            raise ValueError(f"psf_shear must be at least 0 and less than 1, got {self.psf_shear}")

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw sky noise and exposure ``(blend,)`` from torch's default generator.

        Parameters
        ----------
        count
            Number of blends.

        Returns
        -------
        tuple
            Sky noise per pixel and exposure in seconds.
        """
        low, high = (math.log(value) for value in self.sky_rms)
        least, most = self.exposure
        return (low + (high - low) * torch.rand(count)).exp(), least + (most - least) * torch.rand(count)

    def sample_psf(self, psf: Tensor) -> Tensor:
        """Draw a PSF, the instrument's effective one wider and sheared, from torch's default generator.

        Parameters
        ----------
        psf
            Effective PSF ``(y, x)``.

        Returns
        -------
        Tensor
            A PSF of the same shape.
        """
        low, high = self.psf_growth
        if low == high == 1 and self.psf_shear == 0:
            return psf
        growth = low + (high - low) * torch.rand(1)
        size, turn = self.psf_shear * torch.rand(1).sqrt(), 2 * math.pi * torch.rand(1)
        shear = torch.stack([size * turn.cos(), size * turn.sin()], -1)
        return reshape_psf(psf, growth.to(psf), shear.to(psf))[0]


def training_batch(blend: Blend) -> Batch:
    """Return the input of a loss, from pairs with truth in one band."""
    if blend.flux is None or blend.mask is None or blend.isolated is None:
        raise ValueError("blends must have flux, mask and isolated to train on, got blends without truth")
    if blend.flux.shape[1] != 2 or torch.isnan(blend.flux).any():
        raise ValueError("blends must be pairs to train on, got other numbers of galaxies")
    rms = blend.sky_rms[:, None, None, None]
    return Batch(blend.image / rms, blend.flux[..., 0] / rms[:, :, 0, 0], blend.mask, blend.isolated[:, :, 0] / rms)


def turn(batch: Batch, *, quarters: int, flip: bool) -> Batch:
    """Rotate all images by quarter turns from +x to +y, flipped in x before if `flip`; fluxes stay."""
    pixels = {name: values.flip(-1) if flip else values for name, values in batch._asdict().items() if name != "flux"}
    return batch._replace(**{name: torch.rot90(values, -quarters, (-2, -1)) for name, values in pixels.items()})
