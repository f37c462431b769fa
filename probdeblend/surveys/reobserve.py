"""Lone galaxies from elsewhere, observed anew: with the instrument's pixels and noise.

A COSMOS galaxy comes with its own PSF and noise (GalSim's `galsim.RealGalaxyCatalog`; Mandelbaum et al. 2012,
doi:10.1111/j.1365-2966.2012.20983.x). GalSim takes the PSF out, and convolution with the wider F160W PSF brings the
deconvolved noise back to a finite, correlated field. New sky noise is added so that its variance and that of the
old noise together are the instrument's; where the old noise alone is more, the galaxy is left out.

Stamps of a simulated galaxy, such as those of the VELA simulations, are taken as they are seen, resampled to the
instrument's pixels. Their total flux is known. Where their own noise is more than the instrument's, it stays what it
is, and noise of the same variance surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import galsim
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..metrics.fluxes import nmad
from ..photometry.detection import HOT, detect
from ..photometry.noise import correlated_noise, correlation_sum
from ..photometry.sky import dilate
from ..scene import STAMP_CENTER, STAMP_SIZE, Instrument, seed_of
from .isolated import LoneGalaxy, NotAloneError, measure_galaxy

__all__ = ["observe_real_galaxies", "observe_stamps"]

MOST_NOISE = 2.0
SMALLEST_SAMPLE = 50
BORDER = 8  # pixels at the edge of a stamp that hold sky alone
NOISY = "its own noise is more than the instrument's"
Report = Callable[[str], None]


def _ignore(reason: str) -> None:
    del reason


def observe_real_galaxies(
    catalog: galsim.RealGalaxyCatalog,
    *,
    instrument: Instrument,
    magnitude_limit: float = 24.2,
    seed: int = 0,
    report: Report = _ignore,
) -> Iterator[tuple[str, LoneGalaxy, int]]:
    """Observe the galaxies of a RealGalaxy catalog with an instrument, keeping their magnitudes.

    Parameters
    ----------
    catalog
        GalSim's catalog of galaxies with their PSFs.
    instrument
        PSF, pixels, zero point, noise.
    magnitude_limit
        Faintest magnitude in the catalog's band.
    seed
        Seed of the noise, keyed by the galaxy's number.
    report
        Called with the reason of each galaxy that is left out.

    Yields
    ------
    tuple
        Name, galaxy, and -1 for the unknown type.
    """
    kernel = galsim.Image(instrument.psf.double().cpu().numpy(), scale=instrument.pixel_scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31))
    for number in range(catalog.nobjects):
        if not catalog.mag[number] < magnitude_limit:
            report("too faint")
            continue
        galaxy = galsim.RealGalaxy(catalog, index=number)
        wanted = 10 ** (-0.4 * (catalog.mag[number] - instrument.zero_point))
        seen = galsim.Convolve(galaxy * (wanted / galaxy.flux), psf)
        image = _drawn(seen, instrument)
        # The old noise fills the galaxy's own, smaller stamp alone, and may be more than GalSim's model says, which
        # is for fluxes per pixel of the catalog's size.
        native = float(catalog.pixel_scale[number])
        own = _square(min(catalog.getGalImage(number).array.shape) * native, instrument)
        blank = own & (dilate(detect(image, instrument.sky_rms, **HOT).segmentation) == 0)
        model = seen.noise.getVariance() * (instrument.pixel_scale / native) ** 4
        old = max(model, nmad(image[blank]) ** 2 if blank.sum() > SMALLEST_SAMPLE else 0.0)
        if old > instrument.sky_rms**2:
            report(NOISY)
            continue
        photons = np.maximum(image, 0.0) / (instrument.exposure * correlation_sum(instrument.noise_kernel))
        missing = instrument.sky_rms**2 - np.where(own, old, 0.0) + photons
        try:
            cut = _measured(image + _noise(missing, instrument, (seed, number)), instrument)
        except NotAloneError as error:
            report(str(error))
            continue
        yield f"cosmos:{catalog.ident[number]}", cut, -1


def observe_stamps(
    stamps: Sequence[NDArray],
    magnitudes: ArrayLike,
    zero_points: ArrayLike,
    *,
    pixel_scale: ArrayLike,
    identity: str,
    instrument: Instrument,
    seed: int = 0,
    report: Report = _ignore,
) -> Iterator[tuple[str, LoneGalaxy, int, float]]:
    """Observe stamps of one galaxy whose true magnitude is known, with the instrument's pixels and noise.

    The PSF and the noise of the stamps stay, photon noise included; sky noise is added up to the instrument's.

    Parameters
    ----------
    stamps
        Sky-subtracted images ``(y, x)``, the galaxy in the middle.
    magnitudes
        True AB magnitude of each.
    zero_points
        AB magnitude of unit flux of each.
    pixel_scale
        Size of the pixels of each in arcsec.
    identity
        Name of the galaxy; all stamps are one identity.
    instrument
        Pixels, zero point, noise.
    seed
        Seed of the noise, keyed by the stamp's number.
    report
        Called with the reason of each stamp that is left out.

    Yields
    ------
    tuple
        Name, galaxy, -1 for the unknown type, and the true total flux in the instrument's units.
    """
    scales = np.broadcast_to(pixel_scale, len(stamps))
    described = zip(stamps, magnitudes, zero_points, scales, strict=True)
    for number, (pixels, magnitude, zero_point, scale) in enumerate(described):
        native = np.asarray(pixels, dtype=np.float64) * 10 ** (0.4 * (instrument.zero_point - zero_point))
        if not np.isfinite(native).all():
            report("missing pixels")
            continue
        image = _drawn(galsim.InterpolatedImage(galsim.Image(native, scale=scale)), instrument)
        side = min(native.shape) * scale
        own = _square(side - 2 * instrument.pixel_scale, instrument)
        own_rms = nmad(image[own & ~_square(side - 2 * BORDER * instrument.pixel_scale, instrument)])
        if own_rms > MOST_NOISE * instrument.sky_rms:
            report(NOISY)
            continue
        seen = instrument.replace(sky_rms=max(own_rms, instrument.sky_rms))
        missing = seen.sky_rms**2 - np.where(own, own_rms**2, 0.0)
        try:
            cut = _measured(image + _noise(missing, seen, (seed, number)), seen)
        except NotAloneError as error:
            report(str(error))
            continue
        yield identity, cut, -1, 10 ** (-0.4 * (float(magnitude) - instrument.zero_point))


def _drawn(source: galsim.GSObject, instrument: Instrument) -> NDArray[np.float64]:
    grid = {"nx": STAMP_SIZE, "ny": STAMP_SIZE, "scale": instrument.pixel_scale}
    return source.drawImage(**grid, method="no_pixel", dtype=float).array


def _square(side: float, instrument: Instrument) -> NDArray[np.bool_]:
    """Pixels of a stamp within a centered square, whose side is in arcsec."""
    inside = np.abs(np.arange(STAMP_SIZE) - STAMP_CENTER) <= side / instrument.pixel_scale / 2
    return inside[:, None] & inside


def _noise(variance: NDArray[np.float64], instrument: Instrument, key: tuple[int, int]) -> NDArray[np.float64]:
    """Draw noise with the instrument's correlation and the variance of each pixel."""
    kernel = instrument.to("cpu").noise_kernel
    noise = correlated_noise(variance.shape, kernel, generator=torch.Generator().manual_seed(seed_of(*key)))
    return np.sqrt(np.maximum(variance, 0.0)) * noise.double().numpy()


def _measured(stamp: NDArray[np.float64], instrument: Instrument) -> LoneGalaxy:
    factor = correlation_sum(instrument.noise_kernel) ** 0.5
    center = (STAMP_CENTER, STAMP_CENTER)
    return measure_galaxy(stamp, instrument.sky_rms, center, exposure=instrument.exposure, noise_factor=factor)
