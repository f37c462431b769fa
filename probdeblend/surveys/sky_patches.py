"""Patches of a survey's own sky, and simulated pairs of galaxies put into them with the survey's magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from ..photometry.detection import HOT, detect
from ..photometry.images import FieldImage
from ..photometry.noise import correlated_noise, noise_rms
from ..photometry.sky import dilate, replace_with_sky, subtract_sky
from ..scene import MASK_THRESHOLD, STAMP_SIZE, Blend, Instrument
from ..simulation.galsim import render_torch
from ..simulation.prior import Prior
from .selection import covered, in_units_of

__all__ = ["Sky", "magnitude_weights", "simulated_in_sky", "sky_patches"]

BORDER = 32  # pixels around a patch from which sky may be copied
PATCHES = 200
MOST_SOURCES = 0.4  # largest fraction of a patch that sources may have covered
BATCH = 64
CHOICE = 40  # pairs of the prior from which one is drawn
BIN = 0.5  # magnitudes
ROUNDS = 50  # of iterative proportional fitting


@dataclass(frozen=True, eq=False)
class Sky:
    """Source-free, sky-subtracted patches ``(patch, y, x)`` in the instrument's units, and the scatter of each."""

    pixels: NDArray[np.float64]
    sky_rms: NDArray[np.float64]
    instrument: Instrument


def sky_patches(mosaics: Sequence[FieldImage], instrument: Instrument, *, count: int = PATCHES, seed: int = 0) -> Sky:
    """Cut `count` patches of sky out of images, fewer if these are small; sources are replaced by sky beside them."""
    rng = np.random.default_rng(seed)
    area = np.array([mosaic.shape[0] * mosaic.shape[1] for mosaic in mosaics], dtype=float)
    found = []
    for _ in tqdm(range(10 * count), desc="sky", unit="place", leave=False):
        mosaic = mosaics[rng.choice(len(mosaics), p=area / area.sum())]
        patch = _patch(mosaic, instrument, rng)
        if patch is not None:
            unit = 10 ** (0.4 * (instrument.zero_point - in_units_of(mosaic, instrument).zero_point))
            found.append((unit * patch[0], unit * patch[1]))
        if len(found) == count:
            break
    if not found:
        room = f"{STAMP_SIZE} x {STAMP_SIZE} covered pixels, {1 - MOST_SOURCES:.0%} of them without sources"
        raise ValueError(f"images must have a place of {room}, none was found")
    return Sky(np.stack([pixels for pixels, _ in found]), np.array([rms for _, rms in found]), instrument)


def _patch(mosaic: FieldImage, instrument: Instrument, rng: np.random.Generator) -> tuple[NDArray, float] | None:
    height, width = mosaic.shape
    if min(height, width) < STAMP_SIZE:
        return None
    x0, y0 = rng.integers(0, (width - STAMP_SIZE + 1, height - STAMP_SIZE + 1)) - BORDER
    window = mosaic.window(int(x0), int(y0), STAMP_SIZE + 2 * BORDER)
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
    inside = np.zeros_like(sources)
    inside[inner] = sources[inner]
    blank = ~sources & np.isfinite(pixels)
    sky = {"blank": blank, "kernel": instrument.noise_kernel, "sky_rms": mad_std(pixels[blank])}
    clean = replace_with_sky(pixels, inside, rng, **sky)[inner]
    return clean, float(mad_std(clean))


def simulated_in_sky(
    sky: Sky, count: int, *, prior: Prior, magnitudes: ArrayLike | None = None, seed: int = 0
) -> Iterator[Blend]:
    """Put `count` pairs from the prior into turned and flipped patches of sky, batch by batch.

    If the `magnitudes` of a survey's galaxies are given, those of the pairs follow their distribution. Every galaxy has
    its own identity.
    """
    kernel = sky.instrument.noise_kernel
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        rng = np.random.default_rng((seed, start))
        pair_seed, shape_seed, noise_seed = (int(value) for value in rng.integers(2**62, size=3))
        pairs = _drawn_pairs(prior, size, magnitudes, seed=pair_seed)
        components = prior.components(pairs, sky.instrument, seed=shape_seed)
        isolated = render_torch(components, sky.instrument).cpu()
        chosen = rng.integers(len(sky.pixels), size=size)
        turned = [np.rot90(sky.pixels[i][:, :: rng.choice((-1, 1))], rng.integers(4)) for i in chosen]
        light = isolated.sum(1)
        photons = noise_rms(light, torch.tensor(0.0), torch.tensor(sky.instrument.exposure), kernel=kernel)
        generator = torch.Generator().manual_seed(noise_seed)
        noise = photons * correlated_noise(tuple(light.shape), kernel, generator=generator)
        sky_rms = torch.from_numpy(sky.sky_rms[chosen]).float()
        yield Blend(
            image=(torch.from_numpy(np.stack(turned)).float() + light + noise)[:, None],
            sky_rms=sky_rms,
            flux=components.total_flux[..., None],
            mask=isolated > MASK_THRESHOLD * sky_rms[:, None, None, None],
            isolated=isolated[:, :, None],
            identity=2 * torch.arange(start, start + size)[:, None] + torch.arange(2),
            **{name: pairs[name] for name in ("x", "y", "half_light_radius", "galaxy_type")},
        )


def _drawn_pairs(prior: Prior, count: int, magnitudes: ArrayLike | None, *, seed: int) -> dict[str, torch.Tensor]:
    if magnitudes is None:
        return prior.sample(count, seed=seed)
    pairs = prior.sample(CHOICE * count, seed=seed)
    weight = magnitude_weights(pairs["magnitude"].numpy(), magnitudes)
    chosen = np.random.default_rng(seed).choice(len(weight), size=count, p=weight / weight.sum())
    return {name: values[torch.from_numpy(chosen)] for name, values in pairs.items()}


def magnitude_weights(magnitude: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Weight blends so that the magnitudes ``(blend, galaxy)`` of their galaxies are distributed like the `target`.

    The weights ``(blend,)`` have a mean of 1 and are as even as the target allows (iterative proportional fitting;
    Deming & Stephan 1940, doi:10.1214/aoms/1177731829). Targets beyond the range of `magnitude` are left out.
    """
    magnitude, target = np.asarray(magnitude, dtype=np.float64), np.asarray(target, dtype=np.float64)
    edges = np.arange(np.floor(magnitude.min() / BIN), np.ceil(magnitude.max() / BIN) + 1) * BIN
    wanted = np.histogram(target, edges)[0].astype(np.float64)
    if not wanted.sum():
        raise ValueError(
            f"the survey must have galaxies of magnitude {edges[0]:g} to {edges[-1]:g}, as the blends do, got none"
        )
    place = np.clip(np.searchsorted(edges, magnitude, side="right") - 1, 0, len(edges) - 2)
    wanted /= wanted.sum()
    weight = np.ones(len(magnitude))
    for _ in range(ROUNDS):
        there = np.bincount(place.ravel(), np.repeat(weight, magnitude.shape[1]), minlength=len(wanted))
        ratio = np.where(there > 0, wanted / np.maximum(there / there.sum(), 1e-12), 1.0)
        weight = weight * np.prod(ratio[place], axis=1) ** (1 / magnitude.shape[1])
        weight /= weight.mean()
    return weight
