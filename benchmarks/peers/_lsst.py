"""Fields of galaxies as MADNESS was tested on: ten years of LSST, in six bands.

The test fields of MADNESS (Biswas et al. 2025, doi:10.1051/0004-6361/202451887) are made with the Blending ToolKit
(Mendoza et al. 2025, doi:10.33232/001c.129699). They are 41 arcsec wide, and 8 to 15 or 12 to 20 galaxies, each number
as probable, lie anywhere in the 30 by 30 arcsec in the middle. What is here the same:

- The camera: pixels, exposures, sky, zero points and seeing are those of the ToolKit, from Ivezić et al. (2019,
  doi:10.3847/1538-4357/ab042c, tables 1 and 2; seeing at airmass 1.2) and of the LSST filters at that airmass. The PSF
  is a Kolmogorov profile convolved with the diffraction pattern of the obscured mirror and with the pixel. The noise is
  that of the photons of sky and sources.
- The cut: only galaxies whose signal-to-noise ratio in r is at least 10 are put into fields. It is computed from their
  total flux with the effective area of a PSF as wide as that of the image and twice the half-light radius of the galaxy
  in quadrature (Jones, SMTN-002).

What differs: there, galaxies are the smooth bulges and disks of the CatSim catalog. Here types, sizes, shapes, colors
and irregularity are those of the package's population, given magnitudes in i that are counted as in the LSST Science
Book (LSST Science Collaboration 2009, arXiv:0912.0201, section 3.7.2) and the population's mean color from i to F160W.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers._fields import draw_sources
from probdeblend.photometry.noise import add_noise
from probdeblend.scene import PSF_SIZE, SCENE_FIELDS, Scene, seed_of, seeded
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.light import SimulatedSources

__all__ = ["BANDS", "LEAST_SNR", "SEEING", "SIDE", "field", "lsst_camera", "signal_to_noise"]

BANDS = ("u", "g", "r", "i", "z", "y")
WAVELENGTH = (0.368, 0.486, 0.625, 0.756, 0.870, 0.972)  # micron
SEEING = (0.90, 0.86, 0.81, 0.79, 0.77, 0.76)  # arcsec, FWHM
SKY = (22.99, 22.26, 21.20, 20.48, 19.60, 18.61)  # AB magnitudes per square arcsec
ZERO_POINT = (26.40, 28.26, 28.10, 27.78, 27.39, 26.56)  # AB magnitude of one electron per second
EXPOSURE = (1680, 2400, 5520, 5520, 4800, 4800)  # s
PIXEL_SCALE, MIRROR, OBSCURED = 0.2, 8.36, 0.3926  # arcsec; m, and fraction of the mirror's area

SIDE = 205  # pixels
SPREAD = 75.0  # pixels, the largest distance of a center from the middle, along x and y
NUMBERS = ((8, 15), (12, 20))  # galaxies of a field
LEAST_SNR = 10.0
SLOPE, BRIGHTEST, FAINTEST = 0.31, 18.0, 27.0  # dex per magnitude; magnitudes in i, beyond which none passes the cut
REDDER = 0.8  # magnitudes from i to F160W, in which the population has sizes given magnitudes
STAMP = 48  # pixels on a side of images that only tell colors


@cache
def lsst_camera() -> Camera:
    """Return LSST after ten years, with images in electrons."""
    import galsim

    psf = []
    for wavelength, seeing in zip(WAVELENGTH, SEEING, strict=True):
        diffraction = np.degrees(1e-6 * wavelength / MIRROR) * 3600
        optics = galsim.Airy(lam_over_diam=diffraction, obscuration=np.sqrt(OBSCURED))
        light = galsim.Convolve(galsim.Kolmogorov(fwhm=seeing), optics, galsim.Pixel(PIXEL_SCALE))
        drawn = light.drawImage(nx=PSF_SIZE, ny=PSF_SIZE, scale=PIXEL_SCALE, method="no_pixel", dtype=np.float64).array
        psf.append(torch.from_numpy(drawn / drawn.sum()).float())
    zero_point = np.array(ZERO_POINT) + 2.5 * np.log10(EXPOSURE)
    sky = 10 ** (0.4 * (zero_point - SKY)) * PIXEL_SCALE**2
    numbers = torch.from_numpy(np.sqrt(sky)).float(), torch.ones(len(BANDS))
    known = {"wavelength": torch.tensor(WAVELENGTH), "zero_point": tuple(zero_point.tolist())}
    return Camera(PIXEL_SCALE, torch.stack(psf), *numbers, **known)


def signal_to_noise(flux: NDArray, radius: NDArray) -> NDArray[np.float64]:
    """Return signal-to-noise ratios ``(source, band)`` of total fluxes in electrons.

    Half-light radii ``(source,)`` are circularized, in arcsec.
    """
    sky = lsst_camera().sky_rms.double().numpy() ** 2
    area = 2.266 * ((2 * radius[:, None]) ** 2 + np.square(SEEING)) / PIXEL_SCALE**2
    return flux / np.sqrt(np.maximum(flux, 0) + sky * area)


def field(seed: int, *, number: int | None = None) -> Scene:
    """Simulate a field, with the light of each galaxy alone.

    Parameters
    ----------
    seed
        Same seed, same field; not negative.
    number
        Number of galaxies; drawn at random if None.

    Returns
    -------
    Scene
        One scene in electrons, without Kron fluxes.
    """
    rng, camera = np.random.default_rng(seed), lsst_camera()
    if number is None:
        low, high = NUMBERS[rng.integers(len(NUMBERS))]
        number = int(rng.integers(low, high + 1))
    parts, count = [], 0
    while count < number:
        parts.append(_galaxies(rng, number, seed=seed_of(seed, 1, len(parts))))
        count += len(parts[-1]["x"])
    known = {name: torch.cat([part[name] for part in parts])[:number] for name in parts[0]}
    conditions = {name: getattr(camera, name)[None] for name in SCENE_FIELDS[1:]}
    noise = {name: conditions[name] for name in ("sky_rms", "exposure", "noise_kernel")}
    generator = torch.Generator().manual_seed(seed_of(seed, 2))
    return Scene(
        image=add_noise(known["light"].sum(0, keepdim=True), **noise, generator=generator),
        pixel_scale=camera.pixel_scale,
        zero_point=camera.zero_point,
        scene=torch.zeros(number, dtype=torch.long),
        **known,
        **conditions,
    )


def _galaxies(rng: np.random.Generator, count: int, *, seed: int) -> dict[str, Tensor]:
    """Draw galaxies and keep those that are bright enough."""
    camera = lsst_camera()
    ends = 10 ** (SLOPE * np.array([BRIGHTEST, FAINTEST]))
    magnitude = np.log10(rng.uniform(*ends, count)) / SLOPE
    places = (SIDE - 1) / 2 + rng.uniform(-SPREAD, SPREAD, (count, 2))
    drawn = draw_sources(magnitude - REDDER, np.zeros(count, dtype=bool), places, PIXEL_SCALE, seed=seed)
    with seeded(seed_of(seed, 1)), torch.no_grad():
        light = SimulatedSources()(drawn, camera)
        middle = torch.from_numpy(places.round()).long()
        color = light.seen(camera, corner=middle - STAMP // 2, size=STAMP).color
        color = color - color[:, BANDS.index("i"), None]
        flux = color.exp() * 10 ** (0.4 * (torch.tensor(camera.zero_point) - torch.from_numpy(magnitude)[:, None]))
        radius = drawn["half_light_radius"] * drawn["axis_ratio"].sqrt()
        snr = signal_to_noise(flux.double().numpy(), radius.double().numpy())
        kept = torch.from_numpy(snr[:, BANDS.index("r")] >= LEAST_SNR)
        corner = torch.zeros(int(kept.sum()), 2, dtype=torch.long)
        image = light.select(kept).seen(camera, corner=corner, size=SIDE).image
    known = {"flux": flux.float(), "half_light_radius": radius}
    known |= {name: drawn[name] for name in ("x", "y", "axis_ratio", "angle", "source_type")}
    known = {name: values[kept] for name, values in known.items()}
    return known | {"light": image * known["flux"][..., None, None]}
