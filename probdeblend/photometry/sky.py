"""The sky between the sources: its scatter, the correlation of its noise, and patches of it to copy.

Drizzling correlates the noise of neighbouring pixels, so an aperture scatters more than its pixels say. Both
numbers are measured on blank sky: what is left of an image when its sources and their wings are taken out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, signal

__all__ = ["dilate", "noise_correlation_factor", "replace_with_sky", "sky_scatter"]

NORMAL_MAD = 1.482602218505602
CONNECTED = np.ones((3, 3), dtype=bool)
BOXES_NEEDED = 10
SMALLEST_BOX = 3
SMALLEST_PATCH = 4


def _native(image: ArrayLike) -> NDArray[np.float64]:
    pixels = np.ascontiguousarray(image, dtype=np.float64)
    if pixels.ndim != 2:
        raise ValueError(f"image must have the axes (y, x), got shape {pixels.shape}")
    return pixels


def dilate(segmentation: NDArray[np.int32], *, margin: float = 4.0, growth: float = 0.5) -> NDArray[np.int32]:
    """Grow every source into the sky, large sources more, because their wings reach farther.

    Parameters
    ----------
    segmentation
        Labels ``(y, x)``, 0 for the sky.
    margin
        Growth of a source of no area in pixels.
    growth
        Growth beyond `margin`, in units of the radius of a circle with the source's area.

    Returns
    -------
    NDArray
        Labels ``(y, x)``; a pixel belongs to the source that it is nearest to.
    """
    if not segmentation.any():
        return segmentation.copy()
    area = np.bincount(segmentation.ravel())
    distance, nearest = ndimage.distance_transform_edt(segmentation == 0, return_indices=True)
    label = segmentation[tuple(nearest)]
    return np.where(distance <= margin + growth * np.sqrt(area[label] / np.pi), label, 0).astype(np.int32)


def _scatter(values: NDArray[np.float64]) -> float:
    return float(NORMAL_MAD * np.median(np.abs(values - np.median(values))))


def _blank(pixels: NDArray[np.float64], segmentation: NDArray[np.int32]) -> NDArray[np.bool_]:
    if segmentation.shape != pixels.shape:
        raise ValueError(f"segmentation must have the shape of image {pixels.shape}, got {segmentation.shape}")
    return (dilate(segmentation) == 0) & np.isfinite(pixels)


def sky_scatter(image: ArrayLike, segmentation: NDArray[np.int32]) -> float:
    """Robust standard deviation of the sky's pixels (1.4826 median absolute deviations).

    Parameters
    ----------
    image
        Pixels ``(y, x)``; those that are not finite are ignored.
    segmentation
        Labels of the sources ``(y, x)``; they are dilated here.

    Returns
    -------
    float
        Scatter in image units.

    Raises
    ------
    ValueError
        If shapes disagree or no blank pixel is left.
    """
    pixels = _native(image)
    blank = _blank(pixels, segmentation)
    if not blank.any():
        raise ValueError("segmentation must leave blank sky, got none")
    return _scatter(pixels[blank])


def noise_correlation_factor(image: ArrayLike, segmentation: NDArray[np.int32], *, size: int = 10) -> float:
    """How much more sums over blank sky scatter than they would if the pixels were independent.

    The factor grows with the aperture until that is several correlation lengths wide, and stays. At 10 x 10
    pixels, about the smallest Kron aperture, drizzled images are within a few percent of that limit; larger
    boxes are few between the sources and measure the errors of the background instead. One number therefore
    serves all apertures.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)`` in units in which the noise is uniform; those not finite are ignored.
    segmentation
        Labels of the sources ``(y, x)``; they are dilated here.
    size
        Side of a box in pixels. Where there is no room for 10 such boxes, smaller ones are taken.

    Returns
    -------
    float
        Robust scatter of the sums over that of the pixels and the square root of their number: 1 for white
        noise.

    Raises
    ------
    ValueError
        If shapes disagree or there is no room for 10 boxes of 3 x 3 pixels.
    """
    pixels = _native(image)
    blank = _blank(pixels, segmentation)
    sky = np.where(blank, pixels, 0.0)
    for side in range(size, SMALLEST_BOX - 1, -1):
        sums = _box_sums(sky, side)[np.rint(_box_sums(blank, side)) == side**2]
        if len(sums) >= BOXES_NEEDED * side**2:
            return _scatter(sums) / (side * _scatter(pixels[blank]))
    room = f"{BOXES_NEEDED} boxes of {SMALLEST_BOX} x {SMALLEST_BOX} pixels"
    raise ValueError(f"segmentation must leave blank sky for {room}, got {blank.sum()} blank pixels")


def _box_sums(values: NDArray, side: int) -> NDArray[np.float64]:
    if min(values.shape) < side:
        return np.zeros((0, 0))
    cumulative = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows = cumulative[side:] - cumulative[:-side]
    return rows[:, side:] - rows[:, :-side]


def replace_with_sky(
    image: ArrayLike,
    mask: ArrayLike,
    rng: np.random.Generator,
    *,
    blank: ArrayLike | None = None,
    kernel: ArrayLike | None = None,
    sky_rms: float | None = None,
) -> NDArray[np.float64]:
    """Fill pixels with blank sky from elsewhere in the image, so that the noise keeps its correlation.

    Each connected region is copied whole from a place where all of its pixels are blank, drawn from the
    nearest tenth of such places, as depth and background vary over an image. A region for which there is no
    such place is halved until there is; what is then too small is filled with drawn noise.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``.
    mask
        Pixels to replace ``(y, x)``.
    rng
        Source of randomness.
    blank
        Pixels that hold nothing but sky ``(y, x)``; by default all that are finite and not masked.
    kernel
        Kernel whose convolution with white noise gives the correlation of drawn noise; white if None.
    sky_rms
        Standard deviation of drawn noise in image units; measured on the blank pixels if None.

    Returns
    -------
    NDArray
        A copy of the image with the masked pixels replaced.

    Raises
    ------
    ValueError
        If shapes disagree, or there are neither blank pixels nor a `sky_rms`.
    """
    pixels = _native(image)
    target = np.asarray(mask, dtype=bool)
    good = ~target if blank is None else np.asarray(blank, dtype=bool)
    for name, given in (("mask", target), ("blank", good)):
        if given.shape != pixels.shape:
            raise ValueError(f"{name} must have the shape of image {pixels.shape}, got {given.shape}")
    good = good & np.isfinite(pixels)
    if sky_rms is None and not good.any():
        raise ValueError("sky_rms must be given where the image has no blank pixels, got None")
    filled = pixels.copy()
    regions, _ = ndimage.label(target, structure=CONNECTED)
    pending = [(box, regions[box] == i) for i, box in enumerate(ndimage.find_objects(regions), start=1)]
    while pending:
        box, footprint = pending.pop()
        corner = _blank_place(good, footprint, [side.start for side in box], rng)
        if corner is not None:
            source = tuple(slice(c, c + n) for c, n in zip(corner, footprint.shape, strict=True))
            filled[box][footprint] = pixels[source][footprint]
        elif max(footprint.shape) >= 2 * SMALLEST_PATCH:
            pending.extend(_halves(box, footprint))
        else:
            rms = _scatter(pixels[good]) if sky_rms is None else sky_rms
            filled[box][footprint] = rms * _draw_noise(footprint.shape, kernel, rng)[footprint]
    return filled


def _blank_place(
    good: NDArray[np.bool_], footprint: NDArray[np.bool_], corner: list[int], rng: np.random.Generator
) -> NDArray[np.int64] | None:
    bad = signal.fftconvolve(~good, footprint[::-1, ::-1].astype(np.float64), mode="valid")
    places = np.argwhere(bad < 0.5)
    if not len(places):
        return None
    near = np.argsort(((places - corner) ** 2).sum(1))[: 1 + len(places) // 10]
    return places[rng.choice(near)]


def _halves(box: tuple[slice, ...], footprint: NDArray[np.bool_]) -> list[tuple[tuple[slice, ...], NDArray[np.bool_]]]:
    axis = int(np.argmax(footprint.shape))
    middle = footprint.shape[axis] // 2
    halves = []
    for part in (slice(0, middle), slice(middle, footprint.shape[axis])):
        inner = tuple(part if i == axis else slice(0, n) for i, n in enumerate(footprint.shape))
        outer = tuple(slice(b.start + i.start, b.start + i.stop) for b, i in zip(box, inner, strict=True))
        halves.append((outer, footprint[inner]))
    return halves


def _draw_noise(shape: tuple[int, ...], kernel: ArrayLike | None, rng: np.random.Generator) -> NDArray[np.float64]:
    if kernel is None:
        return rng.normal(size=shape)
    weights = np.asarray(kernel, dtype=np.float64)
    white = rng.normal(size=tuple(n + k - 1 for n, k in zip(shape, weights.shape, strict=True)))
    return signal.fftconvolve(white, weights / np.sqrt((weights**2).sum()), mode="valid")
