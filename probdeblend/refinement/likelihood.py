"""The likelihood of an image given its expected light: photon noise, and correlated noise by its power spectrum.

Noise is a stationary Gaussian field times the standard deviation of each pixel. Residuals over that standard deviation
are stationary, and their Fourier components nearly independent (Whittle 1953, doi:10.1007/BF02590998). On a cutout
these have not the power spectrum of the field but the expected periodogram: the transform of the autocorrelation times
the fraction of the cutout over which a lag has both its ends (Sykulski et al. 2019, doi:10.1093/biomet/asy071). With it
the mean chi-square is one per pixel.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["NoisyImage", "expected_periodogram", "whitened"]

FLOOR = 1e-3  # of the mean power, below which rounding dominates


def expected_periodogram(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the expected ``|FFT|^2 / pixels`` of cutouts ``(..., *shape)`` of unit noise, correlated by kernels."""
    reach = 2 * (max(kernel.shape[-2:]) - 1)
    if min(shape) <= reach:
        raise ValueError(f"image must have more than {reach} pixels, the reach of the noise's correlation, got {shape}")
    unit = kernel.double() / kernel.double().square().sum((-2, -1), keepdim=True).sqrt()
    field = torch.fft.ifft2(torch.fft.fft2(unit, s=shape).abs().square()).real
    lags = (torch.arange(size, device=kernel.device) for size in shape)
    rows, columns = (1 - torch.minimum(lag, len(lag) - lag) / len(lag) for lag in lags)
    return torch.fft.fft2(field * rows[:, None] * columns).real.clamp(min=FLOOR)


def whitened(residual: Tensor, power: Tensor) -> Tensor:
    """Return independent Fourier components of unit variance ``(..., 2, y, x)``: their squares add up to chi-square.

    `residual` is in standard deviations of each pixel ``(..., y, x)``, `power` its `expected_periodogram`.
    """
    spectrum = torch.fft.fft2(residual, norm="ortho") / power.to(residual).sqrt()
    return torch.stack([spectrum.real, spectrum.imag], -3)


class NoisyImage(dist.TorchDistribution):
    """The distribution of images over the sky noise ``(..., band, y, x)``, given their expected light.

    `sky_level` is what sky subtraction left ``(..., band)``, without photon noise of its own; `photon` the variance
    that light of one sky rms in a pixel adds, over that of the sky; `power` the expected periodogram of the noise
    ``(..., band, y, x)``; pixels that are not `good` count as if they were as expected.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 3)

    def __init__(self, light: Tensor, sky_level: Tensor, *, photon: Tensor, power: Tensor, good: Tensor) -> None:
        self.light, self.sky_level, self.photon, self.power, self.good = light, sky_level, photon, power, good
        super().__init__(light.shape[:-3], light.shape[-3:], validate_args=False)

    @property
    def standard_deviation(self) -> Tensor:
        """Standard deviation of each pixel over the sky noise ``(..., band, y, x)``."""
        return (1 + self.photon[..., None, None] * self.light.clamp(min=0)).sqrt()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw images ``(*sample, *batch, band, y, x)``."""
        with torch.no_grad():
            white = torch.randn(*sample_shape, *self.batch_shape, *self.event_shape).to(self.light)
            noise = torch.fft.ifft2(torch.fft.fft2(white) * self.power.to(white).sqrt()).real
            return self.light + self.sky_level[..., None, None] + self.standard_deviation * noise

    def residual(self, value: Tensor) -> Tensor:
        """Return images less their expectation, in standard deviations of each pixel ``(..., band, y, x)``."""
        return self.good * (value - self.light - self.sky_level[..., None, None]) / self.standard_deviation

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the Whittle likelihood of images."""
        chi_square = whitened(self.residual(value), self.power).square().flatten(-4).sum(-1)
        log_variance = self.power.log().to(value) + 2 * self.standard_deviation.log()
        return -(chi_square + (log_variance + math.log(2 * math.pi)).flatten(-3).sum(-1)) / 2
