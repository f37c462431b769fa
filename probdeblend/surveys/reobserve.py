"""Isolated galaxies from elsewhere, observed again with the instrument's pixels and noise.

A COSMOS galaxy comes with its own PSF and noise (GalSim's `galsim.RealGalaxyCatalog`; Mandelbaum et al. 2012,
doi:10.1111/j.1365-2966.2012.20983.x). GalSim deconvolves it, and convolution with the wider F160W PSF brings the
deconvolved noise back to a finite, correlated field. New sky noise is added so that its variance and that of the old
noise add up to the instrument's; a galaxy whose old noise alone exceeds that is left out.

Stamps of a simulated galaxy, such as those of the VELA simulations, are taken as they are seen, resampled to the
instrument's pixels. Their total flux is known. Their own noise may exceed the instrument's by a factor of 2; it then
stays as it is and is surrounded by noise of the same variance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from astropy.io import fits
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..photometry.detection import HOT, detect
from ..photometry.noise import correlated_noise, correlation_sum
from ..photometry.sky import dilate
from ..scene import STAMP_CENTER, STAMP_SIZE, Instrument, seed_of
from .aperture import fit_aperture_correction, library_of
from .isolated import IsolatedGalaxy, NotIsolatedError, measure_galaxy
from .library import join
from .selection import Collection, check_some

if TYPE_CHECKING:
    import galsim

__all__ = ["observe_real_galaxies", "observe_stamps", "reobserve_galaxies"]

FAINTEST = 24.2  # magnitude in the catalog's band
MOST_NOISE = 2.0
SMALLEST_SAMPLE = 50
BORDER = 8  # pixels at the edge of a stamp that hold sky alone
NOISY = "its own noise exceeds the instrument's"
STAMP_COLUMNS = ("mag_ab", "zero_point", "pixel_scale")


def reobserve_galaxies(path: Path, *, instrument: Instrument, identity: str | None = None, seed: int = 0) -> Collection:
    """Observe galaxies of another survey or of a simulation with an instrument.

    Parameters
    ----------
    path
        A catalog in GalSim's RealGalaxy format, with its images beside it; or a FITS file whose first HDU is a cube of
        stamps of one galaxy and whose second is a table with the columns mag_ab, zero_point and pixel_scale.
    instrument
        PSF, pixels, zero point and noise of the new observation.
    identity
        Name of the single galaxy of a cube; the file's name if None.
    seed
        Seed of the noise.

    Returns
    -------
    Collection
        Its `library` of galaxies, and a `summary` of which were kept, rejected or left out, and why.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is neither, or no galaxy is left.
    """
    import galsim

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    skipped: Counter[str] = Counter()
    settings = {"instrument": instrument, "seed": seed, "skipped": skipped}
    if (cube := _cube(path)) is not None:
        seen = observe_stamps(*cube, identity=path.stem if identity is None else identity, **settings)
    else:
        try:
            catalog = galsim.RealGalaxyCatalog(path.name, dir=str(path.parent))
        except Exception as error:  # GalSim and astropy raise many kinds
            form = "neither GalSim's RealGalaxy catalog nor a cube of stamps with their table"
            raise ValueError(f"{path}: {form} ({' '.join(str(error).split())[:80]})") from error
        seen = ((galaxy, None) for galaxy in observe_real_galaxies(catalog, **settings))
    rows = list(tqdm(seen, desc=path.name, unit="galaxy", leave=False))
    check_some(rows, skipped)
    galaxies, truth = zip(*rows, strict=True)
    correction = fit_aperture_correction(instrument)
    known = {"origin": path.name, "instrument": instrument, "correction": correction}
    library = library_of(galaxies, true_flux=None if cube is None else truth, **known)
    if cube is None:
        # With the sky positions of their catalog, the same galaxies in another library are recognized.
        table = Table.read(path, hdu=1)
        if {"IDENT", "RA", "DEC"} <= set(table.colnames):
            row = {f"cosmos:{name}": number for number, name in enumerate(table["IDENT"])}
            found = table[[row[name] for name in library.identity]]
            library = replace(library, ra=np.asarray(found["RA"], float), dec=np.asarray(found["DEC"], float))
    return Collection(join([library]), skipped, correction.scatter)


def _cube(path: Path) -> tuple[NDArray[np.float64], Table] | None:
    try:
        with fits.open(path) as hdus:
            data = hdus[0].data
            if data is None or data.ndim != 3 or len(hdus) < 2:
                return None
            table = Table(hdus[1].data)
    except OSError as error:
        raise ValueError(f"{path}: not a FITS file, or damaged") from error
    if missing := [name for name in STAMP_COLUMNS if name not in table.colnames]:
        there = ", ".join(table.colnames)
        raise ValueError(f"{path}: the columns {', '.join(missing)} are missing, there are {there}")
    if len(table) != len(data):
        raise ValueError(f"{path}: the table must have one row for each of {len(data)} stamps, got {len(table)}")
    return np.asarray(data, dtype=np.float64), table


def observe_real_galaxies(
    catalog: galsim.RealGalaxyCatalog, *, instrument: Instrument, skipped: Counter[str], seed: int = 0
) -> Iterator[IsolatedGalaxy]:
    """Observe the galaxies of a RealGalaxy catalog with an instrument, keeping their magnitudes.

    The seed of the noise is keyed by the galaxy's number; `skipped` counts the reasons for which galaxies are left out.
    """
    import galsim

    kernel = galsim.Image(instrument.psf.double().cpu().numpy(), scale=instrument.pixel_scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31))
    for number in range(catalog.nobjects):
        if not catalog.mag[number] < FAINTEST:
            skipped["too faint"] += 1
            continue
        galaxy = galsim.RealGalaxy(catalog, index=number)
        wanted = 10 ** (-0.4 * (catalog.mag[number] - instrument.zero_point))
        seen = galsim.Convolve(galaxy * (wanted / galaxy.flux), psf)
        image = _drawn(seen, instrument)
        # The old noise fills the galaxy's own, smaller stamp alone, and may exceed GalSim's model, which is for fluxes
        # per pixel of the catalog's size.
        native = float(catalog.pixel_scale[number])
        own = _square(min(catalog.getGalImage(number).array.shape) * native, instrument)
        blank = own & (dilate(detect(image, instrument.sky_rms, **HOT).segmentation) == 0)
        model = seen.noise.getVariance() * (instrument.pixel_scale / native) ** 4
        old = max(model, mad_std(image[blank]) ** 2 if blank.sum() > SMALLEST_SAMPLE else 0.0)
        if old > instrument.sky_rms**2:
            skipped[NOISY] += 1
            continue
        photons = np.maximum(image, 0.0) / (instrument.exposure * correlation_sum(instrument.noise_kernel))
        variance = instrument.sky_rms**2 - np.where(own, old, 0.0) + photons
        cut = _measured(image, variance, instrument, key=(seed, number), skipped=skipped)
        if cut is not None:
            yield replace(cut, identity=f"cosmos:{catalog.ident[number]}")


def observe_stamps(
    stamps: NDArray, table: Table, *, identity: str, instrument: Instrument, skipped: Counter[str], seed: int = 0
) -> Iterator[tuple[IsolatedGalaxy, float]]:
    """Observe stamps ``(stamp, y, x)`` of one galaxy, whose true fluxes are known, with an instrument.

    The table gives the true AB magnitude, the zero point and the size of a pixel in arcsec of each. Their PSF and noise
    stay, photon noise included; sky noise is added up to the instrument's, with a seed keyed by the stamp's number.
    Each galaxy comes with its true total flux in the instrument's units.
    """
    import galsim

    rows = zip(stamps, *(np.asarray(table[name], dtype=float) for name in STAMP_COLUMNS), strict=True)
    for number, (pixels, magnitude, zero_point, scale) in enumerate(rows):
        native = np.asarray(pixels, dtype=np.float64) * 10 ** (0.4 * (instrument.zero_point - zero_point))
        if not np.isfinite(native).all():
            skipped["missing pixels"] += 1
            continue
        image = _drawn(galsim.InterpolatedImage(galsim.Image(native, scale=scale)), instrument)
        side = min(native.shape) * scale
        own = _square(side - 2 * instrument.pixel_scale, instrument)
        own_rms = float(mad_std(image[own & ~_square(side - 2 * BORDER * instrument.pixel_scale, instrument)]))
        if own_rms > MOST_NOISE * instrument.sky_rms:
            skipped[NOISY] += 1
            continue
        seen = instrument.replace(sky_rms=max(own_rms, instrument.sky_rms))
        variance = seen.sky_rms**2 - np.where(own, own_rms**2, 0.0)
        cut = _measured(image, variance, seen, key=(seed, number), skipped=skipped)
        if cut is not None:
            yield replace(cut, identity=identity), 10 ** (-0.4 * (magnitude - instrument.zero_point))


def _drawn(source: galsim.GSObject, instrument: Instrument) -> NDArray[np.float64]:
    grid = {"nx": STAMP_SIZE, "ny": STAMP_SIZE, "scale": instrument.pixel_scale}
    return source.drawImage(**grid, method="no_pixel", dtype=float).array


def _square(side: float, instrument: Instrument) -> NDArray[np.bool_]:
    """Pixels of a stamp within a centered square, whose side is in arcsec."""
    inside = np.abs(np.arange(STAMP_SIZE) - STAMP_CENTER) <= side / instrument.pixel_scale / 2
    return inside[:, None] & inside


def _measured(
    image: NDArray[np.float64],
    variance: NDArray[np.float64],
    instrument: Instrument,
    *,
    key: tuple[int, int],
    skipped: Counter[str],
) -> IsolatedGalaxy | None:
    """Add noise of the variance of each pixel, with the instrument's correlation, and measure the galaxy."""
    kernel = instrument.to("cpu").noise_kernel
    noise = correlated_noise(variance.shape, kernel, generator=torch.Generator().manual_seed(seed_of(*key)))
    stamp = image + np.sqrt(np.maximum(variance, 0.0)) * noise.double().numpy()
    factor, center = correlation_sum(kernel) ** 0.5, (STAMP_CENTER, STAMP_CENTER)
    try:
        return measure_galaxy(stamp, instrument.sky_rms, center, exposure=instrument.exposure, noise_factor=factor)
    except NotIsolatedError as error:
        skipped[str(error)] += 1
        return None
