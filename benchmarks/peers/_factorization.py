"""Separate sources by color: factorizations of images in several bands into colors and shapes.

Images ``(band, pixel)`` are a product of colors ``(source, band)`` and shapes ``(source, pixel)``, both positive. Two
ways to make the product unique are here, in short:

- `constrained`, as in scarlet (Melchior et al. 2018, doi:10.1016/j.ascom.2018.07.001): a shape is symmetric about the
  position of its source, and does not rise outward from it.
- `morpho_spectral`, as in MuSCADeT (Joseph et al. 2016, doi:10.1051/0004-6361/201527923): colors are those of the
  pixels' principal components, and shapes are sparse in starlets, an isotropic wavelet transform. Sources of one color
  are one shape, each pixel of which goes to the nearest of them.

Neither knows the PSF: all bands must have the same. Images are in units of their noise.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

__all__ = ["constrained", "inverse_starlets", "monotonic", "morpho_spectral", "starlets", "symmetric"]

STEPS = 60
B3_SPLINE = np.array([1, 4, 6, 4, 1]) / 16
SCALES = 4  # of starlets, besides the smooth rest
THRESHOLD = 4.0  # in standard deviations of the noise, of the coefficients that are kept
BRIGHT = 5.0  # least signal-to-noise ratio of pixels that tell colors
PURE = 0.15  # largest sine of the angle between colors that are one
TINY = 1e-12


def constrained(images: NDArray, place: NDArray, *, steps: int = STEPS, projected: bool = True) -> NDArray[np.float64]:
    """Factorize images into one color and one symmetric, monotonic shape per source.

    Shapes take a proximal gradient step and are projected; colors then follow by non-negative least squares.

    Parameters
    ----------
    images
        Pixels over their noise ``(band, y, x)``.
    place
        Positions x, y ``(source, 2)`` in pixels.
    steps
        Number of steps.
    projected
        Whether shapes are symmetric and monotonic; otherwise only positive, as in any non-negative factorization.

    Returns
    -------
    ndarray
        Light ``(source, band, y, x)``.
    """
    size = images.shape[1:]
    pixels = images.reshape(len(images), -1)
    shape = np.stack([_start(pixels.sum(0).reshape(size), at).ravel() for at in place])
    for _ in range(steps):
        color = _colors(pixels, shape)
        rate = 1 / max(np.linalg.norm(color @ color.T, 2), TINY)
        shape = np.maximum(shape - rate * color @ (color.T @ shape - pixels), 0)
        if projected:
            both = (monotonic(symmetric(one.reshape(size), at), at) for one, at in zip(shape, place, strict=True))
            shape = np.stack([one.ravel() for one in both])
    light = _colors(pixels, shape)[..., None] * shape[:, None]
    return light.reshape(len(place), *images.shape)


def _start(image: NDArray, place: NDArray) -> NDArray[np.float64]:
    """Return a first shape: the fainter of each pixel and its mirror image, as far as that does not rise."""
    image = np.maximum(image, 0)
    return monotonic(np.minimum(image, _mirrored(image, place)), place)


def _colors(pixels: NDArray, shape: NDArray) -> NDArray[np.float64]:
    """Return the non-negative colors ``(source, band)`` that fit best."""
    return np.stack([nnls(shape.T, band)[0] for band in pixels], 1)


def _mirrored(image: NDArray, place: NDArray) -> NDArray[np.float64]:
    """Return an image turned by half about a position, to half a pixel; itself where that is outside."""
    turned = image.copy()
    y, x = (np.round(2 * at).astype(int) - np.arange(n) for at, n in zip(place[::-1], image.shape, strict=True))
    own = [np.flatnonzero((there >= 0) & (there < n)) for there, n in zip((y, x), image.shape, strict=True)]
    turned[np.ix_(*own)] = image[np.ix_(y[own[0]], x[own[1]])]
    return turned


def symmetric(image: NDArray, place: NDArray) -> NDArray[np.float64]:
    """Return the nearest image that is symmetric about a position x, y, which is rounded to half a pixel."""
    return (image + _mirrored(image, place)) / 2


def monotonic(image: NDArray, place: NDArray) -> NDArray[np.float64]:
    """Lower pixels until none is brighter than where the line from it to the position x, y meets the next ring inside.

    Rings are squares about the nearest pixel; the first, on which the position itself may lie, is free.
    """
    flat = image.astype(float).ravel()
    column, row = np.round(place).astype(int)
    for own, first, second, weight in _rings(image.shape, int(row), int(column)):
        flat[own] = np.minimum(flat[own], (1 - weight) * flat[first] + weight * flat[second])
    return flat.reshape(image.shape)


@lru_cache(maxsize=16)
def _rings(shape: tuple[int, int], row: int, column: int) -> list[tuple[NDArray, NDArray, NDArray, NDArray]]:
    """Return the pixels of each square ring about a pixel, and the two of the ring inside that are toward the middle.

    The weight is that of the second of these.
    """
    offset = np.indices(shape).reshape(2, -1) - np.array([[row], [column]])
    distance, rings = np.abs(offset).max(0), []
    for number in range(2, distance.max() + 1):
        own = np.flatnonzero(distance == number)
        inner = offset[:, own] * (number - 1) / number
        low = np.floor(inner).astype(int)
        high = np.ceil(inner).astype(int)
        first, second = ((at[0] + row) * shape[1] + at[1] + column for at in (low, high))
        rings.append((own, first, second, (inner - low).max(0)))
    return rings


def starlets(image: NDArray, scales: int = SCALES) -> NDArray[np.float64]:
    """Return the starlet transform ``(scale, y, x)`` of an image, the smooth rest last.

    Starck et al. (2007), doi:10.1109/TIP.2006.887733: each scale is what a smoothing with a B3 spline, whose points lie
    twice as far apart at every step, takes away.
    """
    planes, smooth = [], np.asarray(image, dtype=float)
    for scale in range(scales):
        kernel = np.zeros(4 * 2**scale + 1)
        kernel[:: 2**scale] = B3_SPLINE
        rest = smooth
        for axis in (0, 1):
            rest = ndimage.convolve1d(rest, kernel, axis=axis, mode="reflect")
        planes.append(smooth - rest)
        smooth = rest
    return np.stack([*planes, smooth])


def inverse_starlets(planes: NDArray) -> NDArray[np.float64]:
    """Return the image whose starlet transform is given."""
    return planes.sum(0)


@cache
def _noise(scales: int) -> NDArray[np.float64]:
    """Return the standard deviation ``(scale,)`` of coefficients of unit white noise."""
    point = np.zeros((2 * 2 ** (scales + 2) + 1,) * 2)
    point[len(point) // 2, len(point) // 2] = 1
    return np.sqrt(np.square(starlets(point, scales)).sum((1, 2)))


def morpho_spectral(images: NDArray, place: NDArray, *, steps: int = 10) -> NDArray[np.float64]:
    """Separate images into shapes of different colors, sparse in starlets, and these into sources.

    Coefficients of a shape are kept where they exceed four standard deviations of their noise in the solution of least
    squares. Within these, positive shapes are fitted step by step; that the noise has no part in them is all that
    sparsity means here.

    Parameters
    ----------
    images
        Pixels over their noise ``(band, y, x)``.
    place
        Positions x, y ``(source, 2)`` in pixels.
    steps
        Number of steps.

    Returns
    -------
    ndarray
        Light ``(source, band, y, x)``.
    """
    color, component = _pixel_colors(images, place)
    solve = np.linalg.pinv(color.T)
    shape = np.tensordot(solve, images, 1)
    error = np.linalg.norm(solve, axis=1)[:, None] * _noise(SCALES)
    kept = np.stack([np.abs(starlets(one)) for one in shape]) >= THRESHOLD * error[..., None, None]
    shape = np.zeros_like(shape)
    for _ in range(steps):
        missing = np.tensordot(solve, images - np.tensordot(color.T, shape, 1), 1)
        planes = np.stack([starlets(one) for one in missing])
        shape = np.maximum(shape + inverse_starlets(np.where(kept, planes, 0).swapaxes(0, 1)), 0)
    return color[component][..., None, None] * _divided(shape, component, place)[:, None]


def _pixel_colors(images: NDArray, place: NDArray) -> tuple[NDArray, NDArray]:
    """Return unit colors ``(component, band)``, and the component of each source.

    Bright pixels, projected on the principal components of their colors, are clustered, beginning with the colors at
    the positions. The color of a cluster is the mean of its pixels on the side away from the others, where they hold
    the least light of other sources. The brightest count most. Clusters of nearly one color are joined.
    """
    summed = ndimage.uniform_filter(images, (0, 3, 3)) * 9
    column, row = np.clip(np.round(place).astype(int), 0, np.array(images.shape[:0:-1]) - 1).T
    own = _unit(summed[:, row, column].T)
    ratio = images.sum(0) / np.sqrt(len(images))
    bright, weight = _unit(images[:, ratio > BRIGHT].T), ratio[ratio > BRIGHT] ** 4
    if len(bright) > len(place):
        found = PCA(n_components=min(len(place), len(images), 2)).fit(bright)
        points = found.transform(bright)
        clusters = KMeans(len(place), init=found.transform(own), n_init=1).fit(points, sample_weight=weight)
        centers = clusters.cluster_centers_
        outward = centers - centers.mean(0)
        for number, away in enumerate(outward):
            of = np.flatnonzero(clusters.labels_ == number)
            beyond = of[(points[of] - centers[number]) @ away >= 0]
            if len(beyond):
                centers[number] = np.average(points[beyond], axis=0, weights=weight[beyond])
        own = _unit(found.inverse_transform(centers))
    sine = np.sqrt(np.maximum(1 - np.square(own @ own.T), 0))
    component = np.unique((sine <= PURE).argmax(1), return_inverse=True)[1]
    return _unit(np.stack([own[component == number].sum(0) for number in range(component.max() + 1)])), component


def _unit(spectra: NDArray) -> NDArray[np.float64]:
    """Return positive spectra ``(pixel, band)`` of unit length."""
    spectra = np.maximum(spectra, TINY)
    return spectra / np.linalg.norm(spectra, axis=1, keepdims=True)


def _divided(shape: NDArray, component: NDArray, place: NDArray) -> NDArray[np.float64]:
    """Return the shape of each source ``(source, y, x)``: what of its component is nearest to it."""
    y, x = np.indices(shape.shape[1:])
    distance = np.hypot(x - place[:, 0, None, None], y - place[:, 1, None, None])
    same = (component[:, None] == component)[..., None, None]
    nearest = np.where(same, distance, np.inf).argmin(1)
    return shape[component] * (nearest == np.arange(len(place))[:, None, None])
