"""Blends with truth: galaxies of a prior, drawn by GalSim or by torch, under the noise of an instrument.

A galaxy is a sum of sheared and shifted Sérsic profiles, convolved with the instrument's effective PSF, which
holds the pixel. GalSim interpolates the PSF with a wide Lanczos kernel, which keeps it band-limited as its
sampling says it is; GalSim's default kernel differs by up to 3e-3 of a galaxy's peak. Sérsic indices are
taken as they are: GalSim computes the table of a new index once, which takes most of the time of a simulation
with GalSim.

The ideas are those of GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002) and of the blends of Boucaud
et al. (2020, doi:10.1093/mnras/stz3056).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import galsim
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor

from ..photometry.detection import auto_flux
from ..photometry.noise import add_noise
from ..scene import GALAXY_TYPES, MASK_THRESHOLD, STAMP_CENTER, STAMP_SIZE, Blend, Components, Instrument
from . import profiles
from .prior import Prior
from .workers import in_order

__all__ = ["Renderer", "render_galsim", "render_torch", "simulate_blends", "simulate_mosaic"]

Renderer = Callable[[Components, Instrument], Tensor]
"""A function that turns light into noiseless images ``(blend, galaxy, y, x)`` of each galaxy alone."""

_PARAMS = galsim.GSParams(
    folding_threshold=2e-3,
    stepk_minimum_hlr=10,
    maxk_threshold=1e-3,
    kvalue_accuracy=1e-6,
    maximum_fft_size=16384,
)


def render_galsim(components: Components, instrument: Instrument) -> Tensor:
    """Draw each galaxy of each blend alone with GalSim, without noise.

    Parameters
    ----------
    components
        The light of the galaxies.
    instrument
        Pixel scale and effective PSF.

    Returns
    -------
    Tensor
        Images ``(blend, galaxy, y, x)`` in flux per pixel, of the dtype of ``components.flux``.

    Raises
    ------
    galsim.GalSimRangeError
        If a Sérsic index or an axis ratio is out of GalSim's range.
    """
    scale = instrument.pixel_scale
    kernel = galsim.Image(instrument.psf.double().cpu().numpy(), scale=scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31), gsparams=_PARAMS)
    images = np.zeros((*components.flux.shape[:2], STAMP_SIZE, STAMP_SIZE))
    for blend, galaxy in np.ndindex(*images.shape[:2]):
        light = _light(components, (blend, galaxy), scale)
        if light is not None:
            drawn = galsim.Convolve(light, psf, gsparams=_PARAMS).drawImage(
                nx=STAMP_SIZE, ny=STAMP_SIZE, scale=scale, method="no_pixel", dtype=float
            )
            images[blend, galaxy] = drawn.array
    return torch.from_numpy(images).to(components.flux)


def _light(components: Components, galaxy: tuple[int, int], scale: float) -> galsim.GSObject | None:
    """Sum of one galaxy's components relative to the stamp's center, in arcsec; None if it has none."""
    present = components.present[galaxy]
    names = ("flux", "half_light_radius", "sersic_index", "axis_ratio", "angle", "x", "y")
    values = torch.stack([getattr(components, name)[galaxy][present] for name in names], -1).double().tolist()
    parts = []
    for flux, radius, index, ratio, angle, x, y in values:
        part = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=_PARAMS)
        part = part.shear(q=ratio, beta=angle * galsim.radians)
        parts.append(part.shift(scale * (x - STAMP_CENTER), scale * (y - STAMP_CENTER)))
    return galsim.Sum(parts) if parts else None


def render_torch(components: Components, instrument: Instrument) -> Tensor:
    """Draw each galaxy of each blend alone with `~probdeblend.simulation.profiles.render`, on the device of the PSF.

    Parameters
    ----------
    components
        The light of the galaxies.
    instrument
        Pixel scale and effective PSF.

    Returns
    -------
    Tensor
        Images ``(blend, galaxy, y, x)`` in flux per pixel, of the dtype of ``components.flux``.
    """
    psf = instrument.psf
    with torch.no_grad():
        return profiles.render(components.to(psf.device), psf, pixel_scale=instrument.pixel_scale)


def simulate_blends(
    count: int,
    *,
    prior: Prior,
    instrument: Instrument,
    seed: int,
    render: Renderer = render_galsim,
    batch_size: int = 64,
    first: int = 0,
    workers: int = 0,
) -> Iterator[Blend]:
    """Simulate blends with their truth, batch by batch.

    Batch i depends on the seed, the batch size and i alone, so that a longer set begins with the shorter one.
    Noise levels are those of the instrument.

    Parameters
    ----------
    count
        Number of blends.
    prior
        The population.
    instrument
        What the images are taken with.
    seed
        Same seed, same blends; not negative.
    render
        `render_galsim` or `render_torch`.
    batch_size
        Blends a batch; the last one holds what is left.
    first
        Number of the first batch to make.
    workers
        Number of processes that simulate; 0 for none but this one. The blends do not depend on it.

    Returns
    -------
    iterator of Blend
        Blends in one band with all their truth, on the CPU. AUTO fluxes are those of the isolated, noiseless
        images.

    Raises
    ------
    ValueError
        If a number is negative, or the batch size zero.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    keys = [((seed, i), min(batch_size, count - start)) for i, start in enumerate(range(0, count, batch_size))]
    draw = partial(_batch, size=batch_size, prior=prior, instrument=instrument, render=render)
    return in_order(draw, keys[first:], workers=workers)


