"""Where the light of the two galaxies of a stamp peaks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from ..scene import STAMP_CENTER

__all__ = ["bad_center", "light_centers"]

CENTRAL = 3.5


def light_centers(
    image: NDArray, mask: NDArray | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the centers of the two galaxies.

    Galaxy 0 is at the peak nearest to the middle, or in the middle where there is none within 3.5 pixels. Galaxy 1 is
    where the light inside its mask is brightest, away from galaxy 0.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``.
    mask
        Mask probabilities ``(blend, galaxy, y, x)``; without them galaxy 1 is in the middle.

    Returns
    -------
    x, y, distance
        Positions ``(blend, galaxy)`` in pixels, and how far from the middle galaxy 0 peaks ``(blend,)``.
    """
    x, y = np.full((2, len(image), 2), STAMP_CENTER)
    distance = np.zeros(len(image))
    rows, columns = np.indices(image.shape[-2:])
    middle = np.hypot(columns - STAMP_CENTER, rows - STAMP_CENTER)
    for i, pixels in enumerate(image.mean(1)):
        light = gaussian_filter(pixels, 1.0)
        peaks = np.flatnonzero((light == maximum_filter(light, 3)) & (light > 1))
        nearest = peaks[middle.flat[peaks].argmin()] if len(peaks) else 0
        distance[i] = middle.flat[nearest]
        if distance[i] <= CENTRAL:
            x[i, 0], y[i, 0] = _centroid(light, nearest)
        if mask is not None:
            away = 1 - np.exp(-((columns - x[i, 0]) ** 2 + (rows - y[i, 0]) ** 2) / 18)
            x[i, 1], y[i, 1] = _centroid(light, (light * mask[i, 1] ** 2 * away).argmax())
    return x, y, distance


def _centroid(light: NDArray, peak: int) -> tuple[float, float]:
    """Return the center of light within 2.5 pixels of a peak."""
    rows, columns = np.indices(light.shape)
    weight = np.clip(light, 0, None) * (np.hypot(columns - columns.flat[peak], rows - rows.flat[peak]) <= 2.5)
    total = weight.sum() + 1e-12
    return float((weight * columns).sum() / total), float((weight * rows).sum() / total)


def bad_center(bad: NDArray[np.bool_], x: NDArray, y: NDArray) -> NDArray[np.bool_]:
    """Say for each galaxy whether a bad pixel lies within 5 pixels of it.

    Parameters
    ----------
    bad
        Bad pixels ``(blend, y, x)``.
    x, y
        Positions ``(blend, galaxy)``.

    Returns
    -------
    NDArray
        ``(blend, galaxy)``.
    """
    rows, columns = np.indices(bad.shape[-2:])
    near = np.hypot(columns - x[..., None, None], rows - y[..., None, None]) <= 5
    return (near & bad[:, None]).any((-2, -1))
