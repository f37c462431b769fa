"""Compare the torch renderer with GalSim: accuracy and speed.

A grid of single Sérsic galaxies is rendered by both, and pairs of the published population as well. Both run on one
thread, torch in 32-bit floats. Accuracy is measured against GalSim with tight parameters and a PSF interpolated by a
wide Lanczos kernel, which keeps it band-limited as `render` takes it to be; GalSim's time is that with its default
parameters. Exit status 1 where a limit is exceeded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import click
import galsim
import numpy as np
import torch
from astropy import units
from astropy.table import Table
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option
from probdeblend.scene import STAMP_SIZE
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.galsim import render_galsim
from probdeblend.simulation.morphology import source_components
from probdeblend.simulation.population import Population
from probdeblend.simulation.positions import Frame
from probdeblend.simulation.profiles import Components, render

__all__ = ["compare_pairs", "compare_profiles", "main"]

STAMP_CENTER = (STAMP_SIZE - 1) / 2
INDICES, SMALL_INDICES = (0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 5.0, 6.0), (0.7, 2.5, 5.0)
RADII, SMALL_RADII = (0.1, 0.3, 0.6, 1.2), (0.1, 0.6)  # arcsec
AXIS_RATIOS = (0.2, 0.5, 1.0)
OFFSETS = (0.5, 60.0)  # pixels from the stamp's center along both axes, at most
STRICT_INDEX, STRICT_RADIUS = 4.0, 0.6  # the largest for which the strict limits hold
STRICT, LOOSE = (1e-3, 3e-3), (2e-3, 1e-2)  # limits on peak and flux
PRECISE = galsim.GSParams(
    folding_threshold=1e-3, stepk_minimum_hlr=30, maxk_threshold=1e-4, kvalue_accuracy=1e-7, maximum_fft_size=20000
)
FORMATS = {"peak_error": ".1e", "flux_error": ".1e", "peak_limit": ".0e", "flux_limit": ".0e", "galsim_time": ".1f"}


@benchmark("render", resume=False)
@sized_option("--pairs", 4, 32, help="Pairs of the published population.")
def main(run: Run, pairs: int) -> None:
    """Compare the torch renderer with GalSim over a grid of galaxies and on pairs: pixels, fluxes and speed."""
    indices, radii = (INDICES, RADII) if run.full else (SMALL_INDICES, SMALL_RADII)
    table = compare_profiles(indices=indices, radii=radii, rng=np.random.default_rng(run.seed))
    table.meta |= compare_pairs(pairs, seed=run.seed)
    run.write(table)
    if exceeded := int((~table["passed"]).sum()):
        raise click.ClickException(f"limits exceeded for {exceeded} of {len(table)} profiles")


def compare_profiles(
    camera: Camera | None = None,
    *,
    indices: Sequence[float] = INDICES,
    radii: Sequence[float] = RADII,
    rng: np.random.Generator,
) -> Table:
    """Return the worst errors over a grid, one row per index and radius, as fractions of the peak and of the flux.

    Every row covers axis ratios 0.2, 0.5 and 1, once within half a pixel of the stamp's center and once up to 60
    pixels from it, at random angles. Times are milliseconds per galaxy.
    """
    camera = Camera.candels_f160w() if camera is None else camera
    groups = list(product(indices, radii))
    grid = np.array([_group(index, radius, rng) for index, radius in groups])
    images, torch_time = _render_torch(grid.reshape(-1, grid.shape[-1]), camera)
    images = images.reshape(*grid.shape[:2], STAMP_SIZE, STAMP_SIZE)
    rows = []
    for (index, radius), galaxies, rendered in zip(groups, grid, images, strict=True):
        expected, _ = _render_galsim(galaxies, camera, galsim.Lanczos(31), PRECISE)
        _, seconds = _render_galsim(galaxies, camera, "quintic", galsim.GSParams())
        limits = STRICT if index <= STRICT_INDEX and radius <= STRICT_RADIUS else LOOSE
        rows.append((index, radius, *_errors(rendered, expected), *limits, 1e3 * seconds))
    unit = {"half_light_radius": units.arcsec, "galsim_time": units.ms}
    table = Table(rows=rows, names=("sersic_index", "half_light_radius", *FORMATS), units=unit)
    table["passed"] = np.logical_and(*(table[f"{name}_error"] <= table[f"{name}_limit"] for name in ("peak", "flux")))
    for name, text in FORMATS.items():
        table[name].info.format = text
    times = {"galsim_time": float(np.mean(table["galsim_time"])), "torch_time": 1e3 * torch_time}
    table.meta = times | {"speed_ratio": times["galsim_time"] / times["torch_time"]}
    return table


def compare_pairs(count: int, *, seed: int) -> dict[str, float]:
    """Return pairs per second by both codes, and the largest error of a pixel over its galaxy's peak."""
    camera = Camera.candels_f160w()
    frame = Frame((STAMP_SIZE, STAMP_SIZE), camera.pixel_scale, 1.0)
    drawn = {name: value.flatten() for name, value in Population.published().sample(count, frame, seed=seed).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        light, _ = source_components(drawn, pixel_scale=camera.pixel_scale)
    settings = {"psf": camera.psf[0], "pixel_scale": camera.pixel_scale}
    with _one_thread():
        render(light.select(slice(1)), **settings)
        start = time.perf_counter()
        images = render(light, **settings)
        middle = time.perf_counter()
        expected = render_galsim(light, **settings)
        end = time.perf_counter()
    error = (images - expected).abs().amax((-2, -1)) / expected.amax((-2, -1))
    rates = {"pairs_torch_rate": count / (middle - start), "pairs_galsim_rate": count / (end - middle)}
    return {"pairs": count} | rates | {"pairs_peak_error": float(error.max())}


def _group(index: float, radius: float, rng: np.random.Generator) -> list[list[float]]:
    """Return flux, radius, index, axis ratio, angle, x and y of each galaxy."""
    return [
        [1.0, radius, index, ratio, rng.uniform(0, np.pi), *(STAMP_CENTER + rng.uniform(-offset, offset, 2))]
        for ratio, offset in product(AXIS_RATIOS, OFFSETS)
    ]


def _errors(images: NDArray, expected: NDArray) -> tuple[float, float]:
    difference = images - expected
    peak = np.abs(difference).max((1, 2)) / expected.max((1, 2))
    return float(peak.max()), float(np.abs(difference.sum((1, 2))).max())


def _render_torch(galaxies: NDArray, camera: Camera) -> tuple[NDArray, float]:
    """Return images ``(galaxy, y, x)``, and seconds per galaxy once everything is loaded."""
    values = torch.from_numpy(galaxies).float().reshape(-1, 1, galaxies.shape[-1])
    components = Components(*values.unbind(-1), torch.ones(values.shape[:2], dtype=torch.bool))
    with _one_thread(), torch.inference_mode():
        render(components, camera.psf[0], pixel_scale=camera.pixel_scale)
        start = time.perf_counter()
        images = render(components, camera.psf[0], pixel_scale=camera.pixel_scale)
        seconds = time.perf_counter() - start
    return images.double().numpy(), seconds / len(galaxies)


def _render_galsim(
    galaxies: NDArray, camera: Camera, interpolant: galsim.Interpolant | str, params: galsim.GSParams
) -> tuple[NDArray, float]:
    """Return images ``(galaxy, y, x)``, and seconds per galaxy."""
    scale = camera.pixel_scale
    kernel = galsim.Image(camera.psf[0].double().cpu().numpy(), scale=scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=interpolant, gsparams=params)
    images = np.empty((len(galaxies), STAMP_SIZE, STAMP_SIZE))
    start = time.perf_counter()
    for image, (flux, radius, index, ratio, angle, x, y) in zip(images, galaxies, strict=True):
        galaxy = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=params)
        galaxy = galaxy.shear(q=ratio, beta=angle * galsim.radians)
        offset = galsim.PositionD(x - STAMP_CENTER, y - STAMP_CENTER)
        stamp = {"nx": STAMP_SIZE, "ny": STAMP_SIZE, "scale": scale, "method": "no_pixel", "offset": offset}
        image[:] = galsim.Convolve(galaxy, psf, gsparams=params).drawImage(**stamp).array
    return images, (time.perf_counter() - start) / len(galaxies)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
