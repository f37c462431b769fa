"""Images of stars and small galaxies by interpolation between ones that the package renders, in microseconds each.

An image is a polynomial in the offset of its center from that of a pixel and, for galaxies, in ln radius: it follows
from images at the nodes of Chebyshev, with the weights of Lagrange. Galaxies are round and exponential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdeblend.simulation.profiles import Components, render

__all__ = ["STAR_RADIUS", "Source", "Templates"]

NODES = np.cos(np.pi * (np.arange(5) + 0.5) / 5)
POLYNOMIALS = np.linalg.inv(np.vander(NODES, increasing=True)).T  # of Lagrange: one row per node
STAR_RADIUS = 1e-2  # pixels, far below what the PSF can tell from a point

Source = tuple[float, float, float, float]
"""x and y in pixels, flux, and half-light radius in pixels, 0 for a star."""


@dataclass(frozen=True, eq=False)
class Templates:
    """Images of stars and galaxies of unit flux by interpolation between offsets and sizes.

    Parameters
    ----------
    images
        At 5 x 5 offsets, of stars and of galaxies of 5 radii ``(1 + 5, 25, y * x)``.
    side
        Pixels on a side of an image.
    radius
        Least and largest half-light radius in pixels.
    """

    images: NDArray[np.float32]
    side: int
    radius: tuple[float, float]

    @classmethod
    def rendered(cls, psf: Tensor, radius: tuple[float, float]) -> Templates:
        """Render sources through an effective PSF ``(y, x)``."""
        ends = np.log(radius)
        radii = np.exp(ends.mean() + np.ptp(ends) / 2 * NODES)
        size, y, x = (grid.ravel() for grid in np.meshgrid([STAR_RADIUS, *radii], NODES / 2, NODES / 2, indexing="ij"))
        columns = {"half_light_radius": size, "sersic_index": np.where(size < radius[0], 0.5, 1.0)}
        columns |= {"x": x + psf.shape[-1] // 2, "y": y + psf.shape[-1] // 2, "angle": 0 * x}
        columns |= {"flux": np.ones_like(x), "axis_ratio": np.ones_like(x)}
        tensors = {name: torch.from_numpy(values)[:, None] for name, values in columns.items()}
        images = render(Components(**tensors, present=tensors["x"] > 0), psf.double(), pixel_scale=1.0, size=len(psf))
        return cls(images.reshape(1 + len(NODES), len(NODES) ** 2, -1).numpy().astype(np.float32), len(psf), radius)

    @cached_property
    def core(self) -> NDArray[np.float64]:
        """Of galaxies of each radius, ln of the flux that one of unit flux in the core has; the core is the PSF."""
        star, *galaxies = (_weights(0.0, 0.0) @ image for image in self.images)
        return np.log([star @ star / (star @ galaxy) for galaxy in galaxies])

    @cached_property
    def star(self) -> NDArray[np.float32]:
        """Image ``(y, x)`` of a star in the middle of a pixel."""
        return (_weights(0.0, 0.0) @ self.images[0]).reshape(self.side, self.side)

    def ln_scale(self, radius: float) -> float:
        """Return ln of the flux that a source of unit flux in the core has."""
        return float(self._sizes(radius) @ self.core) if radius else 0.0

    def add(self, frame: NDArray[np.float64], source: Source, sign: float = 1.0) -> None:
        """Add a source to an image with margins of half a template."""
        x, y, flux, radius = source
        left, top = round(x), round(y)
        weights, images = _weights(x - left, y - top), self.images[0]
        if radius:
            weights = np.outer(self._sizes(radius), weights).ravel()
            images = self.images[1:].reshape(len(weights), -1)
        light = weights.astype(np.float32) @ images
        frame[top : top + self.side, left : left + self.side] += sign * flux * light.reshape(self.side, self.side)

    def image(self, sources: Sequence[Source], side: int, *, without: Sequence[Source] = ()) -> NDArray[np.float64]:
        """Return the light ``(y, x)`` of sources, minus that of others."""
        half = self.side // 2
        frame = np.zeros((side + 2 * half, side + 2 * half))
        for source in sources:
            self.add(frame, source)
        for source in without:
            self.add(frame, source, -1.0)
        return frame[half:-half, half:-half]

    def _sizes(self, radius: float) -> NDArray[np.float64]:
        low, high = self.radius
        return _lagrange(2 * math.log(radius / low) / math.log(high / low) - 1)


def _lagrange(place: float) -> NDArray[np.float64]:
    return POLYNOMIALS @ (place ** np.arange(len(NODES)))


def _weights(dx: float, dy: float) -> NDArray[np.float64]:
    return np.outer(_lagrange(2 * dy), _lagrange(2 * dx)).ravel()
