"""What the network answers for the sources of images, as a posterior with its columns, flags and cutouts."""

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
    looked = [_look(*each, brightest) for each in zip(seen, readings, levels, strict=True)]
    cuts = [cut for reading in readings for cut in reading.cuts]
    pixels = {name: [getattr(cut, name) for cut in cuts] for name in ("mask", "mask_std")}
    pixels["image"] = [light for _, own in looked for light in own]
    read_rms = np.concatenate([own * image.noise_ratio for own, image in zip(levels, seen, strict=True)])
    with np.errstate(over="ignore"):
        auto, total = (np.exp(answers.log_flux[..., kind].astype(np.float64)) * read_rms for kind in (0, 1))
    columns = _shapes(answers, first.pixel_scale)
    columns |= {
        "existence": answers.existence,
        "kind_probability": answers.kind,
        "star": answers.kind[:, SOURCE_TYPES.index("star")],
        "contested": np.concatenate([reading.contested for reading in readings]),
        "sky_rms": np.concatenate(levels),
        "anomaly": anomaly,
    }
    flags = np.concatenate([own for own, _ in looked])
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
        cutouts=Cutouts(np.array([cut.corner for cut in cuts], dtype=np.int64), first.shape, **pixels),
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


def _defects(image: Observation, cut: Cut, x: float, y: float, lit: cKDTree) -> tuple[NDArray, tuple[bool, ...]]:
    """Return the pixels of a source over the noise, and what is wrong with them.

    That is whether a border cuts the source, its pixels are bad, its noise is uneven, it is saturated or too large, and
    the sky around has a level that matters, or none that is known. Lit pixels are those of all masks.
    """
    rows, columns = (slice(first, first + size) for first, size in zip(cut.corner, cut.mask.shape, strict=True))
    middle, reach = np.add(cut.corner, np.array(cut.mask.shape) // 2), max(cut.mask.shape) // 2 + AROUND
    start = np.maximum(middle - reach - MARGINS[0], -COVERAGE)
    stop = np.minimum(middle + reach + MARGINS[0] + 1, np.add(image.shape, COVERAGE))
    ratio, good = (values.cpu().numpy() for values in image.window(*map(slice, start.tolist(), stop.tolist())))
    dark = np.ones(ratio.shape[1:], dtype=bool)
    near = lit.data[lit.query_ball_point(middle, reach + MARGINS[0], p=np.inf)].astype(int)
    dark[tuple(np.vstack([near, middle]).T - start[:, None])] = False
    around = (..., *map(slice, np.maximum(middle - reach - start, 0), middle + reach + 1 - start))
    distance = ndimage.distance_transform_edt(dark)[around]
    level = any(map(_level_left, ratio[around], good[around] > 0, [distance] * len(ratio), image.noise_kernel))
    corner = np.subtract(cut.corner, start)
    wide = (..., *map(slice, corner - COVERAGE, corner + cut.mask.shape + COVERAGE))
    ratio, good = ratio[wide], good[wide]
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
    return ratio, (edge, poor, uneven, flat, large, level)


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


def _level_left(sky: NDArray, known: NDArray, distance: NDArray, kernel: Tensor) -> bool:
    """Whether the sky of a band has a level that matters, or none that is known, at some distance from all sources."""
    skies = (sky[known & (distance > margin)] for margin in MARGINS)
    blank = next((values for values in skies if len(values) >= LEAST_SKY), sky[known & (distance > MARGINS[-1])])
    if not len(blank):
        return True
    error = mad_std(blank) * math.sqrt(math.pi / 2 * float(correlation_sum(kernel)) / len(blank))
    return not abs(np.median(blank)) <= max(SKY_ERRORS * error, LARGEST_SKY)


def _look(
    seen: Observation, reading: Reading, rms: NDArray[np.float64], brightest: float
) -> tuple[NDArray[np.int64], list[NDArray]]:
    """Return the flags of sources, and their deblended images: the share of each times the pixels."""
    x, y = reading.x, reading.y
    lit = cKDTree(np.concatenate([np.zeros((0, 2)), *(np.argwhere(c.mask > FAINT) + c.corner for c in reading.cuts)]))
    kind = np.float64 if (np.abs(np.log10(rms)) > LARGEST_POWER).any() else np.float32
    found, light = np.zeros((len(reading), 6), dtype=bool), [np.zeros(0)] * len(reading)
    for i in np.lexsort((x // BLOCK, y // BLOCK)):  # block by block, as few blocks of pixels are kept
        ratio, found[i] = _defects(seen, reading.cuts[i], x[i], y[i], lit)
        light[i] = (reading.cuts[i].share * ratio * rms[i][:, None, None]).astype(kind)
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
    return sum(int(flag) * where.astype(np.int64) for flag, where in raised.items()), light


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
