"""The pixels of one band of an image of any size: read, and their sky measured, block by block as they are needed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..photometry.detection import HOT, detect
from ..photometry.images import uncovered
from ..photometry.sky import sky_scatter, subtract_sky

__all__ = ["BandPixels"]

BLOCK = 2048  # pixels on a side with one sky
BLOCK_MARGIN = 128  # pixels around a block that its sky is measured in as well


@dataclass(eq=False)
class BandPixels:
    """The pixels of one band, whose sky is measured block by block."""

    pixels: NDArray | fits.Section
    mask: NDArray[np.bool_] | None
    rms: float | NDArray | None
    background: bool

    def __post_init__(self) -> None:
        self.shape = tuple(self.pixels.shape)
        self.block = lru_cache(maxsize=4)(self._block)

    def raw(self, rows: slice, columns: slice) -> NDArray[np.float64]:
        """Pixels of a part of the image, NaN where bad."""
        values = np.ma.filled(np.ma.asarray(self.pixels[rows, columns]).astype(np.float64), np.nan)
        bad = uncovered(values) | ~np.isfinite(values)
        if self.mask is not None:
            bad |= np.asarray(self.mask[rows, columns], dtype=bool)
        return np.where(bad, np.nan, values)

    def _block(self, i: int, j: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pixels over sky noise, and the noise, of a block."""
        inner, outer = [], []
        for number, size in ((i, self.shape[0]), (j, self.shape[1])):
            start, stop = number * BLOCK, min((number + 1) * BLOCK, size)
            low, high = max(start - BLOCK_MARGIN, 0), min(stop + BLOCK_MARGIN, size)
            outer.append(slice(low, high))
            inner.append(slice(start - low, stop - low))
        pixels = self.raw(*outer)
        noise = self._given_noise(outer)
        if not np.isfinite(pixels).any():
            blank = np.full_like(pixels, np.nan)[tuple(inner)].astype(np.float32)
            return blank, np.ones_like(blank)
        if self.background or noise is None:
            subtracted, scatter = _sky(pixels)
            pixels = subtracted if self.background else pixels
            noise = _measured_noise(pixels, scatter) if noise is None else noise
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = pixels / noise
        inner = tuple(inner)
        return ratio[inner].astype(np.float32), np.broadcast_to(noise, pixels.shape)[inner].astype(np.float64)

    def _given_noise(self, part: list[slice]) -> NDArray | None:
        if self.rms is None:
            return None
        if np.ndim(self.rms) == 0:
            return np.asarray(self.rms, dtype=np.float64)
        noise = np.asarray(self.rms[part[0], part[1]], dtype=np.float64)
        return np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)

    def window(self, rows: slice, columns: slice) -> tuple[NDArray[np.float32], NDArray]:
        """Pixels over sky noise and the noise of a part of the image, NaN beyond its edge."""
        ratio = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, dtype=np.float32)
        noise = np.full(ratio.shape, np.nan)
        for i in range(rows.start // BLOCK, (min(rows.stop, self.shape[0]) - 1) // BLOCK + 1):
            for j in range(columns.start // BLOCK, (min(columns.stop, self.shape[1]) - 1) // BLOCK + 1):
                block = self.block(i, j)
                here, there = [], []
                for number, side, size in ((i, rows, block[0].shape[0]), (j, columns, block[0].shape[1])):
                    start = number * BLOCK
                    low, high = max(side.start, start), min(side.stop, start + size)
                    here.append(slice(low - side.start, high - side.start))
                    there.append(slice(low - start, high - start))
                ratio[tuple(here)], noise[tuple(here)] = block[0][tuple(there)], block[1][tuple(there)]
        return ratio, noise

    def middle(self) -> NDArray[np.float64]:
        """Pixels over sky noise of the middle of the image, at most one block."""
        starts = [max((size - BLOCK) // 2, 0) for size in self.shape]
        sides = (slice(low, min(low + BLOCK, size)) for low, size in zip(starts, self.shape, strict=True))
        return self.window(*sides)[0].astype(np.float64)

    def noise_at(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Sky noise at positions; where it is not known, that of the nearest good pixels' median."""
        if self.rms is not None and np.ndim(self.rms) == 0:
            return np.full(len(x), float(self.rms))
        column = np.clip(np.floor(x + 0.5).astype(int), 0, self.shape[1] - 1)
        row = np.clip(np.floor(y + 0.5).astype(int), 0, self.shape[0] - 1)
        values = np.empty(len(x))
        blocks = np.stack([row // BLOCK, column // BLOCK], -1)
        for i, j in np.unique(blocks, axis=0) if len(x) else []:
            here = (blocks == (i, j)).all(1)
            noise = self.block(int(i), int(j))[1]
            found = noise[row[here] - i * BLOCK, column[here] - j * BLOCK]
            values[here] = np.where(np.isfinite(found), found, np.nanmedian(noise))
        return values


def _sky(pixels: NDArray) -> tuple[NDArray, NDArray]:
    try:
        return subtract_sky(pixels)
    except ValueError as error:
        raise ValueError(f"sky_rms must be given where the sky cannot be measured: {error}") from None


def _measured_noise(pixels: NDArray, scatter: NDArray) -> NDArray:
    """Scale the local scatter of the sky to that of blank pixels, once the sources are known."""
    if not (scatter > 0).all():
        raise ValueError("sky_rms must be given where the sky has no scatter, got None")
    found = detect(pixels, scatter, **HOT).segmentation
    with contextlib.suppress(ValueError):
        factor = sky_scatter(pixels / scatter, found)
        return scatter * factor if factor > 0 else scatter
    return scatter
