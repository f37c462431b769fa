"""Blends of known truth: galaxies of a prior, rendered by GalSim or by torch, with the noise of an instrument.

A galaxy is a sum of sheared and shifted Sérsic profiles, convolved with the instrument's effective PSF, which holds the
pixel. GalSim interpolates the PSF with a wide Lanczos kernel, which keeps it band-limited as its sampling implies;
GalSim's default kernel differs by up to 3e-3 of a galaxy's peak. Sérsic indices are not rounded: GalSim computes the
table of a new index once, which takes most of the time of a simulation with GalSim.

The ideas are those of GalSim (Rowe et al. 2015, doi:10.1016/j.ascom.2015.02.002) and of the blends of Boucaud et al.
(2020, doi:10.1093/mnras/stz3056).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

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
from .workers import in_batches

__all__ = ["Renderer", "render_galsim", "render_torch", "simulate", "simulate_blends", "simulate_mosaic", "with_noise"]

Renderer = Callable[[Components, Instrument], Tensor]
"""A function that turns light into noiseless images ``(blend, galaxy, y, x)`` of each galaxy alone."""

BATCH_SIZE = 64


def render_galsim(components: Components, instrument: Instrument) -> Tensor:
    """Render each galaxy of each blend alone with GalSim, without noise.

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
    import galsim

    accuracy = galsim.GSParams(
        folding_threshold=2e-3, stepk_minimum_hlr=10, maxk_threshold=1e-3, kvalue_accuracy=1e-6, maximum_fft_size=16384
    )
    scale = instrument.pixel_scale
    kernel = galsim.Image(instrument.psf.double().cpu().numpy(), scale=scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=galsim.Lanczos(31), gsparams=accuracy)
    grid = {"nx": STAMP_SIZE, "ny": STAMP_SIZE, "scale": scale, "method": "no_pixel", "dtype": float}
    names = ("flux", "half_light_radius", "sersic_index", "axis_ratio", "angle", "x", "y")
    values = torch.stack([getattr(components, name) for name in names], -1).double()
    images = np.zeros((*components.flux.shape[:2], STAMP_SIZE, STAMP_SIZE))
    for galaxy in np.ndindex(*images.shape[:2]):
        parts = []
        for flux, radius, index, ratio, angle, x, y in values[galaxy][components.present[galaxy]].tolist():
            part = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=accuracy)
            part = part.shear(q=ratio, beta=angle * galsim.radians)
            parts.append(part.shift(scale * (x - STAMP_CENTER), scale * (y - STAMP_CENTER)))
        if parts:
            convolved = galsim.Convolve(galsim.Sum(parts), psf, gsparams=accuracy)
            images[galaxy] = convolved.drawImage(**grid).array
    return torch.from_numpy(images).to(components.flux)


def render_torch(components: Components, instrument: Instrument) -> Tensor:
    """Render each galaxy of each blend alone with torch, without noise, on the device of the PSF.

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


def simulate(
    count: int,
    *,
    prior: Prior | None = None,
    instrument: Instrument | None = None,
    seed: int = 0,
    render: Renderer = render_galsim,
    workers: int = 0,
) -> Blend:
    """Simulate blends with their truth, as ``probdeblend simulate`` does.

    Parameters
    ----------
    count
        Number of blends, at least one; larger sets than fit in memory are made by `simulate_blends`.
    prior
        The population; ``Prior.published()`` by default.
    instrument
        What the images are taken with; ``Instrument.candels_f160w()`` by default.
    seed
        Same seed, same blends; not negative.
    render
        `render_galsim` or `render_torch`.
    workers
        Number of processes that simulate; 0 for this one alone. The blends do not depend on it.

    Returns
    -------
    Blend
        Blends in one band with all their truth, on the CPU.

    Raises
    ------
    ValueError
        If the count is not positive, or another number is negative.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    prior, instrument = prior or Prior.published(), instrument or Instrument.candels_f160w()
    work = {"seed": seed, "render": render, "batch_size": min(count, BATCH_SIZE), "workers": workers}
    return Blend.join(simulate_blends(count, prior=prior, instrument=instrument, **work))


def simulate_blends(
    count: int,
    *,
    prior: Prior,
    instrument: Instrument,
    seed: int,
    render: Renderer = render_galsim,
    batch_size: int = BATCH_SIZE,
    first: int = 0,
    workers: int = 0,
) -> Iterator[Blend]:
    """Simulate blends with their truth, batch by batch.

    Batch i depends on the seed, the batch size and i alone, so that a longer set begins with the shorter one. Noise
    levels are those of the instrument.

    Parameters
    ----------
    count, prior, instrument, seed, render
        As for `simulate`; any number of blends.
    batch_size
        Blends per batch; the last one holds the remainder.
    first
        Number of the first batch to make.
    workers
        As for `simulate`.

    Returns
    -------
    iterator of Blend
        Blends in one band with all their truth, on the CPU. AUTO fluxes are those of the isolated, noiseless images.

    Raises
    ------
    ValueError
        If a number is negative, or the batch size zero.
    """
    make = partial(_batch, size=batch_size, prior=prior, instrument=instrument, render=render)
    return in_batches(make, count, seed=seed, batch_size=batch_size, first=first, workers=workers)


