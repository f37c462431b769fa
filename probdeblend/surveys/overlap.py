"""Ground images labeled from space: what a sharp image of the same sky resolves, on the pixels of a blurred one.

The images may have different pixels, orientations, frames and units. Each pixel of the sharp one is divided into parts,
at least eight along the side of a pixel of the blurred one, and the light of each part goes to the pixel that its
middle falls into. The light is conserved, and moves by at most a sixteenth of a pixel along a side of the sharp image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from astropy import units as u
from astropy.table import QTable
from astropy.wcs.utils import pixel_to_pixel
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, signal

from ..deblending.inputs import Image, Observation, observe
from ..photometry.detection import detect, kron_flux

__all__ = ["Overlap", "label_ground"]

Images = Image | Sequence[Image]
SEP = {"minimum_area": 5, "contrast": 0.005}  # as by SExtractor's default
FILTER, SIGMAS = np.outer([1, 2, 1], [1, 2, 1]) / 16, 4.0  # SEP's, and how many times the noise that it leaves
PARTS, SHOWN = 8, 0.5  # see `_rebinned`


@dataclass(frozen=True, eq=False)
class Overlap:
    """What a sharp image tells about the sources of a ground image, on the pixels of the latter.

    Parameters
    ----------
    positions
        Sources of the sharp image, for `Deblender` to measure in the ground image. Columns are ``label``; ``x`` and
        ``y`` in pixels of the ground image, from 0; ``ra`` and ``dec`` (ICRS); ``flux (source, band)``, the Kron flux
        in the sharp image and its unit; and ``source``, the label of the ground source whose segment the position is
        in, 0 for none.
    sources
        Sources of the ground image. Columns are ``label``, ``x``, ``y``, ``ra``, ``dec`` and ``flux`` likewise;
        ``number`` of sharp sources in the segment, an unrecognized blend if there are several; ``share`` of the
        brightest one in the sum of their fluxes in all bands, NaN without any; and ``covered``, the fraction of the
        segment's pixels that are covered.
    segmentation
        Label of the ground source that each pixel ``(y, x)`` belongs to, 0 for the sky.
    light
        The sharp image ``(band, y, x)``: the sum of its sky-subtracted light that falls into each pixel of the ground
        image, in its own unit of flux, without the blur of the ground. Bad pixels give none.
    covered
        Pixels ``(y, x)`` of which the sharp image shows more than half. There are no labels elsewhere, so that
        ``~covered`` may be the ``mask`` of `Deblender`.
    """

    positions: QTable
    sources: QTable
    segmentation: NDArray[np.int32]
    light: NDArray[np.float64]
    covered: NDArray[np.bool_]


def label_ground(
    ground: Images, sharp: Images, *, sharp_options: Mapping[str, object] | None = None, **options: object
) -> Overlap:
    """Label a ground image with what a sharper image of the same sky resolves.

    SEP detects the sources of each image in the sum of its bands over their noise, at 4 times the noise of the image
    smoothed with its 3 x 3 kernel: 1.5 sky rms where noise is white, as is the default of SExtractor (Bertin & Arnouts
    1996, doi:10.1051/aas:1996164), and more where it is correlated. Both images are held in memory, so cut large
    mosaics to where they overlap.

    Parameters
    ----------
    ground
        The blurred image: pixels ``(y, x)`` or ``(band, y, x)``, or the path of a FITS file, as for `Deblender`.
    sharp
        The sharp image, likewise. It may have other bands.
    sharp_options
        What `Deblender` takes for the sharp image: ``psf``, ``sky_rms``, ``wcs``, ``zero_point``, ``mask``, ``dq`` and
        ``wavelength``.
    **options
        The same for the ground image.

    Returns
    -------
    Overlap
        Positions and light of the sharp sources on the ground image, and how many of them each ground source is.

    Raises
    ------
    ValueError
        If an argument does not fit, an image has no world coordinates on the sky, `sharp` is not the sharper one, or
        shows no part of the ground image.
    TypeError
        If an image is not an array of numbers.
    FileNotFoundError
        If a path does not exist.

    Examples
    --------
    >>> pair = label_ground("hsc.fits", "acs.fits", psf="hsc_psf.fits", sharp_options={"psf": "acs_psf.fits"})
    ... # doctest: +SKIP
    >>> posterior = deblend("hsc.fits", psf="hsc_psf.fits", positions=pair.positions, mask=~pair.covered)
    ... # doctest: +SKIP
    """
    with observe(ground, **options) as seen, observe(sharp, **(sharp_options or {})) as fine:
        for name, one in (("ground", seen), ("sharp", fine)):
            if one.wcs is None or not one.wcs.has_celestial:
                raise ValueError(f"{name} must have world coordinates on the sky, got none: its wcs must be given")
        blur = [one.pixel_scale / float(one.psf.square().sum((1, 2)).max()) ** 0.5 for one in (fine, seen)]
        if blur[0] >= blur[1]:
            raise ValueError(f"sharp must have a narrower PSF than ground, got {blur[0]:.3g} and {blur[1]:.3g} arcsec")
        (*pixels, _, positions), (*_, segments, sources) = _detected(fine), _detected(seen)
        light, covered = _rebinned(fine, seen, *pixels)
        positions["x"], positions["y"], index = _onto(fine, seen, positions["x"], positions["y"])
    if not covered.any():
        raise ValueError("sharp must show a part of the sky that ground shows, got none of its pixels")
    positions = positions[index >= 0]
    positions["source"] = owner = segments.flat[index[index >= 0]]
    fluxes = [positions["flux"].value.sum(1).clip(0)[owner == label] for label in sources["label"]]
    sources["number"] = np.bincount(owner, minlength=len(sources) + 1)[1:]
    sources["share"] = [flux.max() / flux.sum() if flux.any() else math.nan for flux in fluxes]
    sources["covered"] = ndimage.mean(covered, segments, sources["label"])
    return Overlap(positions, sources, segments, light, covered)


def _detected(one: Observation) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int32], QTable]:
    """Return light ``(band, y, x)`` in units of flux, pixels ``(y, x)`` that are good in all bands, and the sources."""
    ratio, good = (values.cpu().double().numpy() for values in one.window(*map(slice, (0, 0), one.shape)))
    good, light = good.all(0), ratio * one.sky_rms(*np.indices(one.shape)[::-1].reshape(2, -1)).T.reshape(ratio.shape)
    light[:, ~good], kernel = np.nan, one.noise_kernel[0].double().cpu().numpy()
    noise = (signal.convolve2d(kernel, FILTER) ** 2).sum() ** 0.5 / (kernel**2).sum() ** 0.5
    found = detect(np.where(good, ratio.sum(0) / len(ratio) ** 0.5, np.nan), 1.0, threshold=SIGMAS * noise, **SEP)
    flux = np.stack([kron_flux(band, found, 1.0)[0] for band in light], -1) * u.Unit(one.unit, parse_strict="silent")
    sky = one.wcs.celestial.pixel_to_world(found.x, found.y).icrs
    columns = {"label": found.label, "x": found.x, "y": found.y, "ra": sky.ra, "dec": sky.dec, "flux": flux}
    return np.nan_to_num(light), good, found.segmentation, QTable(columns)


def _rebinned(
    fine: Observation, seen: Observation, light: NDArray, good: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sum the light of the sharp image in the pixels of the other; tell of which it shows more than half.

    There are at least 8 parts of sharp pixels along the side of a pixel.
    """
    number = math.ceil(PARTS * fine.pixel_scale / seen.pixel_scale)
    sums = np.zeros((len(light) + 1, 1 + math.prod(seen.shape)))  # the first is what lies outside
    steps, (y, x) = (np.arange(number) + 0.5) / number - 0.5, np.indices(fine.shape)
    for dy, dx in product(steps, steps):
        index = _onto(fine, seen, x + dx, y + dy)[2]
        sums += [np.bincount(1 + index.ravel(), band.ravel() / number**2, sums.shape[1]) for band in (*light, good)]
    *light, shown = sums[:, 1:].reshape(-1, *seen.shape)
    return np.stack(light), shown > SHOWN * (seen.pixel_scale / fine.pixel_scale) ** 2


def _onto(
    one: Observation, other: Observation, x: ArrayLike, y: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Map positions into the pixels of another image; return x, y, and the number of the pixel, -1 outside."""
    x, y = pixel_to_pixel(one.wcs.celestial, other.wcs.celestial, x, y)
    row, column = np.floor(y + 0.5), np.floor(x + 0.5)
    inside = (row >= 0) & (row < other.shape[0]) & (column >= 0) & (column < other.shape[1])
    return x, y, np.where(inside, row * other.shape[1] + column, -1).astype(int)
