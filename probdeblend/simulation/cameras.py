"""Cameras: what images are taken with, from HST and JWST to surveys from the ground, drawn at random.

A camera has one band or several, on one grid of pixels. What matters to a network is the PSF in pixels and the noise in
units of its own rms; the pixel scale only says how large galaxies appear. Widths of the effective PSF are log-uniform
between 1.8 and 5 pixels and between 0.06 and 1 arcsec. Half of the PSFs are those of a telescope with a central
obscuration, struts and aberrations, blurred by jitter, the others Moffat profiles of the atmosphere; all are drawn with
GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002), and contain the pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..photometry.noise import correlation_sum
from ..scene import Instrument
from .profiles import reshape_psf

__all__ = ["FINE", "Camera", "Cameras", "noise_numbers"]

FINE = 2.6  # pixels; narrower PSFs are not sampled well enough to be drawn at one sample per pixel
PSF_SIZE = 41  # pixels on a side
EDGE, CORNER = 0.2910, 0.1252  # of the kernel of drizzled noise in CANDELS


class Camera(NamedTuple):
    """The bands of a camera.

    - `pixel_scale` in arcsec.
    - `psf`: effective PSFs ``(band, y, x)`` in pixels.
    - `fine_psf`: the same, sampled twice as finely, where one sample per pixel is not enough; else None.
    - `drizzle`: strength of the noise's correlation ``(band,)``: 0 for white noise, 1 as in CANDELS.
    - `photon`: variance that light of one sky rms in a pixel adds, over that of the sky ``(band,)``.
    - `wavelength` in micron ``(band,)``.
    - `native`: whether it is CANDELS F160W with the PSF and depth of some image.
    """

    pixel_scale: float
    psf: Tensor
    fine_psf: Tensor | None
    drizzle: Tensor
    photon: Tensor
    wavelength: Tensor
    native: bool


def drizzle_kernel(strength: float) -> Tensor:
    """Return the kernel of noise that is `strength` times as correlated as in CANDELS."""
    edge, corner = strength * EDGE, strength * CORNER
    return torch.tensor([[corner, edge, corner], [edge, 1.0, edge], [corner, edge, corner]])


def noise_numbers(camera: Camera) -> Tensor:
    """Return the numbers ``(band, 5)`` that describe the noise and color of each band to a network."""
    rows = []
    for drizzle, photon, wavelength in zip(camera.drizzle, camera.photon, camera.wavelength, strict=True):
        kernel = drizzle_kernel(float(drizzle))
        unit = kernel / kernel.square().sum().sqrt()
        neighbor = float((unit[:, 1:] * unit[:, :-1]).sum())
        known = math.isfinite(wavelength)
        rows.append(
            [
                neighbor,
                0.5 * math.log(correlation_sum(kernel)),
                describe_photons(float(photon)),
                math.log(wavelength / 0.8) if known else 0.0,
                float(known),
            ]
        )
    return torch.tensor(rows)


def describe_photons(photon: float) -> float:
    """Scale the photon variance, per sky rms of light and over the sky variance, to about -1 to 1."""
    return math.log(photon + 1e-3) / 3 + 1


@dataclass(frozen=True)
class Cameras:
    """A population of cameras.

    Parameters
    ----------
    fwhm
        Least and largest width of the effective PSF in pixels.
    seeing
        Least and largest width in arcsec.
    white_fraction
        Fraction of the cameras whose noise is white.
    native_fraction
        Fraction that is CANDELS F160W, with PSFs up to 5 % wider or narrower and sheared by up to 2 %.
    bands
        Probabilities of one, two and three bands, of the others.
    """

    fwhm: tuple[float, float] = (1.8, 5.0)
    seeing: tuple[float, float] = (0.06, 1.0)
    white_fraction: float = 0.4
    native_fraction: float = 0.45
    bands: tuple[float, ...] = (0.6, 0.1, 0.3)

    def sample(self, rng: np.random.Generator) -> Camera:
        """Draw a camera."""
        if rng.random() < self.native_fraction:
            return self.native(rng)
        bands = 1 + int(rng.choice(len(self.bands), p=self.bands))
        fwhm = math.exp(rng.uniform(*np.log(self.fwhm)))
        seeing = math.exp(rng.uniform(*np.log(self.seeing)))
        widths = np.clip(fwhm * np.exp(rng.normal(0, 0.12, bands)) if bands > 1 else [fwhm], *self.fwhm)
        fine = min(widths) < FINE
        first = rng.uniform(0.35, 1.7)
        wavelength = np.sort(first * np.exp(np.r_[0.0, rng.uniform(0.1, 0.9, bands - 1)]))
        drizzle = 0.0 if rng.random() < self.white_fraction else rng.uniform(0, 1.2)
        kind = "space" if rng.random() < 0.5 else "ground"
        drawn = [random_psf(rng, width, kind=kind, fine=fine) for width in widths]
        return Camera(
            pixel_scale=min(max(seeing / fwhm, 0.03), 0.3),
            psf=torch.stack([psf for psf, _ in drawn]),
            fine_psf=torch.stack([psf for _, psf in drawn]) if fine else None,
            drizzle=torch.full((bands,), drizzle),
            photon=torch.from_numpy(np.exp(rng.uniform(math.log(1e-3), math.log(0.2), bands))).float(),
            wavelength=torch.from_numpy(wavelength).float() if rng.random() < 0.7 else torch.full((bands,), math.nan),
            native=False,
        )

    @staticmethod
    def native(rng: np.random.Generator) -> Camera:
        """Draw CANDELS F160W as of some image."""
        instrument = Instrument.candels_f160w()
        size, turn = 0.02 * math.sqrt(rng.random()), 2 * math.pi * rng.random()
        shear = torch.tensor([[size * math.cos(turn), size * math.sin(turn)]])
        psf = reshape_psf(instrument.psf, torch.tensor([rng.uniform(0.95, 1.05)]), shear.float())
        sky_rms = math.exp(rng.uniform(math.log(2e-3), math.log(8e-3)))
        photon = 1 / (rng.uniform(1800, 5000) * sky_rms * correlation_sum(instrument.noise_kernel))
        return Camera(
            pixel_scale=instrument.pixel_scale,
            psf=psf,
            fine_psf=None,
            drizzle=torch.ones(1),
            photon=torch.tensor([photon]),
            wavelength=torch.tensor([1.54]),
            native=True,
        )


def random_psf(rng: np.random.Generator, fwhm: float, *, kind: str, fine: bool) -> tuple[Tensor, Tensor | None]:
    """Draw an effective PSF of a width in pixels, and the same at twice the sampling if `fine`."""
    import galsim

    shear = {"g1": rng.normal(0, 0.03), "g2": rng.normal(0, 0.03)}
    if kind == "ground":
        light = galsim.Moffat(beta=rng.uniform(2.2, 5.0), fwhm=fwhm).shear(**shear)
    else:
        blur = rng.uniform(0.3, 0.8)
        aberrations = [0.0, 0, 0, 0, *rng.normal(0, 0.04, 8)]
        struts = {
            "nstruts": int(rng.choice([0, 3, 4])),
            "strut_thick": 0.02,
            "strut_angle": rng.uniform(0, 90) * galsim.degrees,
        }
        core = galsim.OpticalPSF(
            lam_over_diam=fwhm * math.sqrt(1 - blur**2), aberrations=aberrations, obscuration=rng.uniform(0.1, 0.35),
            pad_factor=1.0, oversampling=1.0, suppress_warning=True, **struts,
        )  # fmt: skip
        light = galsim.Convolve(core, galsim.Gaussian(fwhm=fwhm * blur).shear(**shear))
    pixel = galsim.Pixel(1.0)
    # The pixel widens the PSF, so the light without it is narrower than what is asked for.
    for _ in range(2):
        measured = galsim.Convolve(light, pixel).drawImage(nx=33, ny=33, scale=0.5, method="no_pixel").calculateFWHM()
        light = light.dilate(min(max(fwhm / measured, 0.6), 1.4))
    effective = galsim.Convolve(light, pixel)
    stamps = []
    for size, scale in ((PSF_SIZE, 1.0), *([(2 * PSF_SIZE - 1, 0.5)] if fine else [])):
        drawn = effective.drawImage(nx=size, ny=size, scale=scale, method="no_pixel", dtype=np.float32).array
        stamps.append(torch.from_numpy(drawn / drawn.sum()))
    return stamps[0], stamps[1] if fine else None