def _seeds(key: tuple[int, ...], count: int) -> list[int]:
    return [int(state >> np.uint64(1)) for state in np.random.SeedSequence(key).generate_state(count, np.uint64)]


def with_noise(light: Tensor, instrument: Instrument, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return images with the noise of the instrument, and their ``sky_rms`` and ``exposure``."""
    noise = {name: torch.full((len(light),), getattr(instrument, name)) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(seed)
    return add_noise(light, instrument.to("cpu"), **noise, generator=generator), noise


def _batch(
    key: tuple[int, int], count: int, *, size: int, prior: Prior, instrument: Instrument, render: Renderer
) -> Blend:
    """Draw a batch of `size` blends and keep the first `count`, which thus do not depend on `count`."""
    pair_seed, shape_seed, noise_seed = _seeds(key, 3)
    pairs = prior.sample(size, seed=pair_seed)
    components = prior.components(pairs, instrument, seed=shape_seed).select(slice(count))
    absent = ~pairs["present"][:count]
    isolated = render(components, instrument).cpu()
    light = torch.zeros(size, 1, STAMP_SIZE, STAMP_SIZE)
    light[:count, 0] = isolated.sum(1)
    image, noise = with_noise(light, instrument, noise_seed)
    measured = [[auto_flux(alone, instrument.sky_rms) for alone in blend] for blend in isolated.numpy()]
    return Blend(
        image=image[:count],
        flux=components.total_flux.masked_fill(absent, torch.nan)[..., None],
        auto_flux=torch.tensor(measured)[..., None],
        mask=isolated > MASK_THRESHOLD * instrument.sky_rms,
        isolated=isolated[:, :, None],
        galaxy_type=pairs["galaxy_type"][:count].masked_fill(absent, -1),
        count=(~absent).sum(-1),
        **{name: value[:count] for name, value in noise.items()},
        **{name: pairs[name][:count].masked_fill(absent, torch.nan) for name in ("x", "y", "half_light_radius")},
    )


def simulate_mosaic(
    count: int, shape: tuple[int, int], *, prior: Prior, instrument: Instrument, seed: int
) -> tuple[NDArray[np.float64], Table]:
    """Simulate an image with galaxies at random positions, and their catalog.

    Parameters
    ----------
    count
        Number of galaxies.
    shape
        Number of pixels ``(y, x)``, at least a stamp on a side.
    prior
        The population; the galaxies are the central ones of its blends.
    instrument
        What the image is taken with.
    seed
        Same seed, same image.

    Returns
    -------
    image, catalog
        Pixels ``(y, x)`` around a sky of zero, and one row per galaxy: ``id``, ``x``, ``y`` (from 0), ``magnitude``,
        ``half_light_radius`` (arcsec, major axis), ``type`` and total ``flux``.

    Raises
    ------
    ValueError
        If the count is negative or the image smaller than a stamp.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    if min(shape) < STAMP_SIZE:
        raise ValueError(f"shape must be at least {STAMP_SIZE} pixels on a side, got {shape}")
    pair_seed, shape_seed, noise_seed, place_seed = _seeds((seed, count), 4)
    single = replace(prior, crowding=(1.0,))
    pairs = single.sample(count, seed=pair_seed)
    light = single.components(pairs, instrument, seed=shape_seed)
    half = STAMP_SIZE // 2
    corner = np.random.default_rng(place_seed).integers(-half, np.array(shape)[::-1] - half, (count, 2))
    image = np.zeros((shape[0] + 2 * STAMP_SIZE, shape[1] + 2 * STAMP_SIZE))
    stamps = render_torch(light, instrument)[:, 0].cpu().double().numpy()
    for (x0, y0), stamp in zip(corner + STAMP_SIZE, stamps, strict=True):
        image[y0 : y0 + STAMP_SIZE, x0 : x0 + STAMP_SIZE] += stamp
    image = torch.from_numpy(image[STAMP_SIZE:-STAMP_SIZE, STAMP_SIZE:-STAMP_SIZE].copy()).float()[None]
    noisy = with_noise(image, instrument, noise_seed)[0][0].double().numpy()
    catalog = Table({"id": np.arange(1, count + 1)})
    for name in ("x", "y", "magnitude", "half_light_radius"):
        catalog[name] = pairs[name][:, 0].numpy()
    catalog["x"], catalog["y"] = catalog["x"] + corner[:, 0], catalog["y"] + corner[:, 1]
    catalog["type"] = np.array(GALAXY_TYPES)[pairs["galaxy_type"][:, 0].numpy()]
    catalog["flux"] = light.total_flux[:, 0].numpy()
    return noisy, catalog
