"""Lone galaxies cut out of a mosaic, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.1).

Around each galaxy a window is read; SEP subtracts the sky and finds the sources. All but the galaxy, grown
into their wings, are replaced by blank sky from the same window, which keeps the noise's correlation. The
galaxy is then measured as it stands alone. What the paper judged by eye are numbers here, and limits on them
are the `Quality` flags:

- ``NEIGHBOR``: another source is still found in the stamp, or the neighbors' light took more than a twentieth
  of the galaxy's footprint;
- ``ASYMMETRIC``: beyond the half-light radius, more than a quarter of the light has no counterpart at the opposite
  side of the center (Conselice et al. 2000, doi:10.1086/308300), noise allowed for;
- ``EDGE``: the footprint comes within 4 pixels of the mosaic's edge;
- ``MISSING``: bad pixels in the footprint, or in a tenth of the stamp;
- ``DOUBLE``: another source lies within 8 pixels of the center, or SEP splits the galaxy in two at a contrast of
  0.1;
- ``TWO_NOISE_LEVELS``: the noise differs by more than a factor of 1.5 between two quarters of the window, or
  between the galaxy's surroundings and the rest of the stamp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray
from scipy import ndimage

from ..photometry.detection import (
    COLD,
    HOT,
    SEGMENTATION,
    Detection,
    detect,
    kron_flux,
    kron_radius,
)
from ..photometry.noise import correlation_sum
from ..photometry.sky import dilate, noise_correlation_factor, replace_with_sky, sky_scatter, subtract_sky
from ..scene import STAMP_SIZE, Instrument
from .library import Quality

__all__ = ["LoneGalaxy", "NotAloneError", "cut_galaxy", "find_galaxies", "measure_galaxy"]

BORDER = 48
WINDOW = STAMP_SIZE + 2 * BORDER
CENTERING = 8.0  # pixels between a catalog's position and the source that it means
LONE = HOT | {"contrast": COLD["contrast"]}
TAKEN = 0.05
ASYMMETRY = 0.25
EDGE_MARGIN = 4
MISSING_SHARE = 0.1
DOUBLE_CONTRAST = 0.1
NOISE_RATIO = 1.5
RING = 10  # pixels around a galaxy whose noise is compared with that farther out
SMALLEST_SAMPLE = 100


class NotAloneError(ValueError):
    """No galaxy could be cut out; the message says why."""


@dataclass(frozen=True, eq=False)
class LoneGalaxy:
    """A galaxy alone in its stamp, and what was measured of it.

    Parameters
    ----------
    pixels
        Sky-subtracted stamp ``(y, x)`` in image units.
    segmentation
        Pixels that SEP gives to it at 3 times the sky noise ``(y, x)``.
    sky_rms
        Sky noise of a pixel in image units.
    x, y
        Center in pixels of the stamp.
    auto_flux, flux_error
        Kron flux and its error, the noise's correlation allowed for.
    half_light_radius
        Radius in pixels of the circle with half of the Kron flux.
    concentration
        Radius with 80 % of the Kron flux over that with 20 %.
    quality
        Sum of `Quality` bits.
    x0, y0
        The stamp's first pixel in the mosaic.
    """

    pixels: NDArray[np.float32]
    segmentation: NDArray[np.bool_]
    sky_rms: float
    x: float
    y: float
    auto_flux: float
    flux_error: float
    half_light_radius: float
    concentration: float
    quality: int
    x0: int = 0
    y0: int = 0


def find_galaxies(window: NDArray[np.float64]) -> tuple[Detection, NDArray[np.float64]]:
    """Find the sources of a part of a mosaic, for want of a catalog.

    Parameters
    ----------
    window
        Pixels ``(y, x)``, NaN where there are none.

    Returns
    -------
    detection, flux
        The sources, and their Kron fluxes in image units.
    """
    pixels, noise = _subtracted(window)
    detection = detect(pixels, noise, **LONE)
    return detection, kron_flux(pixels, detection, noise)[0]


def _subtracted(window: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    pixels, scatter = subtract_sky(window)
    segmentation = detect(pixels, scatter, **HOT).segmentation
    return pixels, sky_scatter(pixels, segmentation)


def cut_galaxy(
    window: NDArray[np.float64],
    x: float,
    y: float,
    *,
    instrument: Instrument,
    rng: np.random.Generator,
    rms: NDArray[np.float64] | None = None,
) -> LoneGalaxy:
    """Cut the galaxy in the middle of a window, replace all others by sky, and measure it.

    Parameters
    ----------
    window
        Pixels ``(y, x)`` of a square of 224, NaN beyond the mosaic.
    x, y
        Expected center in pixels of the window.
    instrument
        The correlation of the noise that fills what is beyond the mosaic, and the exposure.
    rng
        Source of randomness.
    rms
        Map of the sky noise ``(y, x)``, whose variation over the window is taken out for the test of two
        noise levels; its scale does not matter.

    Returns
    -------
    LoneGalaxy
        The galaxy.

    Raises
    ------
    NotAloneError
        If no source lies where one is expected, or there is not enough sky to replace the others with.
    """
    try:
        pixels, sky_rms = _subtracted(window)
        found = detect(pixels, sky_rms, **LONE)
    except ValueError as error:
        raise NotAloneError(f"no sky around it: {error}") from error
    distance = np.hypot(found.x - x, found.y - y)
    if not len(found) or distance.min() > CENTERING:
        raise NotAloneError(f"no source within {CENTERING:.0f} pixels of the position")
    own = int(np.argmin(distance)) + 1
    grown = dilate(found.segmentation)
    bad = ~np.isfinite(pixels)
    foreign = (grown > 0) & (grown != own)
    try:
        kernel = None if instrument.noise_kernel is None else instrument.noise_kernel.cpu().numpy()
        filled = replace_with_sky(
            np.where(bad, 0.0, pixels), foreign | bad, rng, blank=(grown == 0) & ~bad, kernel=kernel, sky_rms=sky_rms
        )
    except ValueError as error:
        raise NotAloneError(str(error)) from error
    footprint = dilate((found.segmentation == own).astype(np.int32)) > 0
    quality = Quality(0)
    if (footprint & foreign).sum() > TAKEN * footprint.sum():
        quality |= Quality.NEIGHBOR
    if (np.hypot(found.x - found.x[own - 1], found.y - found.y[own - 1]) < CENTERING).sum() > 1:
        quality |= Quality.DOUBLE
    quality |= _coverage(window, footprint)
    scaled = pixels if rms is None else pixels / rms
    if _noise_ratio(scaled, found.segmentation) > NOISE_RATIO:
        quality |= Quality.TWO_NOISE_LEVELS
    x0, y0 = (int(np.floor(center)) - STAMP_SIZE // 2 + 1 for center in (found.x[own - 1], found.y[own - 1]))
    x0, y0 = (int(np.clip(corner, 0, WINDOW - STAMP_SIZE)) for corner in (x0, y0))
    stamp = filled[y0 : y0 + STAMP_SIZE, x0 : x0 + STAMP_SIZE]
    factor = _correlation(pixels, found.segmentation, instrument)
    center = found.x[own - 1] - x0, found.y[own - 1] - y0
    return measure_galaxy(
        stamp, sky_rms, center, exposure=instrument.exposure, noise_factor=factor, quality=quality, corner=(x0, y0)
    )


def _coverage(window: NDArray[np.float64], footprint: NDArray[np.bool_]) -> Quality:
    bad = ~np.isfinite(window)
    beyond = np.zeros(bad.shape, dtype=bool)
    beyond[bad.all(1)], beyond[:, bad.all(0)] = True, True
    missing = bad & ~beyond
    stamp = slice(BORDER, -BORDER)
    reach = dilate(footprint.astype(np.int32), margin=EDGE_MARGIN, growth=0.0) > 0
    quality = Quality.EDGE if (reach & beyond).any() else Quality(0)
    if (missing & footprint).any() or missing[stamp, stamp].mean() > MISSING_SHARE:
        quality |= Quality.MISSING
    return quality


def _noise_ratio(pixels: NDArray[np.float64], segmentation: NDArray[np.int32]) -> float:
    half = len(pixels) // 2
    scatters = []
    for rows in (slice(half), slice(half, None)):
        for columns in (slice(half), slice(half, None)):
            part, sources = pixels[rows, columns], segmentation[rows, columns]
            blank = np.isfinite(part) & (dilate(sources) == 0)
            if blank.sum() > blank.size / 20:
                scatters.append(sky_scatter(part, sources))
    return max(scatters) / min(scatters) if len(scatters) > 1 else 1.0


def _correlation(pixels: NDArray[np.float64], segmentation: NDArray[np.int32], instrument: Instrument) -> float:
    try:
        return noise_correlation_factor(pixels, segmentation)
    except ValueError:
        return correlation_sum(instrument.noise_kernel) ** 0.5


def measure_galaxy(
    stamp: NDArray[np.float64],
    sky_rms: float,
    center: tuple[float, float],
    *,
    exposure: float = np.inf,
    noise_factor: float = 1.0,
    quality: int = 0,
    corner: tuple[int, int] = (0, 0),
) -> LoneGalaxy:
    """Measure the galaxy that stands alone in a stamp, and judge it.

    Parameters
    ----------
    stamp
        Sky-subtracted pixels ``(y, x)`` in image units.
    sky_rms
        Sky noise of a pixel in image units.
    center
        Where the galaxy is expected, x before y, in pixels.
    exposure
        Counts per unit of flux; infinite for no photon noise.
    noise_factor
        What the noise's correlation multiplies errors of fluxes with.
    quality
        Sum of the `Quality` bits that are known already.
    corner
        The stamp's first pixel in the mosaic, x before y.

    Returns
    -------
    LoneGalaxy
        The galaxy.

    Raises
    ------
    NotAloneError
        If it is too faint to be found at 3 times the sky noise.
    """
    found = detect(stamp, sky_rms, **SEGMENTATION)
    distance = np.hypot(found.x - center[0], found.y - center[1])
    if not len(found) or distance.min() > CENTERING:
        raise NotAloneError("too faint to be found at 3 times the sky noise")
    own = int(np.argmin(distance))
    # The noise's correlation multiplies the error of the sky alone: photons of a galaxy's sum are Poisson.
    flux, error = kron_flux(stamp, found, sky_rms, exposure=exposure * noise_factor**2)
    if not flux[own] > 0:
        raise NotAloneError("its flux is not positive")
    radii = _flux_radii(stamp, found, own, flux[own])
    segmentation = found.segmentation == own + 1
    quality = Quality(quality) | _leftover(stamp, sky_rms, segmentation)
    if _ring_noise_ratio(stamp, segmentation) > NOISE_RATIO:
        quality |= Quality.TWO_NOISE_LEVELS
    if _asymmetry(stamp, segmentation, sky_rms, (found.x[own], found.y[own]), radii[1]) > ASYMMETRY:
        quality |= Quality.ASYMMETRIC
    return LoneGalaxy(
        pixels=stamp.astype(np.float32),
        segmentation=segmentation,
        sky_rms=sky_rms,
        x=float(found.x[own]),
        y=float(found.y[own]),
        auto_flux=float(flux[own]),
        flux_error=float(error[own] * noise_factor),
        half_light_radius=float(radii[1]),
        concentration=float(radii[2] / max(radii[0], 0.5)),
        quality=int(quality),
        x0=corner[0],
        y0=corner[1],
    )


def _flux_radii(stamp: NDArray[np.float64], found: Detection, own: int, flux: float) -> NDArray[np.float64]:
    """Radii in pixels of the circles with 20, 50 and 80 % of the flux."""
    reach = kron_radius(stamp, found)[own] * found.semi_major[own]
    radii, _ = sep.flux_radius(
        np.ascontiguousarray(stamp, dtype=np.float64),
        [found.x[own]],
        [found.y[own]],
        [reach],
        [0.2, 0.5, 0.8],
        normflux=[flux],
        subpix=5,
    )
    return np.maximum(np.ravel(radii), 0.1)


def _leftover(stamp: NDArray[np.float64], sky_rms: float, segmentation: NDArray[np.bool_]) -> Quality:
    found = detect(stamp, sky_rms, **LONE)
    foreign = [label for label in found.label if not (segmentation & (found.segmentation == label)).any()]
    quality = Quality.NEIGHBOR if foreign else Quality(0)
    split = detect(stamp, sky_rms, **(LONE | {"contrast": DOUBLE_CONTRAST})).segmentation
    nuclei = set(np.unique(split[segmentation]).tolist()) - {0}
    return quality | (Quality.DOUBLE if len(nuclei) > 1 else Quality(0))


def _ring_noise_ratio(stamp: NDArray[np.float64], segmentation: NDArray[np.bool_]) -> float:
    """Noise around the galaxy over that far from it, from differences of neighboring pixels: wings cancel."""
    distance = ndimage.distance_transform_edt(~segmentation)[:, 1:]
    difference = np.diff(stamp, axis=1)
    near, far = difference[(distance > 2) & (distance <= RING)], difference[distance > 2 * RING]
    if min(near.size, far.size) < SMALLEST_SAMPLE:
        return 1.0
    return float(np.median(np.abs(near)) / np.median(np.abs(far)))


def _asymmetry(
    stamp: NDArray[np.float64],
    segmentation: NDArray[np.bool_],
    sky_rms: float,
    center: tuple[float, float],
    radius: float,
) -> float:
    """Share of the light beyond a radius that has no counterpart at the opposite side, noise taken off."""
    rows, columns = np.nonzero(segmentation)
    far = np.hypot(columns - center[0], rows - center[1]) > radius
    rows, columns = rows[far], columns[far]
    opposite_x, opposite_y = np.rint(2 * center[0] - columns).astype(int), np.rint(2 * center[1] - rows).astype(int)
    inside = (opposite_x >= 0) & (opposite_x < stamp.shape[1]) & (opposite_y >= 0) & (opposite_y < stamp.shape[0])
    light = stamp[rows[inside], columns[inside]]
    if light.sum() <= 0:
        return 0.0
    difference = np.abs(light - stamp[opposite_y[inside], opposite_x[inside]]).sum()
    # The mean absolute difference of two pixels of pure noise is 2 / sqrt(pi) times their scatter.
    noise = inside.sum() * sky_rms * 2 / np.sqrt(np.pi)
    return float(max(difference - noise, 0.0) / (2 * light.sum()))
