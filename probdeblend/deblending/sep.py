"""SEP's photometry as a `Posterior`: sources are detected cold, then hot, and two galaxies are measured.

Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 5.1) match detections to galaxies in three cases:

- two detections: each galaxy gets its own, by position;
- one: it belongs to the nearest galaxy, and the other galaxy is missed;
- three or more: each galaxy is matched to a nearby detection, and the rest are ignored.

The draws are independent normals with SEP's errors. These contain no correlation, neither of the noise between pixels
nor of the two fluxes, and no error of the deblending: that is what a network improves on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..photometry.detection import Detection, detect_cold_hot, isophotal_flux, kron_flux, mirrored_flux
from ..posterior.draws import Posterior
from ..posterior.flags import Flag

__all__ = ["match", "sep_posterior"]

MISSED = -1
_MEASURES = {"auto": kron_flux, "isophotal": isophotal_flux, "mirrored": mirrored_flux}


def sep_posterior(
    image: ArrayLike,
    sky_rms: ArrayLike,
    *,
    kind: Literal["auto", "isophotal", "mirrored"] = "auto",
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Posterior:
    """Measure the two galaxies of each blend with SEP.

    Parameters
    ----------
    image
        Sky-subtracted stamps ``(blend, y, x)`` or ``(blend, band, y, x)``, which are detected in the first band and
        measured in all. Pixels that are not finite are bad.
    sky_rms
        Sky noise of a pixel in image units: a number, one per blend, or a map ``(blend, y, x)``.
    kind
        Which flux: "auto", the Kron flux without the pixels of other sources; "isophotal", the sum of the pixels of
        the segment; or "mirrored", the Kron flux with the pixels of other sources mirrored out.
    x, y
        Expected positions of the galaxies ``(blend, galaxy)`` in pixels. Without them the detection nearest to the
        center of the stamp is galaxy 0, and the brightest other one is galaxy 1.
    exposure
        Counts per unit of flux, a number or one per blend; adds photon noise to the errors.
    draws
        Number of draws.
    seed
        Seed of the draws. Those of a blend depend on it and on the number of the blend alone.

    Returns
    -------
    Posterior
        Draws of one chain, segmentations as masks, detected positions. A missed galaxy has NaN for flux and
        position, an empty mask, and `Flag.NOT_DETECTED`.

    Raises
    ------
    ValueError
        If shapes disagree, the noise or the exposure is not positive, `kind` is unknown, or there are fewer than two
        draws.
    """
    if kind not in _MEASURES:
        raise ValueError(f"kind must be one of {', '.join(_MEASURES)}, got {kind!r}")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    pixels = np.asarray(image)
    if pixels.ndim not in (3, 4):
        raise ValueError(f"image must have the axes (blend, y, x) or (blend, band, y, x), got {pixels.shape}")
    pixels = pixels if pixels.ndim == 4 else pixels[:, None]
    noise = _each_blend("sky_rms", sky_rms, len(pixels), pixels.shape[2:])
    exposures = _each_blend("exposure", np.inf if exposure is None else exposure, len(pixels))
    expected = _positions(x, y, len(pixels))
    shape = (len(pixels), 2, pixels.shape[1])
    flux, error = np.full(shape, np.nan), np.full(shape, np.nan)
    mask = np.zeros((*shape[:2], *pixels.shape[2:]), dtype=np.float32)
    found_at = np.full((2, *shape[:2]), np.nan)
    for i, stamp in enumerate(pixels):
        detection = detect_cold_hot(stamp[0], noise[i])
        chosen = match(detection, None if expected is None else expected[i])
        found = chosen != MISSED
        picked = chosen[found]
        measured = [_MEASURES[kind](band, detection, noise[i], exposure=exposures[i]) for band in stamp]
        flux[i, found], error[i, found] = np.stack(measured, axis=-1)[:, picked]
        mask[i, found] = detection.segmentation == detection.label[picked][:, None, None]
        found_at[:, i, found] = detection.x[picked], detection.y[picked]
    sampled = _draw(flux, error, draws, seed)[None]
    flags = np.where(np.isnan(found_at[0]), int(Flag.NOT_DETECTED), 0)
    found = {"mask": mask, "x": found_at[0], "y": found_at[1], "flags": flags, "method": "sep"}
    return Posterior.from_draws(sampled, flux_kind="isophotal" if kind == "isophotal" else "auto", **found)


def match(detection: Detection, expected: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return the index of the detection of each of two galaxies ``(galaxy,)``, -1 for a missed one.

    `expected` has their positions ``(galaxy, 2)``, x before y: the two detections with the least sum of distances are
    taken. Without it, they are the detection nearest to the center of the stamp and the brightest other one.
    """
    if len(detection) == 0:
        return np.full(2, MISSED)
    if expected is None:
        center = (np.array(detection.segmentation.shape[::-1]) - 1) / 2
        order = np.argsort(_distance(detection, center[None])[0])
        others = order[1:]
        return np.array([order[0], others[np.argmax(detection.flux[others])] if len(others) else MISSED])
    distance = _distance(detection, np.asarray(expected, dtype=np.float64))
    if len(detection) == 1:
        return np.where(np.arange(2) == np.argmin(distance[:, 0]), 0, MISSED)
    pair = distance[0][:, None] + distance[1][None, :]
    np.fill_diagonal(pair, np.inf)
    return np.array(np.unravel_index(np.argmin(pair), pair.shape))


def _distance(detection: Detection, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(positions[:, :1] - detection.x, positions[:, 1:] - detection.y)


def _each_blend(name: str, value: ArrayLike, blends: int, pixels: tuple[int, ...] | None = None) -> NDArray:
    array = np.asarray(value, dtype=np.float64)
    allowed = [(), (blends,)] + ([(blends, *pixels)] if pixels else [])
    if array.shape not in allowed:
        raise ValueError(f"{name} must have one of the shapes {allowed}, got {array.shape}")
    if not (array > 0).all():
        raise ValueError(f"{name} must be positive, got a minimum of {array.min()}")
    return np.broadcast_to(array, (blends,)) if array.ndim == 0 else array


def _positions(x: ArrayLike | None, y: ArrayLike | None, blends: int) -> NDArray[np.float64] | None:
    if x is None and y is None:
        return None
    for name, value in (("x", x), ("y", y)):
        if np.shape(value) != (blends, 2):
            raise ValueError(f"{name} must have shape {(blends, 2)}, got {np.shape(value)}")
    return np.stack([x, y], axis=-1).astype(np.float64)


def _draw(flux: NDArray, error: NDArray, draws: int, seed: int) -> NDArray[np.float64]:
    sampled = np.empty((draws, *flux.shape))
    for i in range(len(flux)):
        rng = np.random.default_rng([seed, i])
        sampled[:, i] = flux[i] + error[i] * rng.normal(size=(draws, *flux.shape[1:]))
    return sampled
