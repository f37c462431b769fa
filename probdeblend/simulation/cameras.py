"""Cameras: what images are taken with, from HST and JWST to surveys from the ground, drawn at random.

A camera has one band or several, on one grid of pixels. What matters to a network is the PSF in pixels and the noise in
units of its own rms; the pixel scale only says how large galaxies appear. Widths of the effective PSF are log-uniform
between 1.8 and 5 pixels and between 0.06 and 1 arcsec. Half of the PSFs are those of a telescope with a central
obscuration, struts and aberrations, blurred by jitter, the others Moffat profiles of the atmosphere; all are drawn with
GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002), and contain the pixel.
"""

import math
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..scene import PSF_SIZE, check_conditions, correlation_sum, drizzle_kernel

__all__ = ["CAMERAS", "Camera", "Cameras"]

FINE = 2.6  # pixels; narrower PSFs are not sampled well enough to be drawn at one sample per pixel
UNKNOWN = (0.5, 1.5)  # micron, from the bluest to the reddest band where wavelengths are not known


@dataclass(frozen=True, eq=False)
class Camera:
    """The bands of a camera, on one grid of pixels.

    Parameters
    ----------
    pixel_scale
        Size of a pixel in arcsec.
    psf
        Effective PSFs ``(band, y, x)`` of unit sum, sampled at `pixel_scale`, with the response of the pixel included.
    sky_rms
        Sky noise of a pixel ``(band,)`` in image units.
    exposure
        Counts per unit of flux ``(band,)``; infinite, as by default, without photon noise.
    noise_kernel
        Kernels ``(band, y, x)`` that turn white noise into the noise of the sky; by default the noise is white.
    wavelength
        In micron ``(band,)``; NaN, as by default, where unknown.
    zero_point
        AB magnitude of unit flux, for each band; empty where unknown.
    fine_psf
        PSFs sampled twice as finely ``(band, y, x)``, where one sample per pixel is not enough.
    native
        Whether it is CANDELS F160W.

    Raises
    ------
    ValueError
        If a number is not positive, or a PSF is not a square array with an odd side and unit sum.
    """

    pixel_scale: float
    psf: Tensor
    sky_rms: Tensor
    exposure: Tensor | None = None
    noise_kernel: Tensor | None = None
    wavelength: Tensor | None = None
    zero_point: tuple[float, ...] = ()
    fine_psf: Tensor | None = None
    native: bool = False

    def __post_init__(self) -> None:
        check_conditions(vars(self), len(self.psf))
        if (shape := tuple(self.psf.shape))[1] != shape[2] or shape[1] % 2 == 0:
            raise ValueError(f"psf must be a square with an odd side for each band, got shape {shape}")
        if not bool(((total := self.psf.sum((1, 2))) - 1).abs().max() < 1e-3):
            raise ValueError(f"psf must have unit sum, got {total.tolist()}")

    @classmethod
    def candels_f160w(cls, *, sky_rms: float = 3e-3, exposure: float = 3200.0) -> Self:
        """HST WFC3/F160W as in the CANDELS mosaics (Koekemoer et al. 2011, doi:10.1088/0067-0049/197/2/36).

        Parameters
        ----------
        sky_rms
            Sky noise of a pixel in e-/s; the mosaics have 2e-3 to 8e-3.
        exposure
            Exposure time in s.

        Returns
        -------
        Camera
            Pixels of 0.06 arcsec, zero point 25.9463, the PSF fitted by ``python -m benchmarks.f160w_psf`` and the
            correlation of drizzled noise with a drop of 0.8 pixels.
        """
        with (files("probdeblend") / "data" / "psf_f160w.npy").open("rb") as file:
            psf = torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))[None]
        numbers = (torch.tensor([float(value)]) for value in (sky_rms, exposure))
        return cls(0.06, psf / psf.sum(), *numbers, drizzle_kernel(1.0)[None], torch.tensor([1.54]), (25.9463,))

    def __len__(self) -> int:
        return len(self.psf)

    @property
    def photon(self) -> Tensor:
        """Variance that light of one sky rms in a pixel adds, over that of the sky ``(band,)``."""
        return 1 / (self.exposure * self.sky_rms * correlation_sum(self.noise_kernel))

    @property
    def blur(self) -> float:
        """Radius of the first band's PSF in pixels: 1 / sqrt(sum of its squares)."""
        return float(self.psf[0].square().sum().rsqrt())

    @property
    def wavelengths(self) -> Tensor:
        """Wavelengths in micron ``(band,)``, or some that fit the order of the bands where unknown."""
        known = bool(self.wavelength.isfinite().all())
        return self.wavelength if known else torch.linspace(*UNKNOWN, len(self))


