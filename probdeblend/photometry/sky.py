"""The sky between the sources: its level and scatter, the correlation of its noise, and noise like it.

Drizzling correlates the noise of neighboring pixels, so an aperture scatters more than its pixels suggest. Scatter and
correlation are measured on blank sky: what is left of an image once its sources and their wings are taken out.
"""

from functools import cache

import numpy as np
import sep
import torch
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..scene import drizzle_kernel
from .detection import HOT, detect, native_image
from .noise import autocorrelation

__all__ = ["blank_sky", "dilate", "estimate_noise_kernel", "middle_of", "smooth_noise", "subtract_sky"]

MESH = 64  # pixels per side of a cell of the background mesh
# Pixels around a source that are left out of the background, and how much more around large ones; see `dilate`. The
# latter is the first with which a tenth of the pixels is left.
SOURCE_MARGIN, SOURCE_GROWTH, LEAST_SKY = 8.0, (1.5, 0.0), 0.1
LAG = 3  # pixels, over which the light of sources changes little and the noise is hardly correlated
STRENGTHS = np.linspace(0.0, 1.3, 131)  # of the noise's correlation, over that in CANDELS
LEAST_PAIRS = 500
ENOUGH = 1024  # pixels on a side of the largest area in which correlations are measured


def subtract_sky(image: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Subtract the sky, by SEP's mesh of clipped modes without the sources.

    Parameters
    ----------
    image
        Pixels ``(y, x)``; those that are not finite are ignored.

    Returns
    -------
    pixels, noise
        The image without its sky, and the local scatter of the sky, at least a tenth of its median ``(y, x)``.

    Raises
    ------
    ValueError
        If no pixel is good, or all are equal.
    """
    pixels = native_image(image)
    bad = ~np.isfinite(pixels)
    if bad.all() or np.ptp(pixels[~bad]) == 0:
        raise ValueError("image must have good pixels that differ, got none")
    filled = np.where(bad, 0.0, pixels)
    sky = sep.Background(filled, mask=bad, bw=MESH, bh=MESH)
    found = detect(pixels - sky.back(), sky.globalrms or filled.std(), **HOT).segmentation
    for growth in SOURCE_GROWTH:
        skip = bad | (dilate(found, margin=SOURCE_MARGIN, growth=growth) > 0)
        if skip.mean() < 1 - LEAST_SKY:
            sky = sep.Background(filled, mask=skip, bw=MESH, bh=MESH)
            break
    scatter = sky.rms()
    return pixels - sky.back(), np.maximum(scatter, 0.1 * np.median(scatter))


def blank_sky(image: ArrayLike) -> NDArray[np.float64]:
    """Return the pixels ``(y, x)`` of an image with one level of sky, NaN where sources and their wings may be."""
    pixels = native_image(image)
    steps = np.concatenate([(values[LAG:] - values[:-LAG]).ravel() for values in (pixels, pixels.T)])
    scatter = mad_std(steps, ignore_nan=True) / np.sqrt(2) if np.isfinite(steps).any() else 0.0
    if not scatter > 0:
        return np.full(pixels.shape, np.nan)
    bad, side = ~np.isfinite(pixels), max(pixels.shape)
    scaled = np.where(bad, 0.0, pixels / scatter)
    scaled -= sep.Background(scaled, mask=bad, bw=side, bh=side).globalback
    found = detect(np.where(bad, np.nan, scaled), 1.0, **HOT).segmentation
    return np.where(dilate(found, margin=SOURCE_MARGIN, growth=SOURCE_GROWTH[0]) > 0, np.nan, pixels)


def smooth_noise(noise: ArrayLike) -> NDArray[np.float64]:
    """Return a noise map ``(y, x)`` without the photon noise of sources, by SEP's mesh; NaN stays where it is NaN."""
    values = native_image(noise)
    bad = ~np.isfinite(values)
    if bad.all():
        return values
    unit = np.median(values[~bad])
    smooth = sep.Background(np.where(bad, 0.0, values / unit), mask=bad, bw=MESH, bh=MESH).back()
    return np.where(bad, np.nan, np.clip(smooth * unit, values[~bad].min(), values[~bad].max()))


def dilate(segmentation: NDArray[np.int32], *, margin: float = 4.0, growth: float = 0.5) -> NDArray[np.int32]:
    """Grow every source of a label image ``(y, x)`` into the sky, large ones more, because their wings reach farther.

    They grow by `margin` pixels, plus `growth` times the radius of a circle with the source's area; a pixel goes to the
    source that it is nearest to.
    """
    if not segmentation.any():
        return segmentation.copy()
    area = np.bincount(segmentation.ravel())
    distance, nearest = ndimage.distance_transform_edt(segmentation == 0, return_indices=True)
    label = segmentation[tuple(nearest)]
    return np.where(distance <= margin + growth * np.sqrt(area[label] / np.pi), label, 0).astype(np.int32)


def middle_of(shape: tuple[int, int], size: int) -> tuple[slice, ...]:
    """Return rows and columns of the middle of an image, at most `size` pixels on a side."""
    return tuple(slice(max((side - size) // 2, 0), min((side + size) // 2, side)) for side in shape)


def estimate_noise_kernel(image: ArrayLike) -> torch.Tensor:
    """Estimate the kernel of the sky's noise from the correlation of neighboring pixels.

    Kernels are those of drizzled images, from white noise to 1.3 times the correlation in CANDELS. Robust scatters of
    sums and differences give the correlations, which faint sources and bad pixels then hardly change; the sources that
    SEP finds are left out. Of a large image, the middle is measured.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)`` in units in which the noise is uniform; those not finite are ignored.

    Returns
    -------
    Tensor
        Kernel ``(3, 3)`` that turns white noise into such noise, with 1 in the middle.

    Raises
    ------
    ValueError
        If fewer than 500 pairs of neighboring pixels are blank.
    """
    pixels = native_image(image)
    pixels = pixels[middle_of(pixels.shape, ENOUGH)]
    bad = ~np.isfinite(pixels)
    if not bad.all() and (scatter := mad_std(pixels[~bad])) > 0:
        bad |= dilate(detect(pixels, scatter, **HOT).segmentation) > 0
    sky, measured = np.where(bad, np.nan, pixels), []
    low, high, every = slice(None, -1), slice(1, None), slice(None)
    beside = ((every, low), (every, high)), ((low, every), (high, every))
    for here, there in (*beside, ((low, low), (high, high)), ((low, high), (high, low))):
        first, second = sky[here], sky[there]
        pair = np.isfinite(first) & np.isfinite(second)
        if (count := pair.sum()) < LEAST_PAIRS:
            raise ValueError(f"image must have {LEAST_PAIRS} pairs of neighboring pixels of blank sky, got {count}")
        sums, differences = (mad_std(values) ** 2 for values in ((first + second)[pair], (first - second)[pair]))
        measured.append((sums - differences) / max(sums + differences, 1e-300))
    return drizzle_kernel(float(STRENGTHS[((_expected() - measured) ** 2).sum(1).argmin()]))


@cache
def _expected() -> NDArray[np.float64]:
    """Return the correlation of a pixel with those beside, above and on both diagonals, for each of `STRENGTHS`."""
    rho = np.stack([autocorrelation(drizzle_kernel(strength).double()).numpy() for strength in STRENGTHS])
    return rho[:, [2, 3, 3, 3], [3, 2, 3, 1]]
