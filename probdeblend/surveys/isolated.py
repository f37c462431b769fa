"""Isolated galaxies of an image, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.1).

SEP finds the sources in the sum of the bands, each over its noise. The footprint of a galaxy is its segment, grown into
its wings, without bad pixels and without the other sources, which are grown as well. What the paper judged by eye is
measured on pixels alone: no network has a say, which would keep the galaxies that it knows already.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..deblending.inputs import Image, Observation, observe
from ..deblending.positions import locate
from ..photometry.detection import COLD, HOT, detect
from ..photometry.sky import dilate
from .library import Galaxy

__all__ = ["isolate"]

TILE, OVERLAP = 1024, 192  # pixels
MARGIN = 24  # pixels of sky around a footprint
CENTERING = 8.0  # largest distance in pixels of a source from a position that is given
DEEP = HOT | {"contrast": COLD["contrast"]}
TAKEN, ASYMMETRY, EDGE_MARGIN, NOISE_RATIO = 0.05, 0.25, 4, 1.5  # see `isolate`


def isolate(
    image: Image | Sequence[Image],
    *,
    positions: object = None,
    least_snr: float = 20.0,
    origin: str = "image",
    **options: object,
) -> list[Galaxy]:
    """Cut isolated galaxies out of an image of any size and any number of bands.

    Every source that is bright enough becomes a `Galaxy`, which is kept (`Galaxy.keep`) unless one of these is true of
    it (`Galaxy.flags`):

    - ``neighbor``: other sources take more than a twentieth of the footprint;
    - ``asymmetric``: more than a quarter of the light has no counterpart on the opposite side of the center (Conselice
      et al. 2000, doi:10.1086/308300), noise allowed for, as of two sources in one;
    - ``missing pixels``: bad pixels, or the edge of the image, within 4 pixels of the footprint;
    - ``two noise levels``: the noise differs by more than a factor of 1.5 around it.

    Parameters
    ----------
    image
        Pixels ``(y, x)`` or ``(band, y, x)``, or the path of a FITS file, as for `Deblender`. Its pixels need a size:
        world coordinates, or a PSF that is a camera's.
    positions
        Positions of galaxies, as for `Deblender`: only sources within 8 pixels of one are cut out, and have its name.
        None takes all sources.
    least_snr
        Least signal-to-noise ratio of the light in the footprint, in all bands together, if noise were white.
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
        If an argument does not fit, the size of a pixel is not known, or no source is bright enough.
    TypeError
        If the image is not an array of numbers.
    FileNotFoundError
        If a path does not exist.
    """
    with observe(image, **options) as seen:
        if seen.wcs is None and seen.pixel_scale == 1:
            raise ValueError("wcs must be given where the size of a pixel is not known, got None")
        listed = None if positions is None else locate(positions, seen.shape, seen.wcs, seen.notes)
        corners = product(*(range(0, side, TILE) for side in seen.shape))
        galaxies = [one for corner in corners for one in _galaxies(seen, corner, listed, least_snr, origin)]
    if not galaxies:
        raise ValueError(f"image must hold a galaxy with a signal-to-noise ratio of {least_snr:g}, got none")
    return galaxies


def _galaxies(
    seen: Observation, corner: tuple[int, int], listed: tuple | None, least_snr: float, origin: str
) -> Iterator[Galaxy]:
    """Cut out the galaxies whose centers are in the tile that begins at row and column `corner`."""
    y0, x0 = (max(first - OVERLAP, -MARGIN) for first in corner)
    y1, x1 = (min(first + TILE + OVERLAP, side + MARGIN) for first, side in zip(corner, seen.shape, strict=True))
    ratio, good = (values.cpu().double().numpy() for values in seen.window(slice(y0, y1), slice(x0, x1)))
    rows, columns = np.mgrid[y0:y1, x0:x1].reshape(2, -1)
    noise, good = seen.sky_rms(columns, rows).T.reshape(ratio.shape), good.all(0)
    light = np.where(good, ratio.sum(0) / len(ratio) ** 0.5, np.nan)
    found = detect(light, 1.0, **DEEP)
    grown = dilate(found.segmentation)
    for label, where in zip(found.label, ndimage.find_objects(grown), strict=True):
        x, y = found.x[label - 1] + x0, found.y[label - 1] + y0
        name = f"{x:.0f},{y:.0f}"
        if listed is not None:
            distance = np.hypot(listed[0] - x, listed[1] - y)
            names = listed[2] if listed[3] is None else listed[3]
            name = names[distance.argmin()] if distance.min() < CENTERING else None
        part = tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in where)
        segment, known = found.segmentation[part] == label, good[part]
        own = dilate(segment.astype(np.int32))
        foreign = (grown[part] > 0) & (grown[part] != label)
        footprint = (own > 0) & known & ~foreign
        in_tile = all(-0.5 <= at - first < TILE - 0.5 for at, first in zip((y, x), corner, strict=True))
        if name is None or not in_tile or light[part][footprint].sum() < least_snr * footprint.sum() ** 0.5:
            continue
        band_part = (slice(None), *part)
        even = noise[band_part].max((1, 2)) < NOISE_RATIO * noise[band_part].min((1, 2))
        whole = all(side.start > 0 and side.stop < length for side, length in zip(where, grown.shape, strict=True))
        center = np.array([[y - y0 - part[0].start], [x - x0 - part[1].start]])
        flags = {
            "neighbor": foreign[own > 0].mean() > TAKEN,
            "asymmetric": _asymmetry(np.where(footprint, light[part], np.nan), center) > ASYMMETRY,
            "missing pixels": not (whole and known[dilate(own, margin=EDGE_MARGIN, growth=0.0) > 0].all()),
            "two noise levels": not even.all(),
        }
        ra, dec = (np.nan, np.nan) if seen.wcs is None else seen.wcs.celestial.pixel_to_world_values(x, y)
        yield Galaxy(
            identity=f"{origin}:{name}",
            origin=origin,
            pixels=np.where(known, ratio[band_part] * noise[band_part], np.nan).astype(np.float32),
            footprint=footprint,
            psf=seen.psf.cpu().numpy(),
            sky_rms=seen.sky_rms(np.array([x]), np.array([y]))[0],
            zero_point=np.array(seen.zero_point),
            wavelength=seen.wavelength.cpu().double().numpy(),
            pixel_scale=seen.pixel_scale,
            ra=float(ra),
            dec=float(dec),
            flags=tuple(reason for reason, holds in flags.items() if holds),
            keep=not any(flags.values()),
        )


def _asymmetry(light: NDArray[np.float64], center: NDArray[np.float64]) -> float:
    """Share of the light over its noise, NaN beyond the galaxy, without a counterpart opposite, less that of noise."""
    own = np.stack(np.nonzero(np.isfinite(light)))
    here = light[tuple(own)]
    difference = here - ndimage.map_coordinates(light, 2 * center - own, order=0, mode="grid-constant", cval=np.nan)
    inside = np.isfinite(difference)
    # The mean absolute difference of two pixels of pure noise is 2 / sqrt(pi) times their scatter.
    excess = np.abs(difference[inside]).sum() - inside.sum() * 2 / np.sqrt(np.pi)
    return float(excess / (2 * here[inside].sum()))
