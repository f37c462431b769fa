"""What the network answers for the sources of images, as a posterior with its columns, flags and cutouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from ..networks.dropout import GroupDraws
from ..networks.scenes import SHAPES
from ..posterior.cutouts import Cutouts
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import SOURCE_TYPES, correlation_sum
from .inputs import Observation
from .pixels import BLOCK, NARROW
from .tiles import FAINT, Cut, Reading

__all__ = ["distances", "familiar", "posterior_of"]

STUDENT_T = math.sqrt(5 / 3)  # standard deviation of the shapes' Student-t over its scale
LARGEST_GROUP = 16
EDGE = 3.0  # pixels from the edge of the image within which a center is flagged
BAD_RADIUS = 4.0  # pixels around a center where a bad pixel raises a flag
BAD_FRACTION = 0.1  # of a mask
COVERAGE = NARROW + 1  # pixels on a side of the smallest area that is not interpolated: it cuts the sources beside it
LARGEST_POWER = 30  # of ten in the noise, up to which deblended images are in single precision
UNEVEN = 1.5  # ratio of the noise within a mask
HIGH, FLAT, STEPS = 30.0, 1e-4, 100  # a plateau's least height over the noise, roughness, and height in steps of pixels
LARGEST_RADIUS = 13.5  # pixels that hold half of the light within a mask; the training has up to 12
AROUND = 48  # pixels around a source whose sky is measured
MARGINS, LEAST_SKY = (32, 24, 16, 8), 300  # pixels from all masks, the first beyond which as many pixels are left
SKY_ERRORS, LARGEST_SKY = 4.0, 0.2  # standard errors, and sky noise of a pixel, of a level that matters


def posterior_of(
    seen: Sequence[Observation],
    readings: Sequence[Reading],
    answers: GroupDraws,
    *,
    anomaly: NDArray[np.float64],
    brightest: float,
    label: NDArray[np.int64] | None = None,
) -> Posterior:
    """Put the answers for several images of one kind together.

    Answers are arrays with one row per source of all images; `brightest` is the largest usual ln flux over noise.
    """
    first, sources = seen[0], [len(reading) for reading in readings]
    start = np.cumsum([0, *(len(reading.groups) for reading in readings)])
    levels = [image.sky_rms(reading.x, reading.y) for image, reading in zip(seen, readings, strict=True)]
    rms = np.concatenate(levels)
    read_rms = np.concatenate([own * image.noise_ratio for own, image in zip(levels, seen, strict=True)])
    with np.errstate(over="ignore"):
        auto, total = (np.exp(answers.log_flux[..., kind].astype(np.float64)) * read_rms for kind in (0, 1))
    columns = _shapes(answers, first.pixel_scale)
    columns |= {
        "existence": answers.existence,
        "kind_probability": answers.kind,
        "star": answers.kind[:, SOURCE_TYPES.index("star")],
        "contested": np.concatenate([reading.contested for reading in readings]),
        "sky_rms": rms,
        "anomaly": anomaly,
    }
    flags = np.concatenate([_flags(*each, brightest) for each in zip(seen, readings, strict=True)])
    columns["flags"] = flags | (anomaly > 1) * int(Flag.ANOMALY) | (answers.existence < 0.5) * int(Flag.DOUBTFUL)
    return Posterior.from_draws(
        total,
        auto,
        scene=np.repeat(np.arange(len(readings)), sources),
        group=np.concatenate([reading.group + n for reading, n in zip(readings, start, strict=False)]),
        x=np.concatenate([reading.x for reading in readings]) + columns.pop("dx"),
        y=np.concatenate([reading.y for reading in readings]) + columns.pop("dy"),
        label=label,
        bands=first.bands,
        unit=first.unit,
        zero_point=first.zero_point,
        pixel_scale=first.pixel_scale,
        columns=columns,
        cutouts=_cutouts(seen, readings, rms),
        wcs=first.wcs,
        scenes=len(readings),
    )


def _shapes(answers: GroupDraws, pixel_scale: float) -> dict[str, NDArray[np.float64]]:
    """Offsets from the positions, sizes and shapes, with their errors."""
    shape, width = (dict(zip(SHAPES, v.T, strict=True)) for v in (answers.shape, STUDENT_T * answers.shape_width))
    radius, index = (np.exp(shape[name]) for name in ("ln_radius", "ln_index"))
    ellipticity = np.hypot(shape["e1"], shape["e2"]).clip(1e-3, 0.95)
    spread = np.hypot(width["e1"], width["e2"]) / math.sqrt(2)
    return {
        "dx": shape["dx"],
        "dy": shape["dy"],
        "x_err": width["dx"],
        "y_err": width["dy"],
        "half_light_radius": radius * pixel_scale,
        "half_light_radius_err": radius * width["ln_radius"] * pixel_scale,
        "axis_ratio": (1 - ellipticity) / (1 + ellipticity),
        "axis_ratio_err": 2 * spread / (1 + ellipticity) ** 2,
        "angle": 0.5 * np.arctan2(shape["e2"], shape["e1"]) % math.pi,
        "angle_err": np.minimum(0.5 * spread / ellipticity, math.pi / math.sqrt(12)),
        "sersic_index": index,
        "sersic_index_err": index * width["ln_index"],
    }


def _sides(cut: Cut) -> tuple[slice, slice]:
    return tuple(slice(first, first + size) for first, size in zip(cut.corner, cut.mask.shape, strict=True))


def _walk(reading: Reading) -> NDArray[np.int64]:
    """Order in which to look at sources: block by block, as few blocks of pixels are kept."""
    return np.lexsort((reading.x // BLOCK, reading.y // BLOCK))


def _cutouts(seen: Sequence[Observation], readings: Sequence[Reading], rms: NDArray) -> Cutouts:
    """Masks and deblended images: the share of each source times the pixels."""
    places = [(image, cut) for image, reading in zip(seen, readings, strict=True) for cut in reading.cuts]
    kind = np.float64 if (np.abs(np.log10(rms)) > LARGEST_POWER).any() else np.float32
    light: list[NDArray] = [np.zeros(0)] * len(places)
    first = np.cumsum([0, *map(len, readings)])
    for number in np.concatenate([_walk(reading) + n for reading, n in zip(readings, first, strict=False)]):
        image, cut = places[number]
        pixels = image.window(*_sides(cut))[0].cpu().numpy()
        light[number] = (cut.share * pixels * rms[number][:, None, None]).astype(kind)
    corner = np.array([cut.corner for _, cut in places], dtype=np.int64)
    masks, spread = ([getattr(cut, name) for _, cut in places] for name in ("mask", "mask_std"))
    return Cutouts(corner, seen[0].shape, mask=masks, mask_std=spread, image=light)


def _defects(image: Observation, cut: Cut, x: float, y: float) -> tuple[bool, ...]:
    """Whether a border cuts a source, its pixels are bad or saturated, its noise is uneven, and it is too large."""
    rows, columns = _sides(cut)
    wide = (slice(side.start - COVERAGE, side.stop + COVERAGE) for side in (rows, columns))
    ratio, good = (values.cpu().numpy() for values in image.window(*wide))
    bad, inner, mask = ~(good > 0).all(0), (..., *[slice(COVERAGE, -COVERAGE)] * 2), cut.mask > 0.5
    uncovered = ndimage.binary_opening(bad, np.ones((COVERAGE, COVERAGE))) if bad.any() else bad
    bad, edge = bad[inner], (ndimage.binary_dilation(uncovered)[inner] & mask).any()
    distance = np.hypot(np.arange(rows.start, rows.stop)[:, None] - y, np.arange(columns.start, columns.stop) - x)
    poor = bad[distance < BAD_RADIUS].any() or cut.mask[bad].sum() > BAD_FRACTION * cut.mask.sum()
    maps = [noise[mask] for noise in image.noise_map(rows, columns) if noise.ndim and mask.any()]
    uneven = any(np.divide(*np.nanpercentile(noise, [95, 5])) > UNEVEN for noise in maps)
    ratio, near = ratio[inner], mask | (distance < BAD_RADIUS)
    high = [band for band, values in enumerate(ratio) if values[near].max(initial=0) > HIGH]
    pixels = image.raw(rows, columns) if high and image.raw else ratio
    flat = any(_plateau(pixels[band], near) for band in high)
    order, light = np.argsort(distance, axis=None), (cut.share * ratio * mask).clip(0).max(0)
    within = np.cumsum(light.ravel()[order])
    large = distance.ravel()[order][np.searchsorted(within, within[-1] / 2)] > LARGEST_RADIUS
    return edge, poor, uneven, flat, large


def _plateau(pixels: NDArray[np.float64], near: NDArray[np.bool_]) -> bool:
    """Whether the highest pixels of a source are as high as each other, as clipped and saturated ones are."""
    values, known = np.unique(pixels[np.isfinite(pixels)]), near & np.isfinite(pixels)
    top, height = pixels[known].max(), np.ptp(values)
    if height < STEPS * np.diff(values).min(initial=np.inf):
        return False
    labels, _ = ndimage.label(known & (pixels > top - FLAT * height), np.ones((3, 3)))
    for box in ndimage.find_objects(labels):
        around = pixels[*(slice(max(side.start - 1, 0), side.stop + 1) for side in box)]
        # Noise-free sources in the middle of 2 x 2 pixels have as many of one height, by symmetry.
        symmetric = labels[box].shape == (2, 2) and np.allclose(around, around[::-1, ::-1], atol=FLAT * height)
        if np.count_nonzero(labels[box]) > 2 and not symmetric:
            return True
    return False


def _sky_left(image: Observation, cut: Cut, lit: cKDTree) -> bool:
    """Whether the sky around a source has a level that matters in any band, or none that is known."""
    middle = [side.start + (side.stop - side.start) // 2 for side in _sides(cut)]
    half = max(cut.mask.shape) // 2 + AROUND + MARGINS[0]
    ratio, good = (values.cpu().numpy() for values in image.window(*(slice(n - half, n + half + 1) for n in middle)))
    dark, inner = np.ones(ratio.shape[1:], dtype=bool), (slice(MARGINS[0], -MARGINS[0]),) * 2
    places = lit.data[lit.query_ball_point(middle, half, p=np.inf)].astype(int) - middle + half
    dark[(*places.T,)] = dark[half, half] = False
    distance = ndimage.distance_transform_edt(dark)[inner]
    for values, known, kernel in zip(ratio, good > 0, image.noise_kernel, strict=True):
        skies = [values[inner][known[inner] & (distance > margin)] for margin in MARGINS]
        sky = next((sky for sky in skies if len(sky) >= LEAST_SKY), skies[-1])
        if not len(sky):
            return True
        error = mad_std(sky) * math.sqrt(math.pi / 2 * float(correlation_sum(kernel)) / len(sky))
        if not abs(np.median(sky)) <= max(SKY_ERRORS * error, LARGEST_SKY):
            return True
    return False


def _flags(seen: Observation, reading: Reading, brightest: float) -> NDArray[np.int64]:
    x, y = reading.x, reading.y
    lit = cKDTree(np.concatenate([np.zeros((0, 2)), *(np.argwhere(c.mask > FAINT) + c.corner for c in reading.cuts)]))
    found = np.zeros((len(reading), 6), dtype=bool)
    for i in _walk(reading):
        found[i] = *_defects(seen, reading.cuts[i], x[i], y[i]), _sky_left(seen, reading.cuts[i], lit)
    cut, bad, uneven, flat, large, sky = found.T
    near = np.minimum(np.minimum(x, seen.shape[1] - 1 - x), np.minimum(y, seen.shape[0] - 1 - y)) < EDGE
    raised = {
        Flag.EDGE: near | cut,
        Flag.BAD_PIXELS: bad,
        Flag.UNEVEN_NOISE: uneven,
        Flag.UNLISTED: reading.unlisted,
        Flag.BRIGHT: large | (reading.anchor.cpu().numpy().max(1, initial=-np.inf) > brightest),
        Flag.SATURATED: flat,
        Flag.SKY: sky,
        Flag.LARGE_GROUP: np.bincount(reading.group, minlength=1)[reading.group] >= LARGEST_GROUP,
    }
    return sum(int(flag) * where.astype(np.int64) for flag, where in raised.items())


def familiar(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and whitening matrix of features, and the distance that one in a thousand of them exceeds."""
    tokens = tokens.double()
    mean = tokens.mean(0)
    covariance = torch.cov(tokens.T) + (1e-3 * tokens.var(0).mean() + 1e-6) * torch.eye(tokens.shape[1])
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).float()
    usual = distances(tokens.float(), mean.float(), whitening)
    return mean.float(), whitening, torch.tensor(float(np.quantile(usual, 0.999)))


def distances(tokens: Tensor, mean: Tensor, whitening: Tensor) -> NDArray[np.float64]:
    """Return the distances of features ``(source, feature)`` from their mean, in units of their scatter."""
    return ((tokens - mean) @ whitening.T).norm(dim=-1).double().numpy()
