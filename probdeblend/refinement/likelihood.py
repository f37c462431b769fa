"""The likelihood of an image given its expected light: photon noise, and correlated noise by its power spectrum.

Noise is a stationary Gaussian field times the standard deviation of each pixel. Residuals over that standard deviation
are stationary, and their Fourier components nearly independent (Whittle 1953, doi:10.1007/BF02590998). On a stamp these
have not the power spectrum of the field but the expected periodogram: the transform of the autocorrelation times the
fraction of the stamp over which a lag has both its ends (Sykulski et al. 2019, doi:10.1093/biomet/asy071). With it the
mean chi-square is one per pixel.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..photometry.noise import autocorrelation, correlated_noise, correlation_sum

__all__ = ["NoisyImage", "expected_periodogram", "whitened"]

FLOOR = 1e-3  # of the mean power, below which rounding dominates


def expected_periodogram(kernel: Tensor | None, size: int) -> Tensor:
    """Return the expected ``|FFT|^2 / size^2`` ``(size, size)`` of a stamp of unit noise, correlated by a kernel."""
    correlation = autocorrelation(kernel).double()
    reach = correlation.shape[-1] // 2
    if size <= 2 * reach:
        raise ValueError(f"size must be more than {2 * reach} pixels, the reach of the correlation, got {size}")
    lags = torch.arange(-reach, reach + 1, device=correlation.device)
    share = 1 - lags.abs() / size
    field = correlation.new_zeros(size, size)
    field[lags[:, None] % size, lags % size] = correlation * share[:, None] * share
    return torch.fft.fft2(field).real.clamp(min=FLOOR)


def whitened(residual: Tensor, power: Tensor) -> Tensor:
    """Return independent Fourier components of unit variance ``(..., 2, y, x)``: their squares add up to chi-square.

    `residual` is in standard deviations of each pixel ``(..., y, x)``, `power` its `expected_periodogram`.
    """
    spectrum = torch.fft.fft2(residual) / (power.to(residual).sqrt() * residual.shape[-1])
    return torch.stack([spectrum.real, spectrum.imag], -3)


class NoisyImage(dist.TorchDistribution):
    """The distribution of images over the sky noise, given their expected light ``(..., y, x)``.

    `sky_level` is what sky subtraction left ``(...)``, without photon noise of its own; `gain` the counts per unit of
    the sky noise ``(...)``, infinite for no photon noise; `kernel` that of the correlation, None for white noise.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, light: Tensor, sky_level: Tensor, gain: Tensor, *, kernel: Tensor | None) -> None:
        self.light, self.sky_level, self.gain, self.kernel = light, sky_level, gain, kernel
        super().__init__(light.shape[:-2], light.shape[-2:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> NoisyImage:
        """Return the distribution with a larger batch."""
        light = self.light.expand(*batch_shape, *self.event_shape)
        sky_level, gain = (value.expand(batch_shape) for value in (self.sky_level, self.gain))
        return NoisyImage(light, sky_level, gain, kernel=self.kernel)

    @property
    def standard_deviation(self) -> Tensor:
        """Standard deviation of each pixel over the sky noise ``(..., y, x)``."""
        counts = (self.gain * correlation_sum(self.kernel))[..., None, None]
        return (1 + self.light.clamp(min=0) / counts).sqrt()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw images ``(*sample, *batch, y, x)``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        with torch.no_grad():
            noise = correlated_noise(tuple(shape), self.kernel).to(self.light)
            return self.light + self.sky_level[..., None, None] + self.standard_deviation * noise

    def residual(self, value: Tensor) -> Tensor:
        """Return images less their expectation, in standard deviations of each pixel ``(..., y, x)``."""
        return (value - self.light - self.sky_level[..., None, None]) / self.standard_deviation

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the Whittle likelihood of images."""
        size = self.event_shape[-1]
        power = expected_periodogram(self.kernel, size).to(value)
        chi_square = whitened(self.residual(value), power).square().sum((-3, -2, -1))
        log_determinant = power.log().sum() + 2 * self.standard_deviation.log().sum((-2, -1))
        return -(chi_square + log_determinant + size**2 * math.log(2 * math.pi)) / 2
