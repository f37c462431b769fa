"""Patches of a survey's own sky."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..photometry.detection import HOT, detect
from ..photometry.images import FieldImage
from ..photometry.sky import dilate, replace_with_sky, subtract_sky
from ..scene import Instrument
from .library import STAMP_SIZE
from .selection import covered, in_units_of

__all__ = ["Sky", "sky_patches"]

BORDER = 32  # pixels around a patch from which sky may be copied
PATCHES = 200
MOST_SOURCES = 0.4  # largest fraction of a patch that sources may have covered


@dataclass(frozen=True, eq=False)
class Sky:
    """Source-free, sky-subtracted patches ``(patch, y, x)`` in the instrument's units, and the scatter of each."""

    pixels: NDArray[np.float64]
    sky_rms: NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
        """Draw a patch, turned by quarters and flipped, and its scatter."""
        number = int(rng.integers(len(self.pixels)))
        patch = self.pixels[number][:, :: rng.choice((-1, 1))]
        return np.rot90(patch, rng.integers(4)), float(self.sky_rms[number])


def sky_patches(
    mosaics: Sequence[FieldImage],
    instrument: Instrument,
    *,
    size: int = STAMP_SIZE,
    count: int = PATCHES,
    seed: int = 0,
) -> Sky:
    """Cut patches of sky out of images; sources are replaced by sky beside them.

    Parameters
    ----------
    mosaics
        The images.
    instrument
        Zero point of the patches, and of images whose header has none, and correlation of the noise.
    size
        Pixels on a side of a patch.
    count
        Number of patches; fewer if the images are small.
    seed
        Same seed, same patches.

    Returns
    -------
    Sky
        The patches.

    Raises
    ------
    ValueError
        If no place is covered and without sources for the most part.
    """
    rng = np.random.default_rng(seed)
    area = np.array([np.prod(mosaic.shape) for mosaic in mosaics], dtype=float)
    found = []
    for _ in tqdm(range(10 * count), desc="sky", unit="place", leave=False):
        mosaic = mosaics[rng.choice(len(mosaics), p=area / area.sum())]
        if (patch := _patch(mosaic, instrument, size, rng)) is not None:
            unit = 10 ** (0.4 * (instrument.zero_point - in_units_of(mosaic, instrument).zero_point))
            found.append((unit * patch, unit * mad_std(patch)))
        if len(found) == count:
            break
    if not found:
        room = f"{size} x {size} covered pixels, {1 - MOST_SOURCES:.0%} of them without sources"
        raise ValueError(f"images must have a place of {room}, none was found")
    return Sky(np.stack([pixels for pixels, _ in found]), np.array([rms for _, rms in found]))


def _patch(
    mosaic: FieldImage, instrument: Instrument, size: int, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """Cut one patch, without its sources; None if there are too many, or bad pixels."""
    if min(mosaic.shape) < size:
        return None
    x0, y0 = rng.integers(0, np.array(mosaic.shape[::-1]) - size + 1) - BORDER
    window = mosaic.window(int(x0), int(y0), size + 2 * BORDER)
    inner = (slice(BORDER, -BORDER),) * 2
    if not np.isfinite(window[inner]).all():
        return None
    good = covered(window)
    pixels = np.full(window.shape, np.nan)
    pixels[good], scatter = subtract_sky(window[good])
    noise = float(np.median(scatter))
    if not noise > 0:
        return None
    sources = dilate(detect(pixels, noise, **HOT).segmentation) > 0
    if sources[inner].mean() > MOST_SOURCES:
        return None
    blank = ~sources & np.isfinite(pixels)
    sky = {"blank": blank, "kernel": instrument.noise_kernel, "sky_rms": mad_std(pixels[blank])}
    return replace_with_sky(pixels, np.pad(sources[inner], BORDER), rng, **sky)[inner]
