"""Whole images: find the sources, deblend those that overlap, measure the others with SEP.

Each overlapping pair gets a stamp centered on its brighter galaxy, in which sky replaces all other sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import QTable, Table, vstack
from astropy.units import Quantity
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, special

from ..photometry.detection import COLD, HOT, Detection, detect, kron_flux
from ..photometry.images import cut_stamps, uncovered
from ..photometry.noise import correlated_noise, correlation_sum
from ..photometry.sky import dilate, noise_correlation_factor, replace_with_sky, sky_scatter, subtract_sky
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import STAMP_CENTER, STAMP_SIZE, Instrument
from .deblender import Deblends
from .overlaps import find_pairs
from .products import DeblendedImage

__all__ = ["deblend_field"]

SETTINGS = HOT | {"contrast": COLD["contrast"]}  # deep, but without splitting galaxies into their knots
BORDER = 32  # pixels around a stamp where blank sky may be taken from as well
CENTER_RADIUS = 5  # pixels around a galaxy's center where a bad pixel raises a flag
CHUNK = 64  # stamps per call of the deblender
QUANTILES = 999  # odd, so that the median of an isolated source is SEP's flux


@dataclass(frozen=True, eq=False)
class _Field:
    """An image with its noise and sources, and how the sources overlap."""

    image: NDArray[np.float64]
    noise: NDArray[np.float64]
    detection: Detection
    instrument: Instrument
    labels: dict[str, object]
    pairs: NDArray[np.int64]  # (blend, galaxy): index of the source, the brighter one first
    kept: NDArray[np.bool_]  # (blend, galaxy): whether its row goes into the catalog
    crowded: NDArray[np.bool_]  # (source,)
    ellipses: NDArray[np.float64]  # (source, 2, 2): r C^-1 r = 1 on the Kron ellipse


def deblend_field(
    image: ArrayLike,
    deblender: Deblends,
    *,
    rms: ArrayLike | None = None,
    rms_as_is: bool = False,
    background: bool = True,
    instrument: Instrument | None = None,
    wcs: WCS | None = None,
    **sampling: int,
) -> DeblendedImage:
    """Find the sources of an image, deblend those that overlap and measure the others with SEP.

    Parameters
    ----------
    image
        Pixels ``(y, x)``, also as a masked array or a Quantity. Bad are pixels that are not finite, and patches of at
        least 5 x 5 exact zeros.
    deblender
        A callable that returns a `Posterior`, such as a `Deblender`. It is called with stamps ``(blend, y, x)``, NaN
        for bad pixels, and the sky noise of each.
    rms
        Sky noise of a pixel in image units, a number or a map ``(y, x)``, also as a Quantity; None measures it
        locally.
    rms_as_is
        Whether a map is used as given. Otherwise it is scaled to the scatter of the image's sky.
    background
        Whether the sky is subtracted.
    instrument
        Its zero point (NaN for none); its exposure, which adds photon noise to SEP's errors; and its noise
        correlation, to fill stamps beyond the edge of the image. None takes that of the deblender.
    wcs
        World coordinates of the image; adds ra and dec to the catalog.
    **sampling
        ``draws``, ``passes`` and ``seed`` for the deblender. The seed also selects the sky that replaces sources.

    Returns
    -------
    DeblendedImage
        Catalog, posterior, stamps and the sky noise.

    Raises
    ------
    ValueError
        If the image does not have two axes, no good pixels that differ or no source; or if `rms` is not positive and
        finite or has another shape.
    """
    instrument = deblender.instrument if instrument is None else instrument
    unit = str(getattr(image, "unit", ""))
    rms = rms.to_value(unit) if isinstance(rms, Quantity) else rms
    pixels = _checked_image(image)
    subtracted, scatter = subtract_sky(pixels)
    pixels, noise = subtracted if background else pixels, scatter if rms is None else _checked_rms(rms, pixels)
    if not noise.all():
        raise ValueError("rms must be given if the sky noise cannot be measured, got None and a sky without scatter")
    detection = _found(pixels, noise)
    factor = 1.0
    if rms is None or (np.ndim(rms) and not rms_as_is):
        factor = _or_else(1.0, sky_scatter, pixels / noise, detection.segmentation)
        noise = noise * factor
        detection = _found(pixels, noise)
    white = correlation_sum(instrument.noise_kernel) ** 0.5
    noise_factor = _or_else(white, noise_correlation_factor, pixels / noise, detection.segmentation)
    labels = {"flux_unit": unit, "zero_point": instrument.zero_point if np.isfinite(instrument.zero_point) else None}
    scene = _Field(pixels, noise, detection, instrument, labels, *find_pairs(detection, pixels))
    stamps, corners, posterior = _deblend(scene, deblender, sampling)
    catalog = _catalog(scene, posterior, corners, _measure_isolated(scene, noise_factor), wcs)
    measured = {"sky_rms": float(np.median(noise[np.isfinite(pixels)])), "noise_factor": noise_factor}
    measured["rms_factor"] = 1.0 if rms is None else factor
    return DeblendedImage(catalog, posterior, stamps, corners, **measured, image=pixels, detection=detection)


def _checked_image(image: ArrayLike) -> NDArray[np.float64]:
    pixels = np.ma.filled(np.ma.asarray(getattr(image, "value", image)).astype(np.float64), np.nan)
    if pixels.ndim != 2:
        raise ValueError(f"image must have the axes (y, x), got shape {pixels.shape}")
    return np.where(uncovered(pixels) | ~np.isfinite(pixels), np.nan, pixels)


def _checked_rms(rms: ArrayLike, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    noise = np.ma.filled(np.ma.asarray(rms).astype(np.float64), np.nan)
    if noise.ndim and noise.shape != pixels.shape:
        raise ValueError(f"rms must be a number or have the shape of image {pixels.shape}, got {noise.shape}")
    noise = np.broadcast_to(noise, pixels.shape)
    good = np.isfinite(pixels)
    wrong = ~(np.isfinite(noise) & (noise > 0))
    if (wrong & good).any():
        raise ValueError(f"rms must be positive and finite, got {noise[wrong & good][0]}")
    return np.where(wrong, np.median(noise[good]), noise)


def _found(pixels: NDArray[np.float64], noise: NDArray[np.float64]) -> Detection:
    detection = detect(pixels, noise, **SETTINGS)
    if not len(detection):
        raise ValueError(f"no source found above {SETTINGS['threshold']:g} times the sky rms {np.median(noise):.3g}")
    return detection


def _or_else(otherwise: float, measure: Callable[..., float], *arguments: NDArray) -> float:
    """Return what is measured on blank sky, or a fallback if there is too little of it."""
    try:
        value = measure(*arguments)
    except ValueError:
        return otherwise
    return value if np.isfinite(value) and value > 0 else otherwise


def _deblend(
    scene: _Field, deblender: Deblends, sampling: dict[str, int]
) -> tuple[NDArray | None, Table, Posterior | None]:
    position = np.stack([scene.detection.x, scene.detection.y], axis=-1)
    first_pixel = np.rint(position[scene.pairs[:, 0]] - STAMP_CENTER).astype(np.int64)
    corners = Table({"blend": np.arange(len(first_pixel)), "x0": first_pixel[:, 0], "y0": first_pixel[:, 1]})
    if not len(corners):
        return None, corners, None
    seed = sampling.get("seed", 0)
    stamps, sky_rms = _cut_stamps(scene, first_pixel, seed)
    answers = []
    for start in range(0, len(stamps), CHUNK):
        part = slice(start, start + CHUNK)
        answers.append(deblender(stamps[part], sky_rms=sky_rms[part], **(sampling | {"seed": seed + start})))
    posterior = Posterior.concatenate(answers)
    x, y = (position[scene.pairs] - first_pixel[:, None]).transpose(2, 0, 1)
    over = ((first_pixel < 0) | (first_pixel + STAMP_SIZE > scene.image.shape[::-1])).any(-1)
    flags = posterior.flags.values | (over * int(Flag.TRUNCATED))[:, None]
    flags = flags | scene.crowded[scene.pairs] * int(Flag.CROWDED)
    posterior = _placed(posterior, x, y, flags=(("blend", "galaxy"), flags))
    posterior.flux.attrs["unit"] = scene.labels["flux_unit"]
    posterior.dataset.attrs |= {name: value for name, value in scene.labels.items() if value is not None}
    return stamps, corners, posterior


def _placed(posterior: Posterior, x: NDArray, y: NDArray, **others: tuple) -> Posterior:
    dims = ("blend", "galaxy")
    return Posterior(posterior.dataset.assign(x=(dims, x), y=(dims, y), **others))


def _cut_stamps(scene: _Field, first_pixel: NDArray, seed: int) -> tuple[NDArray[np.float32], NDArray]:
    """Return stamps with sky in place of other sources and noise beyond the edge, and the median noise of each."""
    # Sky is moved in units of the noise, so that it fits where the depth differs.
    ratio, owner = scene.image / scene.noise, dilate(scene.detection.segmentation)
    kernel = None if scene.instrument.noise_kernel is None else scene.instrument.noise_kernel.cpu()
    stamps = np.empty((len(first_pixel), STAMP_SIZE, STAMP_SIZE), dtype=np.float32)
    sky_rms = np.empty(len(stamps))
    side, inner = STAMP_SIZE + 2 * BORDER, (slice(BORDER, -BORDER),) * 2
    for i, corner in enumerate(first_pixel - BORDER):
        rng = np.random.default_rng([seed, i])
        labels = cut_stamps(owner, corner, side)[0]
        inside = np.isfinite(labels)[inner]
        nearest = np.clip(corner[::-1, None] + np.arange(side), 0, np.array(scene.noise.shape)[:, None] - 1)
        noise = scene.noise[np.ix_(*nearest)][inner]
        labels = np.nan_to_num(labels)
        others = np.zeros((side, side), dtype=bool)
        others[inner] = ~np.isin(labels[inner], [0, *(scene.pairs[i] + 1)])
        pixels = cut_stamps(ratio, corner, side)[0]
        clean = replace_with_sky(pixels, others, rng, blank=labels == 0, kernel=kernel, sky_rms=1.0)[inner]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        drawn = correlated_noise(clean.shape, kernel, generator=generator).numpy()
        stamps[i] = np.where(inside, clean, drawn) * noise
        sky_rms[i] = np.median(noise[inside])
    return stamps, sky_rms


def _measure_isolated(scene: _Field, noise_factor: float) -> Posterior | None:
    found = scene.detection
    flux, error = kron_flux(scene.image, found, scene.noise)
    isolated = np.setdiff1d(np.arange(len(found)), scene.pairs)
    isolated = isolated[np.argsort(-flux[isolated], kind="stable")]
    if not len(isolated):
        return None
    flux = flux[isolated]
    error = np.hypot(noise_factor * error[isolated], np.sqrt(np.maximum(flux, 0) / scene.instrument.exposure))
    steps = special.ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES)
    draws = (flux + error * (steps / steps.std(ddof=1))[:, None])[None, :, :, None, None]
    placed = {"x": found.x[isolated, None], "y": found.y[isolated, None]}
    flags = _isolated_flags(scene, isolated)[:, None]
    return Posterior.from_draws(draws, flux_kind="auto", method="sep", flags=flags, **placed, **scene.labels)


def _isolated_flags(scene: _Field, isolated: NDArray[np.int64]) -> NDArray[np.int64]:
    bad = np.isnan(scene.image)
    x, y = scene.detection.x[isolated], scene.detection.y[isolated]
    flags = np.full(len(isolated), int(Flag.ISOLATED))
    if bad.any():
        distance = ndimage.distance_transform_edt(~bad)[np.rint(y).astype(int), np.rint(x).astype(int)]
        flags |= (distance <= CENTER_RADIUS) * int(Flag.BAD_CENTER)
    reach_x, reach_y = np.sqrt(np.diagonal(scene.ellipses[isolated], axis1=1, axis2=2)).T
    rows, columns = bad.shape
    over = (x < reach_x) | (y < reach_y) | (x + reach_x > columns - 1) | (y + reach_y > rows - 1)
    return flags | over * int(Flag.TRUNCATED)


def _catalog(
    scene: _Field, posterior: Posterior | None, corners: Table, isolated: Posterior | None, wcs: WCS | None
) -> QTable:
    tables = []
    if posterior is not None:
        x, y = (posterior.dataset[name].values + corners[f"{name}0"].data[:, None] for name in ("x", "y"))
        tables.append(_placed(posterior, x, y).summary(wcs=wcs)[scene.kept.ravel()])
    if isolated is not None:
        tables.append(isolated.summary(wcs=wcs))
        tables[-1]["blend"] = np.ma.masked_all(len(tables[-1]), dtype=np.int64)
    catalog = vstack(tables, metadata_conflicts="silent")
    catalog["id"] = np.arange(1, len(catalog) + 1)
    catalog.meta["flux_kind"] = ", ".join(dict.fromkeys(catalog["flux_kind"]))
    return catalog
