"""Noise of drizzled images: its correlation, and how to draw it.

Drizzling spreads every detector pixel over several output pixels, which lowers the scatter of a pixel and correlates it
with its neighbors; sums over many pixels scatter as before. The noise here is white noise convolved with a kernel and
scaled to the required standard deviation, so its covariance is positive definite by construction. With unit-variance
correlation ``rho(dy, dx)``, a sum over a large area scatters ``sqrt(sum(rho))`` times as much as with independent
pixels of the same rms (Casertano et al. 2000, doi:10.1086/316851): 2.25 for CANDELS F160W.

Photon noise is the same field, scaled: a pixel of expected flux ``I`` has the variance
``sky_rms**2 + I / (exposure * sum(rho))``, so that the flux of a galaxy has Poisson scatter ``sqrt(flux / exposure)``.
"""

import torch
from torch import Tensor

from ..scene import correlation_sum

__all__ = ["add_noise", "autocorrelation", "correlated_noise", "noise_numbers"]

LEAST_PHOTONS = 1e-3  # photon variance over sky variance below which it does not matter
TYPICAL_WAVELENGTH = 0.8  # micron


def _unit_kernel(kernel: Tensor) -> Tensor:
    return kernel / kernel.square().sum((-2, -1), keepdim=True).sqrt()


def autocorrelation(kernel: Tensor) -> Tensor:
    """Return the autocorrelation of white noise convolved with a kernel.

    Parameters
    ----------
    kernel
        Kernel ``(y, x)``.

    Returns
    -------
    Tensor
        Correlation of two pixels by their lag ``(2 y - 1, 2 x - 1)``, 1 at the center. Its sum is the variance of a sum
        over a large area relative to that of white noise with the same rms.
    """
    unit = _unit_kernel(kernel)[None, None]
    height, width = kernel.shape
    return torch.nn.functional.conv2d(unit, unit, padding=(height - 1, width - 1))[0, 0]


def correlated_noise(shape: tuple[int, ...], kernel: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw stationary Gaussian noise ``(..., y, x)`` of unit variance, with the correlation of the kernel.

    The kernel is one for all ``(y, x)``, or one for each image ``(..., y, x)``.
    """
    height, width = kernel.shape[-2:]
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"kernel must have odd sides, got shape {(height, width)}")
    *leading, rows, columns = shape
    size = (*leading, rows + height - 1, columns + width - 1)
    white = torch.randn(size, generator=generator, device=kernel.device, dtype=kernel.dtype)
    unit = _unit_kernel(kernel).reshape(-1, 1, height, width)
    flat = white.reshape(-1, len(unit), *size[-2:])
    return torch.nn.functional.conv2d(flat, unit, groups=len(unit)).reshape(shape)


def add_noise(
    light: Tensor, *, sky_rms: Tensor, exposure: Tensor, noise_kernel: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Add sky and photon noise to noiseless images.

    Parameters
    ----------
    light
        Noiseless images ``(scene, band, y, x)`` in image units.
    sky_rms, exposure
        Sky noise of a pixel and counts per unit of flux ``(scene, band)``; infinite without photon noise.
    noise_kernel
        Kernel ``(scene, band, y, x)`` that turns white noise into the noise of the sky.
    generator
        Source of randomness; torch's default generator if None.

    Returns
    -------
    Tensor
        The noisy images.
    """
    photons = light.clamp(min=0) / (exposure * correlation_sum(noise_kernel))[..., None, None]
    rms = (sky_rms.square()[..., None, None] + photons).sqrt()
    return light + rms * correlated_noise(tuple(light.shape), noise_kernel, generator=generator).to(light)


def noise_numbers(noise_kernel: Tensor, photon: Tensor, wavelength: Tensor) -> Tensor:
    """Describe the noise and color of bands to a network.

    Parameters
    ----------
    noise_kernel
        Kernel ``(scene, band, y, x)`` that turns white noise into the noise of the sky.
    photon
        Variance that light of one sky rms in a pixel adds, over the variance of the sky ``(scene, band)``:
        1 / (exposure * sky_rms * correlation sum), and 0 where photon noise does not matter.
    wavelength
        Wavelength in micron ``(scene, band)``; NaN where unknown.

    Returns
    -------
    Tensor
        Five numbers ``(scene, band, 5)`` of order 1: the correlation of next pixels, ln of how much more sums over
        large areas scatter than with white noise, the photon noise, ln of the wavelength, and whether it is known.
    """
    unit = _unit_kernel(noise_kernel)
    neighbor = (unit[..., 1:] * unit[..., :-1]).sum((-2, -1))
    spread = unit.sum((-2, -1)).abs().log()
    photons = (photon + LEAST_PHOTONS).log() / 3 + 1
    known = wavelength.isfinite()
    color = torch.where(known, wavelength / TYPICAL_WAVELENGTH, 1.0).log()
    return torch.stack([neighbor, spread, photons, color, known.to(photon)], -1).to(photon)
