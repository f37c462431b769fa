"""The pixels of one band of an image of any size: read, and their sky measured, block by block as they are needed."""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate, product

import numpy as np
from astropy.io import fits
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..photometry.detection import HOT, detect
from ..photometry.images import uncovered
from ..photometry.sky import blank_sky, dilate, middle_of, smooth_noise, subtract_sky

__all__ = ["BLOCK", "CHECKED", "LARGEST_MISFIT", "NARROW", "SMALLEST_SKY", "BandPixels", "bridged", "numbers"]

BLOCK = 2048  # pixels on a side with one sky
BLOCK_MARGIN = 128  # pixels around a block that its sky is measured in as well
SMALLEST_SKY = 192  # pixels on a side of a square of as many good pixels as are needed to subtract the sky
AT_ONCE = 2**20  # pixels
LARGEST = 1e15  # over the median size of the pixels; beyond it a pixel is bad, and would drown a block
CELL, LEAST_CELLS = 16, 12  # pixels on a side of cells whose medians tell the error of the sky's level, and how many
LEAST_IN_CELL = 64  # blank pixels
SIGNIFICANT, LEAST_LEVEL = 5.0, 0.2  # standard errors, and sky noise of a pixel, of a level that is subtracted
NOTED_MISFIT, LARGEST_MISFIT = 1.15, 2.0  # of the noise that is given, over or below the scatter of blank sky
CHECKED, LEAST_BLANK = 512, 1000  # pixels on a side that it is checked in, and of blank sky
# Width in pixels of defects that are interpolated, and the Gaussian for that: standard deviation in pixels, and passes.
BRIDGES = (3, 1.5, 7), (6, 2.0, 5)
NARROW = BRIDGES[-1][0]
LEAST_WEIGHT = 1e-3  # of good pixels around a pixel that is interpolated
SAMPLE = 100_000  # pixels
QUANTUM = 0.05  # over the noise; larger steps between the pixels' values distort medians


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
        pixels, unit = _scaled(self.raw(outer))
        noise = self.given_noise(outer)
        noise = (smooth_noise(noise) if np.ndim(self.rms) else noise) / unit
        if np.isfinite(pixels).any():
            pixels, noise = self._subtracted(pixels, noise, unit)
        ratio, noise = pixels / noise, np.broadcast_to(noise * unit, pixels.shape)
        with np.errstate(over="ignore"):
            return ratio[inner].astype(np.float32), noise[inner].astype(np.float64)

    def given_noise(self, part: tuple[slice, slice]) -> NDArray[np.float64]:
        """Noise that is given: a number, or a part of a map; NaN where it is not known."""
        noise = np.asarray(self.rms[part] if np.ndim(self.rms) else self.rms, dtype=np.float64)
        return np.where(np.isfinite(noise) & (noise > 0), noise, np.nan)

    def scatter(self) -> tuple[float, float]:
        """Scatter of blank sky over the noise, robust and plain; NaN where there is too little of it."""
        blank = blank_sky(self.middle(CHECKED))
        blank = blank[np.isfinite(blank)]
        return (mad_std(blank), blank.std()) if len(blank) >= LEAST_BLANK else (np.nan, np.nan)

    def check_noise(self, notes: list[str]) -> None:
        """Refuse noise that is not the scatter of blank sky, as a variance is not, and note where it is off."""
        if self.rms is None:
            return
        low, high = sorted(self.scatter())  # the robust one is coarse where pixels are integers
        scatter = f"{low if low > 1 else high:.2g} times as much"
        if low > LARGEST_MISFIT or high < 1 / LARGEST_MISFIT:
            wanted = "sky_rms must be the standard deviation of pixels of blank sky, not a variance or weight"
            raise ValueError(f"{wanted}: they scatter {scatter}; leave it out to have the noise measured")
        if low > NOTED_MISFIT or high < 1 / NOTED_MISFIT:
            notes.append(f"pixels of blank sky scatter {scatter} as the given noise says")

    @property
    def covered(self) -> bool:
        """Whether sources cover more than half of the middle of the image."""
        return bool((np.nan_to_num(self.middle(CHECKED), nan=-np.inf) > 1).mean() > 0.5)

    @cached_property
    def level(self) -> float:
        """Level of the sky of a small image, to be subtracted; 0 if it is not significant, NaN if it is not known."""
        pixels, unit = _scaled(self.raw(middle_of(self.shape, BLOCK)))
        blank = blank_sky(pixels)
        corners = product(*(range(0, size, CELL) for size in blank.shape))
        cells = [cell[np.isfinite(cell)] for i, j in corners for cell in [blank[i : i + CELL, j : j + CELL]]]
        medians = [np.median(cell) for cell in cells if len(cell) >= LEAST_IN_CELL]
        if len(medians) < LEAST_CELLS:
            return np.nan
        level, error = np.nanmedian(blank), np.std(medians) / np.sqrt(len(medians))
        least = max(SIGNIFICANT * error, LEAST_LEVEL * mad_std(blank, ignore_nan=True))
        return float(level) * unit if abs(level) > least else 0.0

    def _subtracted(self, pixels: NDArray, noise: NDArray | float, unit: float) -> tuple[NDArray, NDArray | float]:
        """Subtract the sky, and measure the noise, where that is to be done."""
        if self.rms is None:
            pixels = _dithered(pixels)
        if not self.background:
            pixels = pixels - np.nan_to_num(self.level) / unit
            if self.rms is not None:
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
        """Pixels over sky noise of a part of the image, NaN beyond its edges."""
        start, stop = np.transpose([[side.start, side.stop] for side in (rows, columns)])
        ratio = np.full(stop - start, np.nan, dtype=np.float32)
        inside = zip(np.maximum(start, 0), np.minimum(stop, self.shape), strict=True)
        for corner in product(*(range(low // BLOCK * BLOCK, high, BLOCK) for low, high in inside)):
            block = self.block(*(n // BLOCK for n in corner))[0]
            low, high = np.maximum(start, corner), np.minimum(stop, np.add(corner, block.shape))
            ratio[tuple(map(slice, low - start, high - start))] = block[tuple(map(slice, low - corner, high - corner))]
        return ratio

    def middle(self, size: int = BLOCK) -> NDArray[np.float64]:
        """Pixels over sky noise of the middle of the image, at most one block."""
        return self.window(*middle_of(self.shape, size)).astype(np.float64)

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


def numbers(name: str, values: ArrayLike, kinds: str = "iuf") -> np.ma.MaskedArray:
    """Return an argument as an array, and refuse what are no numbers of some kinds."""
    try:
        array = np.ma.asarray(values)
    except (AttributeError, ValueError):  # an NDData, or lists of several lengths
        array = np.ma.array(None, dtype=object)
    if array.dtype.kind not in kinds:
        form = type(values).__name__ if array.dtype == object else array.dtype
        raise TypeError(f"{name} must be an array of numbers, got {form}")
    return array


def _scaled(pixels: NDArray) -> tuple[NDArray, float]:
    """Return pixels in numbers of order one, as SEP is in single precision, and the unit; NaN where they are absurd."""
    size = np.abs(pixels)
    if not np.isfinite(size).any():
        return pixels, 1.0
    unit = float(np.nanmedian(size) or np.nanmax(size) or 1.0)
    return np.where(size < LARGEST * unit, pixels / unit, np.nan), unit


def bridged(pixels: NDArray[np.float32], good: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Interpolate pixels ``(band, y, x)`` across defects that are narrow in one direction, and count them as good.

    What lies beyond the edges counts as wide.
    """
    for width, sigma, passes in BRIDGES:
        if good.all():
            break
        bad = np.pad(~good, [(0, 0), (width, width), (width, width)], mode="edge")
        lines = (np.ones((1, *np.roll([1, width + 1], axis))) for axis in (0, 1))
        wide = np.all([ndimage.binary_opening(bad, line) for line in lines], axis=0)
        smooth = partial(ndimage.gaussian_filter, sigma=(0, sigma, sigma))
        weight, light = smooth(good.astype(np.float32)), np.zeros_like(pixels)
        for _ in range(passes):  # each adds what the last missed, so that peaks are not cut
            light += smooth(good * (pixels - light)) / np.maximum(weight, LEAST_WEIGHT)
        filled = (bad & ~wide)[:, width:-width, width:-width] & (weight > LEAST_WEIGHT)
        pixels, good = np.where(filled, light, pixels), good | filled
    return pixels, good


def _dithered(pixels: NDArray) -> NDArray:
    """Spread values that are whole multiples of a quantum evenly, if it is not small beside the noise."""
    values = pixels[np.isfinite(pixels)]
    values = values[:: max(len(values) // SAMPLE, 1)]
    steps = np.diff(np.unique(values))
    if not len(steps) or steps.min() < QUANTUM * np.subtract(*np.percentile(values, [84, 16])) / 2:
        return pixels
    return pixels + steps.min() * np.random.default_rng(0).uniform(-0.5, 0.5, pixels.shape)


def _measured_noise(pixels: NDArray, scatter: NDArray) -> NDArray:
    """Scale the local scatter of the sky to that of blank pixels, once the sources are known."""
    if not (scatter > 0).all():
        raise ValueError("sky_rms must be given where the sky has no scatter, got None")
    sources = dilate(detect(pixels, scatter, **HOT).segmentation) > 0
    blank = (pixels / scatter)[~sources & np.isfinite(pixels)]
    return scatter * (mad_std(blank) or 1.0) if blank.size else scatter