CAMERAS = {"candels_f160w": Camera.candels_f160w}
"""Makers of the cameras that are known by name."""


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
        Fraction that is CANDELS F160W, with PSFs up to 5 % wider or narrower and sheared by up to 2 %, and depths of
        its mosaics; images of the others are in units of about their own noise.
    bands
        Probabilities of one, two and three bands, of the others.
    """

    fwhm: tuple[float, float] = (1.8, 5.0)
    seeing: tuple[float, float] = (0.06, 1.0)
    white_fraction: float = 0.4
    native_fraction: float = 0.45
    bands: tuple[float, ...] = (0.6, 0.1, 0.3)

    def sample(self, rng: np.random.Generator) -> Camera:
        """Draw a camera.

        Parameters
        ----------
        rng
            Source of randomness.

        Returns
        -------
        Camera
            The camera.
        """
        if rng.random() < self.native_fraction:
            return self.native(rng)
        bands = 1 + int(rng.choice(len(self.bands), p=self.bands))
        fwhm = math.exp(rng.uniform(*np.log(self.fwhm)))
        seeing = math.exp(rng.uniform(*np.log(self.seeing)))
        widths = np.clip(fwhm * np.exp(rng.normal(0, 0.12, bands)) if bands > 1 else [fwhm], *self.fwhm)
        fine = min(widths) < FINE
        first = rng.uniform(0.35, 1.7)
        wavelength = np.sort(first * np.exp(np.r_[0.0, rng.uniform(0.1, 0.9, bands - 1)]))
        kernel = drizzle_kernel(0.0 if rng.random() < self.white_fraction else rng.uniform(0, 1.2))
        kind = "space" if rng.random() < 0.5 else "ground"
        drawn = zip(*[random_psf(rng, width, kind=kind, fine=fine) for width in widths], strict=True)
        psf, *fine_psf = map(torch.stack, drawn)
        photon = np.exp(rng.uniform(math.log(1e-3), math.log(0.2), bands))
        depth = rng.normal(0, 0.7, bands)
        sky_rms = torch.from_numpy(np.exp(depth.mean() - depth)).float()
        return Camera(
            pixel_scale=min(max(seeing / fwhm, 0.03), 0.3),
            psf=psf,
            sky_rms=sky_rms,
            exposure=1 / (torch.from_numpy(photon).float() * sky_rms * correlation_sum(kernel)),
            noise_kernel=kernel.expand(bands, 3, 3),
            wavelength=torch.from_numpy(wavelength).float() if rng.random() < 0.7 else torch.full((bands,), math.nan),
            fine_psf=fine_psf[0] if fine else None,
        )

    @staticmethod
    def native(rng: np.random.Generator) -> Camera:
        """Draw CANDELS F160W as of some image.

        Parameters
        ----------
        rng
            Source of randomness.

        Returns
        -------
        Camera
            The camera.
        """
        import galsim

        size, turn = 0.02 * math.sqrt(rng.random()), 2 * math.pi * rng.random()
        shear = {"g1": size * math.cos(turn), "g2": size * math.sin(turn)}
        sky_rms = math.exp(rng.uniform(math.log(2e-3), math.log(8e-3)))
        camera = Camera.candels_f160w(sky_rms=sky_rms, exposure=rng.uniform(1800, 5000))
        psf = galsim.Image(camera.psf[0].double().numpy(), scale=1.0)
        light = galsim.InterpolatedImage(psf, x_interpolant=galsim.Lanczos(15)).dilate(rng.uniform(0.95, 1.05))
        return replace(camera, psf=_drawn(light.shear(**shear), psf.array.shape[0], 1.0)[None], native=True)


def random_psf(rng: np.random.Generator, fwhm: float, *, kind: str, fine: bool) -> list[Tensor]:
    """Draw an effective PSF of a width in pixels, and the same at twice the sampling if `fine`."""
    import galsim

    shear = {"g1": rng.normal(0, 0.03), "g2": rng.normal(0, 0.03)}
    if kind == "ground":
        light = galsim.Moffat(beta=rng.uniform(2.2, 5.0), fwhm=fwhm).shear(**shear)
    else:
        blur = rng.uniform(0.3, 0.8)
        optics = {"aberrations": [0.0, 0, 0, 0, *rng.normal(0, 0.04, 8)], "nstruts": int(rng.choice([0, 3, 4]))}
        optics |= {"strut_angle": rng.uniform(0, 90) * galsim.degrees, "obscuration": rng.uniform(0.1, 0.35)}
        quick = {"strut_thick": 0.02, "pad_factor": 1.0, "oversampling": 1.0, "suppress_warning": True}
        core = galsim.OpticalPSF(lam_over_diam=fwhm * math.sqrt(1 - blur**2), **optics, **quick)
        light = galsim.Convolve(core, galsim.Gaussian(fwhm=fwhm * blur).shear(**shear))
    pixel = galsim.Pixel(1.0)
    # The pixel widens the PSF, so the light without it is narrower than what is asked for.
    for _ in range(2):
        measured = galsim.Convolve(light, pixel).drawImage(nx=33, ny=33, scale=0.5, method="no_pixel").calculateFWHM()
        light = light.dilate(min(max(fwhm / measured, 0.6), 1.4) if measured > 0 else 1.0)  # GalSim may find none: NaN
    effective = galsim.Convolve(light, pixel)
    return [_drawn(effective, *grid) for grid in [(PSF_SIZE, 1.0), (2 * PSF_SIZE - 1, 0.5)][: 1 + fine]]


def _drawn(effective: object, size: int, scale: float) -> Tensor:
    """Draw an effective PSF of unit sum."""
    drawn = effective.drawImage(nx=size, ny=size, scale=scale, method="no_pixel", dtype=np.float32).array
    return torch.from_numpy(drawn / drawn.sum())
