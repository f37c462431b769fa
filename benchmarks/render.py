"""Compare the torch renderer with GalSim: accuracy and speed over a grid of Sérsic galaxies."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import galsim
import numpy as np
import torch
from astropy import units
from astropy.table import Table

from probdeblend.scene import STAMP_CENTER, STAMP_SIZE, Components, Instrument
from probdeblend.simulation import galsim as simulate
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import render

__all__ = ["INDICES", "RADII", "SceneSpeed", "render_check", "scene_check", "tabulate"]

INDICES = (0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 5.0, 6.0)
RADII = (0.1, 0.3, 0.6, 1.2)
_AXIS_RATIOS = (0.2, 0.5, 1.0)
_OFFSETS = (0.5, 60.0)
_STRICT = (
    4.0,
    0.6,
    1e-3,
    3e-3,
)  # largest index and radius (arcsec) of the strict limits; limits on peak and flux
_LOOSE = (2e-3, 1e-2)
_PRECISE = galsim.GSParams(
    folding_threshold=1e-3,
    stepk_minimum_hlr=30,
    maxk_threshold=1e-4,
    kvalue_accuracy=1e-7,
    maximum_fft_size=20000,
)


def render_check(
    instrument: Instrument | None = None,
    *,
    indices: Sequence[float] = INDICES,
    radii: Sequence[float] = RADII,
    rng: np.random.Generator | None = None,
) -> Table:
    """Render a grid of galaxies with torch and with GalSim, and compare pixels, fluxes and times.

    Each pair of index and radius has axis ratios 0.2, 0.5 and 1, once within half a pixel of the stamp's
    center and once up to 60 pixels from it along both axes, at random angles. Accuracy is measured against
    GalSim with tight parameters and a PSF interpolated by a wide Lanczos kernel, which keeps it band-limited
    as `render` takes it to be; GalSim's time is that with its default parameters. Both run on one thread,
    torch in 32-bit floats.

    Parameters
    ----------
    instrument
        Pixel scale and PSF; by default CANDELS F160W.
    indices
        Sérsic indices of the grid.
    radii
        Circularized half-light radii of the grid, in arcsec.
    rng
        Draws angles and positions; by default seeded with 0.

    Returns
    -------
    Table
        A row for each index and radius: the worst difference of a pixel over the peak (``peak_error``), the
        worst difference of the flux in the stamp over the total flux (``flux_error``), the limits on both,
        whether they are kept (``passed``), and the milliseconds a galaxy takes in GalSim (``galsim_time``).
        ``meta`` holds the mean times in ms (``galsim_time``, ``torch_time``) and their ratio
        (``speed_ratio``).
    """
    instrument = Instrument.candels_f160w() if instrument is None else instrument
    rng = np.random.default_rng(0) if rng is None else rng
    groups = list(product(indices, radii))
    grid = np.array([_group(index, radius, rng) for index, radius in groups])
    images, torch_time = _render_torch(grid.reshape(-1, grid.shape[-1]), instrument)
    images = images.reshape(*grid.shape[:2], STAMP_SIZE, STAMP_SIZE)
    rows = []
    for (index, radius), galaxies, rendered in zip(groups, grid, images, strict=True):
        expected = _render_galsim(galaxies, instrument, galsim.Lanczos(31), _PRECISE)[0]
        seconds = _render_galsim(galaxies, instrument, "quintic", galsim.GSParams())[1]
        rows.append((index, radius, *_compare(rendered, expected), *_limits(index, radius), 1e3 * seconds))
    names = (
        "sersic_index",
        "half_light_radius",
        "peak_error",
        "flux_error",
        "peak_limit",
        "flux_limit",
        "galsim_time",
    )
    table = Table(rows=rows, names=names, units={"half_light_radius": units.arcsec, "galsim_time": units.ms})
    kept = [table[f"{name}_error"] <= table[f"{name}_limit"] for name in ("peak", "flux")]
    table["passed"] = np.logical_and(*kept)
    galsim_time = float(np.mean(table["galsim_time"]))
    table.meta = {
        "galsim_time": galsim_time,
        "torch_time": 1e3 * torch_time,
        "speed_ratio": galsim_time / (1e3 * torch_time),
    }
    return table


@dataclass(frozen=True)
class SceneSpeed:
    """How the two renderers do on the same blends.

    Parameters
    ----------
    blends
        Number of blends.
    torch_rate, galsim_rate
        Blends a second, both galaxies with all their components, on one thread.
    peak_error
        Largest difference of a galaxy's pixels over its peak.
    """

    blends: int
    torch_rate: float
    galsim_rate: float
    peak_error: float

    def __str__(self) -> str:
        ratio = self.torch_rate / self.galsim_rate
        return (
            f"{self.blends} blends of the prior: {self.torch_rate:.0f} a second, in GalSim {self.galsim_rate:.2f}, "
            f"{ratio:.0f} times faster; largest difference {self.peak_error:.1e} of a galaxy's peak"
        )


def scene_check(count: int = 32, *, seed: int = 0) -> SceneSpeed:
    """Render the same blends of the published prior with torch and with GalSim, in turn, on one thread.

    Parameters
    ----------
    count
        Number of blends.
    seed
        Same seed, same blends.

    Returns
    -------
    SceneSpeed
        Rates and the largest difference.
    """
    instrument, prior = Instrument.candels_f160w(), Prior.published()
    light = prior.components(prior.sample(count, seed=seed), instrument, seed=seed)
    with _one_thread():
        simulate.render_torch(light.select(slice(1)), instrument)
        start = time.perf_counter()
        images = simulate.render_torch(light, instrument)
        middle = time.perf_counter()
        expected = simulate.render_galsim(light, instrument)
        end = time.perf_counter()
    error = (images - expected).abs().amax((-2, -1)) / expected.amax((-2, -1))
    return SceneSpeed(count, count / (middle - start), count / (end - middle), float(error.max()))


def tabulate(table: Table) -> str:
    """Write the result of `render_check` as text.

    Parameters
    ----------
    table
        What `render_check` returned.

    Returns
    -------
    str
        A line for each index and radius, and the speed.
    """
    lines = ["index  radius  peak error   limit  flux error   limit  GalSim"]
    for row in table:
        lines.append(
            f'{row["sersic_index"]:5.2f}  {row["half_light_radius"]:5.2f}"  {row["peak_error"]:10.1e} '
            f"{row['peak_limit']:7.0e}  {row['flux_error']:10.1e} {row['flux_limit']:7.0e}  "
            f"{row['galsim_time']:6.1f} ms" + ("" if row["passed"] else "  LIMIT EXCEEDED")
        )
    speed = "A galaxy takes {torch_time:.2f} ms, in GalSim {galsim_time:.1f} ms: {speed_ratio:.0f} times faster."
    return "\n".join([*lines, speed.format(**table.meta)])


def _group(index: float, radius: float, rng: np.random.Generator) -> list[list[float]]:
    """Rows of flux, radius, index, axis ratio, angle, x and y."""
    return [
        [1.0, radius, index, ratio, rng.uniform(0, np.pi), *(STAMP_CENTER + rng.uniform(-offset, offset, 2))]
        for ratio, offset in product(_AXIS_RATIOS, _OFFSETS)
    ]


def _limits(index: float, radius: float) -> tuple[float, float]:
    largest_index, largest_radius, *strict = _STRICT
    return tuple(strict) if index <= largest_index and radius <= largest_radius else _LOOSE


def _compare(images: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    difference = images - expected
    peak = np.abs(difference).max((1, 2)) / expected.max((1, 2))
    return float(peak.max()), float(np.abs(difference.sum((1, 2))).max())


def _render_torch(galaxies: np.ndarray, instrument: Instrument) -> tuple[np.ndarray, float]:
    """Images (galaxy, y, x), and seconds a galaxy once everything is loaded."""
    values = torch.from_numpy(galaxies).float().reshape(-1, 1, 1, galaxies.shape[-1])
    components = Components(*values.unbind(-1), torch.ones(values.shape[:3], dtype=torch.bool))
    with _one_thread(), torch.inference_mode():
        render(components, instrument.psf, pixel_scale=instrument.pixel_scale)
        start = time.perf_counter()
        images = render(components, instrument.psf, pixel_scale=instrument.pixel_scale)
        seconds = time.perf_counter() - start
    return images[:, 0].double().numpy(), seconds / len(galaxies)


def _render_galsim(
    galaxies: np.ndarray,
    instrument: Instrument,
    interpolant: galsim.Interpolant | str,
    params: galsim.GSParams,
) -> tuple[np.ndarray, float]:
    """Images (galaxy, y, x), and seconds a galaxy."""
    scale = instrument.pixel_scale
    kernel = galsim.Image(instrument.psf.double().cpu().numpy(), scale=scale)
    psf = galsim.InterpolatedImage(kernel, x_interpolant=interpolant, gsparams=params)
    images = np.empty((len(galaxies), STAMP_SIZE, STAMP_SIZE))
    start = time.perf_counter()
    for image, (flux, radius, index, ratio, angle, x, y) in zip(images, galaxies, strict=True):
        galaxy = galsim.Sersic(index, half_light_radius=radius, flux=flux, gsparams=params)
        galaxy = galaxy.shear(q=ratio, beta=angle * galsim.radians)
        offset = galsim.PositionD(x - STAMP_CENTER, y - STAMP_CENTER)
        drawn = galsim.Convolve(galaxy, psf, gsparams=params).drawImage(
            nx=STAMP_SIZE, ny=STAMP_SIZE, scale=scale, method="no_pixel", offset=offset
        )
        image[:] = drawn.array
    return images, (time.perf_counter() - start) / len(galaxies)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
