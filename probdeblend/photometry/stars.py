"""The effective PSF of an image, from its stars.

Stars are the smallest sources, and all of one size, whatever their brightness: they stand out as a narrow peak at the
small end of the distribution of sizes. Saturated stars and galaxies are larger, cosmic rays smaller. Galaxies almost as
small as stars are faint, so that bright sources are looked at first. The size of a source follows from its adaptive
moments (Hirata & Seljak 2003, doi:10.1046/j.1365-8711.2003.06683.x), by GalSim. Stars are moved to the middle of a
pixel in Fourier space, scaled to one another, and averaged; in the faint wings, rings are averaged too.
"""

from typing import NamedTuple, Self

import numpy as np
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage, stats

from ..scene import PSF_SIZE
from .detection import COLD, detect, native_image
from .images import cut_stamps
from .sky import dilate

__all__ = ["measure_psf"]

MOST_SOURCES = 1000  # brightest first
LEAST_SNR = (200.0, 100.0, 50.0)  # fainter, sizes scatter by more than the width of the stars' peak
CORE = 6.0  # pixels around a star that must be good and free of other sources
INNER = 15  # pixels on each side of a source within which it is measured
SMOOTHING = 1.0  # pixels, standard deviation, so that narrow stars seem as wide wherever in a pixel they are
FARTHEST = 1.5  # pixels of a center from the middle pixel
LEAST_SIZE = 0.5  # pixels; a smaller source has not passed the telescope
PEAK = 0.04  # width in ln size of the stars' peak
BESIDE, LEAST_EXPECTED = 4.0, 0.5  # range above the peak, in its widths, that tells how many sources it has by chance
CHANCE = 3e-3  # that so many sources are of one size without being stars
TAIL, LEAST_TAIL = 2.5, 0.015  # what of it counts, in robust scatters, and in ln size
LEAST_STARS, MOST_STARS = 5, 100
ROUNDS = 4  # of scaling and averaging
OUTLIER = 4.0  # scatters from the median beyond which a pixel does not count
UNEVEN = 0.03  # relative scatter of the light in a pixel among stars that is no outlier
WELL_SAMPLED = 1.4  # pixels; smaller stars change with their place in the pixel
RIDGE = 0.05  # damps that change where stars are few
VISIBLE = 3.0  # where the mean star is fainter in units of its noise, rings are averaged


class _Sources(NamedTuple):
    """Isolated sources: stamps ``(source, y, x)`` over the sky noise, NaN where bad, and numbers ``(source,)``."""

    pixels: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.float64]
    snr: NDArray[np.float64]

    def select(self, index: NDArray) -> Self:
        """Return some of the sources."""
        return self._make(values[index] for values in self)


def measure_psf(image: ArrayLike, sky_rms: ArrayLike) -> NDArray[np.float64]:
    """Measure the effective PSF of a field on its stars.

    Among galaxies, five stars may be too few to be recognized; ten hardly ever are.

    Parameters
    ----------
    image
        Sky-subtracted pixels ``(y, x)``; bad ones, among them saturated ones if these are known, are NaN.
    sky_rms
        Sky noise of a pixel in image units: a number or a map ``(y, x)``.

    Returns
    -------
    ndarray
        The PSF ``(y, x)`` of 41 pixels on a side, pixel included, centered on the middle one, with unit sum.

    Raises
    ------
    ValueError
        If fewer than 5 isolated bright stars are recognized.
    """
    pixels = native_image(image)
    found = _isolated(np.where(np.isfinite(pixels), pixels / sky_rms, np.nan), PSF_SIZE)
    for snr in LEAST_SNR:
        stars = np.flatnonzero(found.snr > snr)
        stars = stars[_smallest_of_one_size(found.size[stars])]
        if len(stars) >= LEAST_STARS:
            break
    else:
        wanted = f"{LEAST_STARS} isolated, unsaturated stars with a signal-to-noise ratio above {LEAST_SNR[-1]:.0f}"
        raise ValueError(f"image must have at least {wanted} to measure its PSF, got {len(stars)}")
    return _mean_star(found.select(stars[np.argsort(-found.snr[stars], kind="stable")[:MOST_STARS]]))


def _isolated(pixels: NDArray[np.float64], reach: int) -> _Sources:
    """Find the bright isolated sources."""
    found = detect(pixels, 1.0, **COLD)
    bright = np.argsort(-found.flux, kind="stable")[:MOST_SOURCES]
    owner = dilate(found.segmentation, margin=2.0, growth=0.25)
    corner = np.rint([found.x[bright], found.y[bright]]).T.astype(int) - reach
    stamps, owners = (cut_stamps(values, corner, 2 * reach + 1) for values in (pixels, owner))
    stamps[(owners > 0) & (owners != bright[:, None, None] + 1)] = np.nan
    sources = _measured(stamps[np.isfinite(stamps[:, _radius(reach) <= CORE]).all(1)])
    return sources.select(sources.snr > LEAST_SNR[-1])


def _radius(reach: int) -> NDArray[np.float64]:
    along = np.arange(-reach, reach + 1)
    return np.hypot(along[:, None], along)


