"""Isolated galaxies cut out of a mosaic, after Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 2.1).

Around each galaxy a window is read; SEP subtracts the sky and finds the sources. All but the galaxy, grown into their
wings, are replaced by noise with the scatter and correlation of the window's sky. The galaxy is then measured on its
own. What the paper judged by eye is measured here, and limits on the measurements set the `Quality` flags.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import sep
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ..photometry.detection import COLD, HOT, SEGMENTATION, Detection, detect, kron_flux, kron_radius, native_image
from ..photometry.images import cut_stamps
from ..photometry.sky import dilate, draw_noise, estimate_noise_kernel, sky_scatter, subtract_sky
from ..scene import STAMP_SIZE, correlation_sum
from ..simulation.cameras import Camera
from .stamps import Quality

__all__ = ["NOISE_RATIO", "WINDOW", "Galaxy", "NotIsolatedError", "cut_galaxy", "find_galaxies", "measure_galaxy"]

BORDER = 48  # pixels around a stamp in which sky is measured
WINDOW = STAMP_SIZE + 2 * BORDER
CENTERING = 8.0  # largest distance in pixels of a source from the catalog's position
DEEP = HOT | {"contrast": COLD["contrast"]}
TAKEN = 0.05
ASYMMETRY = 0.25
EDGE_MARGIN = 4
MISSING_SHARE = 0.1
DOUBLE_CONTRAST = 0.1
NOISE_RATIO = 1.5


class NotIsolatedError(ValueError):
    """No galaxy could be cut out; the message gives the reason."""


Galaxy = dict[str, Any]
"""Columns of a `Library` for one galaxy, but that the half-light radius is in pixels and `keep` is left open.