def _batch(
    task: tuple[tuple[int, int], int],
    *,
    size: int,
    prior: Prior,
    instrument: Instrument,
    render: Renderer,
) -> Blend:
    """Draw a batch of `size` blends and keep the first `count`, which thus do not depend on `count`."""
    key, count = task
    states = np.random.SeedSequence(key).generate_state(3, np.uint64) >> np.uint64(1)
    pair_seed, shape_seed, noise_seed = (int(state) for state in states)
    pairs = prior.sample(size, seed=pair_seed)
    components = prior.components(pairs, instrument, seed=shape_seed).select(slice(count))
    absent = ~pairs["present"][:count]
    isolated = render(components, instrument).cpu()
    light = torch.zeros(size, 1, STAMP_SIZE, STAMP_SIZE)
    light[:count, 0] = isolated.sum(1)
    noise = {"sky_rms": instrument.sky_rms, "exposure": instrument.exposure}
    noise = {name: torch.full((size,), value) for name, value in noise.items()}
    generator = torch.Generator().manual_seed(noise_seed)
    image = add_noise(light, instrument.to("cpu"), **noise, generator=generator)
    measured = [[auto_flux(alone, instrument.sky_rms) for alone in blend] for blend in isolated.numpy()]
    names = ("x", "y", "half_light_radius")
    truth = {name: pairs[name][:count].masked_fill(absent, torch.nan) for name in names}
    return Blend(
        count=(~absent).sum(-1),
        image=image[:count],
        flux=components.total_flux.masked_fill(absent, torch.nan)[..., None],
        galaxy_type=pairs["galaxy_type"][:count].masked_fill(absent, -1),
        auto_flux=torch.tensor(measured)[..., None],
        mask=isolated > MASK_THRESHOLD * instrument.sky_rms,
        isolated=isolated[:, :, None],
        **{name: value[:count] for name, value in noise.items()},
        **truth,
    )


def simulate_mosaic(
    count: int,
    shape: tuple[int, int],
    *,
    prior: Prior,
    instrument: Instrument,
    seed: int,
    render: Renderer = render_torch,
) -> tuple[NDArray[np.float64], Table]:
    """Simulate an image with galaxies strewn over it, and the catalog of them.

    Parameters
    ----------
    count
        Number of galaxies.
    shape
        Number of pixels ``(y, x)``, at least a stamp a side.
    prior
        The population; the galaxies are the central ones of its blends.
    instrument
        What the image is taken with.
    seed
        Same seed, same image.
    render
        `render_torch` or `render_galsim`.

    Returns
    -------
    image, catalog
        Pixels ``(y, x)`` around a sky of zero, and a row a galaxy: ``id``, ``x``, ``y`` (from 0), ``magnitude``,
        ``half_light_radius`` (arcsec, major axis), ``type`` and total ``flux``.

    Raises
    ------
    ValueError
        If the count is negative or the image smaller than a stamp.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if min(shape) < STAMP_SIZE:
        raise ValueError(f"shape must be at least {STAMP_SIZE} pixels a side, got {shape}")
    states = np.random.SeedSequence((seed, count)).generate_state(4, np.uint64) >> np.uint64(1)
    pair_seed, shape_seed, noise_seed, place_seed = (int(state) for state in states)
    alone = replace(prior, crowding=(1.0,))
    pairs = alone.sample(count, seed=pair_seed)
    light = alone.components(pairs, instrument, seed=shape_seed)
    half = STAMP_SIZE // 2
    corner = np.random.default_rng(place_seed).integers(-half, np.array(shape)[::-1] - half, (count, 2))
    image = np.zeros((shape[0] + 2 * STAMP_SIZE, shape[1] + 2 * STAMP_SIZE))
    stamps = render(light, instrument)[:, 0].cpu().double().numpy()
    for (x0, y0), stamp in zip(corner + STAMP_SIZE, stamps, strict=True):
        image[y0 : y0 + STAMP_SIZE, x0 : x0 + STAMP_SIZE] += stamp
    image = torch.from_numpy(image[STAMP_SIZE:-STAMP_SIZE, STAMP_SIZE:-STAMP_SIZE].copy()).float()[None]
    noise = {name: torch.tensor([getattr(instrument, name)]) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(noise_seed)
    noisy = add_noise(image, instrument.to("cpu"), **noise, generator=generator)[0].double().numpy()
    x, y = (corner[:, axis] + pairs[name][:, 0].numpy() for axis, name in enumerate("xy"))
    catalog = Table({"id": np.arange(1, count + 1), "x": x, "y": y})
    for name in ("magnitude", "half_light_radius"):
        catalog[name] = pairs[name][:, 0].numpy()
    catalog["type"] = np.array(GALAXY_TYPES)[pairs["galaxy_type"][:, 0].numpy()]
    catalog["flux"] = light.total_flux[:, 0].numpy()
    return noisy, catalog