def _measured(stamps: NDArray[np.float64]) -> _Sources:
    """Subtract the sky around sources, and measure centers (from the middle pixel), sizes and signal-to-noise."""
    import galsim

    reach = stamps.shape[-1] // 2
    ring = stamps[:, _radius(reach) > 0.75 * reach]
    ring[np.isfinite(ring).mean(1) < 0.1] = 0.0
    stamps = stamps - np.nanmedian(ring, axis=1)[:, None, None]
    light = np.nan_to_num(stamps[:, reach - INNER : reach + INNER + 1, reach - INNER : reach + INNER + 1])
    light = ndimage.gaussian_filter(light, SMOOTHING, axes=(1, 2))
    numbers = np.zeros((4, len(stamps)))
    for number, pixels in enumerate(light):
        image = galsim.Image(pixels, xmin=-INNER, ymin=-INNER)
        found = galsim.hsm.FindAdaptiveMom(image, guess_centroid=galsim.PositionD(), strict=False)
        x, y, size = found.moments_centroid.x, found.moments_centroid.y, found.moments_sigma
        if not found.error_message and max(abs(x), abs(y)) < FARTHEST and size > SMOOTHING:
            size = np.sqrt(size**2 - SMOOTHING**2)
            numbers[:, number] = x, y, size, found.moments_amp / (2 * np.sqrt(np.pi) * size)
    return _Sources(stamps, *numbers)


def _smallest_of_one_size(size: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the sources that are small and of one size: at the peak below which there are few others."""
    order = np.argsort(size)[np.sort(size) > LEAST_SIZE]
    log_size = np.log(size[order])
    below = np.arange(len(order))
    inside = np.searchsorted(log_size, log_size + PEAK, side="right") - below
    beyond = np.searchsorted(log_size, log_size + (1 + BESIDE) * PEAK, side="right") - below - inside
    chance = stats.poisson.sf(inside - 1, np.maximum(beyond / BESIDE, LEAST_EXPECTED))
    peak = (chance < CHANCE) & (inside >= LEAST_STARS) & (below <= np.maximum(2, 0.3 * inside))
    if not peak.any():
        return order[:0]
    first = int(np.argmax(np.where(peak, inside - beyond / BESIDE, -np.inf)))
    members, own = order[first : first + inside[first]], log_size[first : first + inside[first]]
    return members[np.abs(own - np.median(own)) < max(TAIL * mad_std(own), LEAST_TAIL)]


def _mean_star(stars: _Sources) -> NDArray[np.float64]:
    """Average stars, moved to the middle pixel and scaled to one another, without their outliers."""
    reach = stars.pixels.shape[-1] // 2
    middle = slice(reach - PSF_SIZE // 2, reach + PSF_SIZE // 2 + 1)
    pixels, good = (values[:, middle, middle] for values in _centered(stars))
    radius = _radius(PSF_SIZE // 2)
    near = radius <= 4 * np.median(stars.size)
    seen = np.where(good | ~good.any(0), np.where(good, pixels, 0.0), np.nan)
    star = np.nanmedian(seen / pixels[:, near].sum(1)[:, None, None], axis=0)
    for _ in range(ROUNDS):
        scale = (good * star * pixels)[:, near].sum(1) / (good * star**2)[:, near].sum(1)
        scaled, noise = seen / scale[:, None, None], 1 / scale[:, None, None]
        off = np.abs(scaled - np.nanmedian(scaled, axis=0))
        used = good & (off < OUTLIER * np.hypot(noise, UNEVEN * np.abs(star)))
        # The brightest star must not decide alone.
        weight = used * np.minimum(scale**2, 4 * np.median(scale**2))[:, None, None]
        weight = weight / np.maximum(weight.sum(0), 1e-30)
        scaled = np.where(used, scaled, 0.0)
        star = (weight * scaled).sum(0)
        if np.median(stars.size) < WELL_SAMPLED:
            star[near] = _in_the_middle(scaled[:, near], weight[:, near], stars)
    noise = np.sqrt((weight**2 * noise**2).sum(0))
    return _smooth_wings(star, noise, radius)


def _in_the_middle(light: NDArray[np.float64], weight: NDArray[np.float64], stars: _Sources) -> NDArray[np.float64]:
    """Return what the pixels ``(star, pixel)`` of moved stars would be for one in the middle of its pixel.

    Where pixels are too coarse for the PSF, frequencies beyond theirs fold back, with phases that depend on where in
    its pixel a star was. The mean loses this light, which a fit of these phases keeps.
    """
    angle = 2 * np.pi * np.stack([stars.x, stars.y], 1)
    terms = np.concatenate([np.ones((len(angle), 1)), np.cos(angle) - 1, np.sin(angle)], 1)
    matrix = np.einsum("np,ni,nj->pij", weight, terms, terms) + np.diag([1e-9, *[RIDGE] * 4])
    return np.linalg.solve(matrix, np.einsum("np,ni->pi", weight * light, terms)[..., None])[:, 0, 0]


def _centered(stars: _Sources) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Move stars to the middle of the middle pixel; bad pixels get the values opposite to them."""
    good = np.isfinite(stars.pixels)
    mirrored = np.nan_to_num(stars.pixels[:, ::-1, ::-1])
    frequency = fft.fftfreq(stars.pixels.shape[-1])
    phase_y, phase_x = (np.exp(2j * np.pi * frequency * at[:, None]) for at in (stars.y, stars.x))
    spectrum = fft.fft2(np.where(good, stars.pixels, mirrored)) * phase_y[:, :, None] * phase_x[:, None, :]
    moved = [ndimage.shift(own, (-y, -x), order=0) for own, y, x in zip(good, stars.y, stars.x, strict=True)]
    return fft.ifft2(spectrum).real, np.array(moved)


def _smooth_wings(star: NDArray, noise: NDArray, radius: NDArray) -> NDArray[np.float64]:
    """Average rings beyond the radius where the mean star gets too faint, and return it with unit sum."""
    ring = np.rint(radius).astype(int)
    mean = ndimage.mean(star, ring, np.arange(ring.max() + 1))
    faint = mean < VISIBLE * ndimage.median(noise, ring, np.arange(ring.max() + 1))
    edge = int(np.argmax(faint)) if faint.any() else len(mean)
    smooth = np.maximum(np.interp(radius, np.arange(len(mean)), mean), 0.0)
    psf = np.where(ring < edge, star, smooth)
    return psf / psf.sum()