A galaxy of a mosaic also has the first pixel of its stamp there, ``x0`` and ``y0``.
"""


def find_galaxies(window: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, Detection]:
    """Return a part of a mosaic without its sky, the sky noise and the sources; NaN where there are no pixels."""
    pixels, scatter = subtract_sky(window)
    sky_rms = sky_scatter(pixels, detect(pixels, scatter, **HOT).segmentation)
    return pixels, sky_rms, detect(pixels, sky_rms, **DEEP)


def _source_at(found: Detection, center: tuple[float, float], otherwise: str) -> int:
    distance = np.hypot(found.x - center[0], found.y - center[1])
    if distance.min(initial=np.inf) > CENTERING:
        raise NotIsolatedError(otherwise)
    return int(np.argmin(distance))


def cut_galaxy(
    window: NDArray[np.float64], x: float, y: float, *, instrument: Camera, rng: np.random.Generator
) -> Galaxy:
    """Cut out the galaxy at x, y, in the middle of a window, replace all others by sky, and measure it.

    The window ``(y, x)`` is a square of 224 pixels, NaN beyond the mosaic.
    """
    try:
        pixels, sky_rms, found = find_galaxies(window)
    except ValueError as error:
        raise NotIsolatedError(f"no sky around it: {error}") from error
    own = _source_at(found, (x, y), f"no source within {CENTERING:.0f} pixels of the position")
    grown, bad = dilate(found.segmentation), ~np.isfinite(pixels)
    foreign = (grown > 0) & (grown != own + 1)
    footprint = dilate((found.segmentation == own + 1).astype(np.int32)) > 0
    x, y = found.x[own], found.y[own]
    try:
        kernel = estimate_noise_kernel(pixels)
    except ValueError:  # too little blank sky
        kernel = instrument.noise_kernel[0]
    filled = np.where(foreign | bad, sky_rms * draw_noise(pixels.shape, kernel, rng), pixels)
    x0, y0 = (int(np.floor(center)) - STAMP_SIZE // 2 + 1 for center in (x, y))
    stamp = cut_stamps(filled, (x0, y0), STAMP_SIZE)[0]
    galaxy = measure_galaxy(stamp, sky_rms, (x - x0, y - y0), exposure=float(instrument.exposure[0]), kernel=kernel)
    reach = dilate(footprint.astype(np.int32), margin=EDGE_MARGIN, growth=0.0) > 0
    gaps = (reach & bad).any() or bad[BORDER:-BORDER, BORDER:-BORDER].mean() > MISSING_SHARE
    quality = galaxy["quality"] | Quality.MISSING_PIXELS * gaps
    quality |= Quality.NEIGHBOR * ((footprint & foreign).sum() > TAKEN * footprint.sum())
    quality |= Quality.DOUBLE_NUCLEUS * ((np.hypot(found.x - x, found.y - y) < CENTERING).sum() > 1)
    quality |= Quality.TWO_NOISE_LEVELS * (_noise_ratio(pixels, found.segmentation) > NOISE_RATIO)
    return galaxy | {"quality": int(quality), "x0": x0, "y0": y0}


def _noise_ratio(pixels: NDArray[np.float64], segmentation: NDArray[np.int32]) -> float:
    """Largest ratio of the noise in two quarters of a window."""
    scatters = []
    for quarter in product((slice(len(pixels) // 2), slice(len(pixels) // 2, None)), repeat=2):
        blank = np.isfinite(pixels[quarter]) & (dilate(segmentation[quarter]) == 0)
        if blank.mean() > 1 / 20:
            scatters.append(mad_std(pixels[quarter][blank]))
    return max(scatters) / min(scatters) if len(scatters) > 1 else 1.0


def measure_galaxy(
    stamp: NDArray[np.float64],
    sky_rms: float,
    center: tuple[float, float],
    *,
    exposure: float,
    kernel: Tensor | None,
) -> Galaxy:
    """Measure and judge the isolated galaxy that is expected at the `center` (x before y) of a sky-subtracted stamp.

    The correlation of the noise is that of a `kernel`, which counts in the error of the flux; `exposure` is in counts
    per unit of flux.
    """
    found = detect(stamp, sky_rms, **SEGMENTATION)
    own = _source_at(found, center, "too faint to be found at 3 times the sky noise")
    # The noise's correlation multiplies the error of the sky alone: photons of a galaxy's sum are Poisson.
    correlation = float(correlation_sum(kernel))
    flux, error = kron_flux(stamp, found, sky_rms, exposure=exposure * correlation)
    if not flux[own] > 0:
        raise NotIsolatedError("its flux is not positive")
    segmentation, x, y = found.segmentation == own + 1, found.x[own], found.y[own]
    reach = kron_radius(stamp, found)[own] * found.semi_major[own]
    circles = {"rmax": [reach], "frac": 0.5, "normflux": [flux[own]], "subpix": 5}
    half = max(float(sep.flux_radius(native_image(stamp), [x], [y], **circles)[0][0]), 0.1)
    quality = _leftover(stamp, sky_rms, segmentation)
    quality |= Quality.ASYMMETRIC * (_asymmetry(stamp, segmentation, sky_rms, (x, y), half) > ASYMMETRY)
    return {
        "pixels": stamp.astype(np.float32),
        "segmentation": segmentation,
        "sky_rms": sky_rms,
        "x": x,
        "y": y,
        "auto_flux": flux[own],
        "flux_error": error[own] * correlation**0.5,
        "half_light_radius": half,
        "quality": int(quality),
        "exposure": exposure,
    }


def _leftover(stamp: NDArray[np.float64], sky_rms: float, segmentation: NDArray[np.bool_]) -> int:
    found = detect(stamp, sky_rms, **DEEP)
    others = np.setdiff1d(found.label, found.segmentation[segmentation])
    split = detect(stamp, sky_rms, **(DEEP | {"contrast": DOUBLE_CONTRAST})).segmentation
    nuclei = np.setdiff1d(split[segmentation], 0)
    return Quality.NEIGHBOR * (len(others) > 0) | Quality.DOUBLE_NUCLEUS * (len(nuclei) > 1)


def _asymmetry(
    stamp: NDArray[np.float64],
    segmentation: NDArray[np.bool_],
    sky_rms: float,
    center: tuple[float, float],
    radius: float,
) -> float:
    """Share of the light beyond a radius that has no counterpart on the opposite side, less that of pure noise."""
    y, x = np.nonzero(segmentation)
    far = np.hypot(x - center[0], y - center[1]) > radius
    y, x = y[far], x[far]
    opposite = [2 * center[1] - y, 2 * center[0] - x]
    difference = stamp[y, x] - ndimage.map_coordinates(stamp, opposite, order=0, mode="grid-constant", cval=np.nan)
    inside = np.isfinite(difference)
    if (light := stamp[y, x][inside].sum()) <= 0:
        return 0.0
    # The mean absolute difference of two pixels of pure noise is 2 / sqrt(pi) times their scatter.
    noise = inside.sum() * sky_rms * 2 / np.sqrt(np.pi)
    return float(max(np.abs(difference[inside]).sum() - noise, 0.0) / (2 * light))
