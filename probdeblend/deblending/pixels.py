"""The pixels of one band of an image of any size: read, and their sky measured, block by block as they are needed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, product

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from ..photometry.detection import HOT, detect
from ..photometry.images import uncovered
from ..photometry.sky import sky_scatter, subtract_sky

__all__ = ["SMALLEST_SKY", "BandPixels", "numbers"]

BLOCK = 2048  # pixels on a side with one sky
BLOCK_MARGIN = 128  # pixels around a block that its sky is measured in as well
SMALLEST_SKY = 192  # pixels on a side of a square of as many good pixels as are needed to subtract the sky
AT_ONCE = 2**20  # pixels


@dataclass(eq=False)
class BandPixels:
    """The pixels of one band, whose sky is measured block by block."""

    pixels: NDArray | fits.Section
    mask: NDArray[np.bool_] | None
    rms: float | NDArray | None

    def __post_init__(self) -> None:
        self.shape = tuple(self.pixels.shape)
        self.block = lru_cache(maxsize=4)(self._block)

    @cached_property
    def background(self) -> bool:
        """Whether the sky is subtracted: where few pixels are good, the light of sources would be taken for sky."""
        step = max(AT_ONCE // self.shape[1], 1)
        strips = ((slice(start, start + step), slice(None)) for start in range(0, self.shape[0], step))
        good = accumulate(int(np.isfinite(self.raw(strip)).sum()) for strip in strips)
        return any(number >= SMALLEST_SKY**2 for number in good)

    def raw(self, part: tuple[slice, slice]) -> NDArray[np.float64]:
        """Pixels of a part of the image, NaN where bad."""
        values = np.ma.filled(np.ma.asarray(self.pixels[part]).astype(np.float64), np.nan)
        bad = uncovered(values) | ~np.isfinite(values)
        if self.mask is not None:
            bad |= np.asarray(self.mask[part], dtype=bool)
        return np.where(bad, np.nan, values)

    def _block(self, i: int, j: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Pixels over sky noise, and the noise, of a block; NaN where they are not known."""
        lows = (i * BLOCK, j * BLOCK)
        outer = tuple(slice(max(low - BLOCK_MARGIN, 0), low + BLOCK + BLOCK_MARGIN) for low in lows)
        inner = tuple(slice(low - o.start, low - o.start + BLOCK) for low, o in zip(lows, outer, strict=True))
        pixels = self.raw(outer)
        noise = np.nan if self.rms is None else self._given_noise(outer)
        if np.isfinite(pixels).any():
            # Whatever the unit, the sky is measured in numbers of order one, since SEP computes in single precision.
            unit = np.nanmedian(np.abs(pixels)) or np.nanmax(np.abs(pixels)) or 1.0
            pixels, noise = self._subtracted(pixels / unit, noise / unit)
            pixels, noise = pixels * unit, noise * unit
        ratio, noise = pixels / noise, np.broadcast_to(noise, pixels.shape)
        with np.errstate(over="ignore"):
            return ratio[inner].astype(np.float32), noise[inner].astype(np.float64)

    def _given_noise(self, part: tuple[slice, slice]) -> NDArray[np.float64]:
        noise = np.asarray(self.rms if np.ndim(self.rms) == 0 else self.rms[part], dtype=np.float64)
        return np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)

    def _subtracted(self, pixels: NDArray, noise: NDArray | float) -> tuple[NDArray, NDArray | float]:
        """Subtract the sky, and measure the noise, where that is to be done."""
        if not self.background and self.rms is not None:
            return pixels, noise
        try:
            subtracted, scatter = subtract_sky(pixels)
        except ValueError as error:
            if self.rms is not None:
                return pixels - np.nanmedian(pixels), noise
            raise ValueError(f"sky_rms must be given where the sky cannot be measured: {error}") from None
        pixels = subtracted if self.background else pixels
        return pixels, _measured_noise(pixels, scatter) if self.rms is None else noise

    def window(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Pixels over sky noise of a part of the image, NaN beyond its edge."""
        start, stop = np.transpose([[side.start, side.stop] for side in (rows, columns)])
        ratio = np.full(stop - start, np.nan, dtype=np.float32)
        last = np.minimum(stop, self.shape) - 1
        for corner in product(
            *(range(low // BLOCK * BLOCK, high + 1, BLOCK) for low, high in zip(start, last, strict=True))
        ):
            block = self.block(*(n // BLOCK for n in corner))[0]
            low, high = np.maximum(start, corner), np.minimum(stop, np.add(corner, block.shape))
            ratio[tuple(map(slice, low - start, high - start))] = block[tuple(map(slice, low - corner, high - corner))]
        return ratio

    def middle(self) -> NDArray[np.float64]:
        """Pixels over sky noise of the middle of the image, at most one block."""
        starts = [max((size - BLOCK) // 2, 0) for size in self.shape]
        sides = (slice(low, min(low + BLOCK, size)) for low, size in zip(starts, self.shape, strict=True))
        return self.window(*sides).astype(np.float64)

    def noise_at(self, x: NDArray, y: NDArray) -> NDArray[np.float64]:
        """Sky noise at positions; where it is not known, the median of the block, or NaN."""
        if self.rms is not None and np.ndim(self.rms) == 0:
            return np.full(len(x), float(self.rms))
        place = np.floor(np.stack([y, x]) + 0.5).astype(int)
        blocks, within = np.divmod(np.clip(place, 0, np.reshape(self.shape, (2, 1)) - 1), BLOCK)
        values = np.empty(len(x))
        for i, j in sorted(set(zip(*blocks.tolist(), strict=True))):
            here = (blocks[0] == i) & (blocks[1] == j)
            noise = self.block(i, j)[1]
            found = noise[tuple(within[:, here])]
            if np.isnan(found).any() and np.isfinite(noise).any():
                found = np.where(np.isnan(found), np.nanmedian(noise), found)
            values[here] = found
        return values


def numbers(name: str, values: ArrayLike) -> np.ma.MaskedArray:
    """Return an argument as an array, and refuse what are no numbers."""
    try:
        array = np.ma.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.ma.asarray(values, dtype=object)
    if array.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    return array


def _measured_noise(pixels: NDArray, scatter: NDArray) -> NDArray:
    """Scale the local scatter of the sky to that of blank pixels, once the sources are known."""
    if not (scatter > 0).all():
        raise ValueError("sky_rms must be given where the sky has no scatter, got None")
    found = detect(pixels, scatter, **HOT).segmentation
    with contextlib.suppress(ValueError):
        factor = sky_scatter(pixels / scatter, found)
        return scatter * factor if factor > 0 else scatter
    return scatter
