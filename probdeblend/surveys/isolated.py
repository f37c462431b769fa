"""Isolated galaxies of an image, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.1).

SEP finds the sources in the bands added up, each over its noise. The footprint of a galaxy is its segment, grown into
its wings, without bad pixels and without the other sources, which are grown as well. What the paper judged by eye is
measured on pixels alone: no network has a say, which would keep the galaxies that it knows already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy import ndimage

from ..deblending.inputs import Image, Observation, observe
from ..deblending.positions import locate
from ..photometry.detection import COLD, HOT, detect
from ..photometry.sky import dilate
from .library import Galaxy

__all__ = ["isolate"]

TILE, OVERLAP = 1024, 192  # pixels
MARGIN = 24  # pixels of sky that are kept around a footprint
CENTERING = 8.0  # largest distance in pixels of a source from a position that is given
LEAST_SNR = 20.0  # of the light in the footprint; noise counts as white
DEEP = HOT | {"contrast": COLD["contrast"]}
TAKEN = 0.05  # share of the grown segment that other sources take
EDGE_MARGIN = 4  # pixels around the grown segment that must be good
DOUBLE_CONTRAST = 0.1
ASYMMETRY = 0.25
NOISE_RATIO = 1.5
LEAST_BLANK = 0.05  # of a quarter of the surroundings, to measure its noise


def isolate(
    image: Image | Sequence[Image],
    *,
    positions: object = None,
    faintest: float | None = None,
    origin: str = "image",
    **options: object,
) -> list[Galaxy]:
    """Cut isolated galaxies out of an image of any size and any number of bands.

    All sources with a signal-to-noise ratio of 20 are cut out, and judged. A galaxy is to be kept (`Galaxy.keep`) if
    nothing speaks against it. What may do so (`Galaxy.flags`):

    - ``neighbor``: other sources take more than a twentieth of the footprint;
    - ``missing pixels``: bad pixels, or the edge of the image, within 4 pixels of the footprint;
    - ``two nuclei``: SEP splits the galaxy at a contrast of 0.1;
    - ``asymmetric``: beyond the half-light radius, more than a quarter of the light has no counterpart on the opposite
      side of the center (Conselice et al. 2000, doi:10.1086/308300), noise allowed for;
    - ``two noise levels``: the noise differs by more than a factor of 1.5 between two quarters of the surroundings.

    Parameters
    ----------
    image
        Pixels ``(y, x)`` or ``(band, y, x)``, or the path of a FITS file, as for `Deblender`. Its pixels need a size:
        world coordinates, or a PSF that is a camera's.
    positions
        Positions of galaxies, as for `Deblender`: only sources within 8 pixels of one are cut out, and have its name.
        None takes all sources.
    faintest
        AB magnitude, in the band where the source is brightest, down to which galaxies are cut out; None for no limit.
    origin
        Name of the image, with which the names of its galaxies begin.
    **options
        What `Deblender` takes: ``psf``, ``sky_rms``, ``wcs``, ``zero_point``, ``mask``, ``dq`` and ``wavelength``.

    Returns
    -------
    list of Galaxy
        The galaxies, each in its own part of the image.

    Raises
    ------
    ValueError
        If an argument does not fit, the size of a pixel is not known, the zero point is not known but needed for
        `faintest`, or no galaxy is found.
    TypeError
        If the image is not an array of numbers.
    FileNotFoundError
        If a path does not exist.
    """
    with observe(image, **options) as seen:
        if seen.wcs is None and seen.pixel_scale == 1:
            raise ValueError("wcs must be given where the size of a pixel is not known, got None")
        if faintest is not None and not np.isfinite(seen.zero_point).any():
            raise ValueError(
                "zero_point must be given where it is not known, as there is a faintest magnitude, got None"
            )
        listed = None if positions is None else locate(positions, seen.shape, seen.wcs, seen.notes)
        galaxies = [
            galaxy
            for corner in product(*(range(0, side, TILE) for side in seen.shape))
            for galaxy in _galaxies(seen, corner, listed, origin)
            if faintest is None or np.fmin.reduce(galaxy.magnitude) < faintest
        ]
    if not galaxies:
        raise ValueError(f"image must hold a galaxy with a signal-to-noise ratio of {LEAST_SNR:.0f}, got none")
    return galaxies


def _galaxies(seen: Observation, corner: tuple[int, int], listed: tuple | None, origin: str) -> Iterator[Galaxy]:
    """Cut out the galaxies whose centers are in a tile that begins at row and column `corner`."""
    y0, x0 = (max(first - OVERLAP, -MARGIN) for first in corner)
    y1, x1 = (min(first + TILE + OVERLAP, side + MARGIN) for first, side in zip(corner, seen.shape, strict=True))
    ratio, good = (values.cpu().numpy() for values in seen.window(slice(y0, y1), slice(x0, x1)))
    good = good.all(0)
    light = np.where(good, ratio.sum(0) / len(ratio) ** 0.5, np.nan).astype(float)
    if not good.any():
        return
    rows, columns = np.mgrid[y0:y1, x0:x1].reshape(2, -1)
    noise = seen.sky_rms(columns, rows).T.reshape(ratio.shape)
    pixels = np.where(good, ratio * noise, np.nan)
    found = detect(light, 1.0, **DEEP)
    grown = dilate(found.segmentation)
    sky = np.where(grown > 0, np.nan, pixels)
    for index, where in enumerate(ndimage.find_objects(grown)):
        x, y = found.x[index] + x0, found.y[index] + y0
        name = _name(x, y, listed)
        if name is None or not all(-0.5 <= at - first < TILE - 0.5 for at, first in zip((y, x), corner, strict=True)):
            continue
        part = tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in where)
        own = dilate((found.segmentation[part] == index + 1).astype(np.int32)) > 0
        foreign = (grown[part] > 0) & (grown[part] != index + 1)
        footprint = own & good[part] & ~foreign
        if light[part][footprint].sum() < LEAST_SNR * footprint.sum() ** 0.5:
            continue
        center = found.x[index] - part[1].start, found.y[index] - part[0].start
        wide = tuple(slice(max(side.start - OVERLAP // 2, 0), side.stop + OVERLAP // 2) for side in part)
        flags = {
            "neighbor": (own & foreign).sum() > TAKEN * own.sum(),
            "missing pixels": (~good[part] & (dilate(own.astype(np.int32), margin=EDGE_MARGIN, growth=0.0) > 0)).any(),
            "two nuclei": _nuclei(light[part], found.segmentation[part] == index + 1) > 1,
            "asymmetric": _asymmetry(light[part], footprint, center) > ASYMMETRY,
            "two noise levels": _noise_ratio(sky[(slice(None), *wide)]) > NOISE_RATIO,
        }
        reasons = tuple(reason for reason, holds in flags.items() if holds)
        ra, dec = (np.nan, np.nan) if seen.wcs is None else seen.wcs.celestial.pixel_to_world_values(x, y)
        yield Galaxy(
            identity=f"{origin}:{name}",
            origin=origin,
            pixels=pixels[(slice(None), *part)].astype(np.float32),
            footprint=footprint,
            psf=seen.psf.cpu().numpy(),
            sky_rms=seen.sky_rms(np.array([x]), np.array([y]))[0],
            zero_point=np.array(seen.zero_point),
            wavelength=seen.wavelength.cpu().double().numpy(),
            pixel_scale=seen.pixel_scale,
            ra=float(ra),
            dec=float(dec),
            flags=reasons,
            keep=not reasons,
        )


def _name(x: float, y: float, listed: tuple | None) -> object:
    """Name of a source: that of the position that it is at, if positions are listed, or None if it is at none."""
    if listed is None:
        return f"{x:.0f},{y:.0f}"
    distance, names = np.hypot(listed[0] - x, listed[1] - y), listed[2] if listed[3] is None else listed[3]
    return names[distance.argmin()] if distance.min() < CENTERING else None


def _nuclei(light: NDArray[np.float64], segment: NDArray[np.bool_]) -> int:
    """Number of parts into which SEP splits a segment."""
    split = detect(np.where(segment, light, 0.0), 1.0, **(DEEP | {"contrast": DOUBLE_CONTRAST}))
    return len(split)


def _asymmetry(light: NDArray[np.float64], footprint: NDArray[np.bool_], center: tuple[float, float]) -> float:
    """Share of the light beyond the half-light radius without a counterpart opposite, less that of pure noise."""
    y, x = np.nonzero(footprint)
    radius = np.hypot(x - center[0], y - center[1])
    order = np.argsort(radius)
    half = np.searchsorted(np.cumsum(light[y, x][order]), light[y, x].sum() / 2)
    y, x = y[order][half:], x[order][half:]
    known = np.where(footprint, light, np.nan)
    opposite = [2 * center[1] - y, 2 * center[0] - x]
    difference = light[y, x] - ndimage.map_coordinates(known, opposite, order=0, mode="grid-constant", cval=np.nan)
    inside = np.isfinite(difference)
    # The mean absolute difference of two pixels of pure noise is 2 / sqrt(pi) times their scatter.
    excess = np.abs(difference[inside]).sum() - inside.sum() * 2 / np.sqrt(np.pi)
    return float(excess / (2 * max(light[y, x][inside].sum(), 1e-30)))


def _noise_ratio(sky: NDArray[np.float64]) -> float:
    """Largest ratio, in any band, of the noise in two quarters of the surroundings, NaN where there are sources."""
    middle, scatters = np.array(sky.shape[1:]) // 2, []
    for rows, columns in product(*((slice(half), slice(half, None)) for half in middle)):
        blank = np.isfinite(quarter := sky[:, rows, columns])
        if blank.mean() > LEAST_BLANK:
            scatters.append(mad_std(quarter, axis=(1, 2), ignore_nan=True))
    return float(np.max(np.max(scatters, 0) / np.min(scatters, 0))) if scatters else 1.0
