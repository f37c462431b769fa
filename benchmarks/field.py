"""Deblend a large field: seconds and memory by its area, and the same catalog whatever the size of the tiles.

Scenes of the published camera are added to an empty sky at random places, 3,000 sources to 16 million pixels, and
noise is added once. The image is written to a FITS file, and a process of its own deblends it from there, so that its
peak memory is that of an astronomer's run.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import KDTree

from benchmarks._command import Run, benchmark, weights_option
from benchmarks._populations import published_scenes
from benchmarks._scenes import formatted
from probdeblend._files import whole_file
from probdeblend.deblending.weights import load
from probdeblend.photometry.noise import add_noise
from probdeblend.scene import seed_of
from probdeblend.simulation.cameras import Camera

__all__ = ["compare_catalogs", "main", "write_field"]

DENSITY = 3000 / 4000**2  # sources per pixel
SIDES, SMALL_SIDES = (1000, 2000, 4000), (192, 384)  # pixels
TILES, SMALL_TILES = (512, 256), (256, 128)
SOURCES = (1, 2, 3, 4, 5, 8)  # in one of the scenes that are added
APART = 0.5  # pixels, within which two catalogs list the same source


@benchmark("field")
@weights_option
def main(run: Run, weights: Path | None) -> None:
    """Deblend fields of several sizes: seconds, peak memory, and the catalog with tiles of two sizes.

    `same` is the fraction of the sources that the catalog with the other tiles has, within half a pixel, and `worst`
    the largest difference of their fluxes in units of the quoted error.
    """
    sides, tiles = (SIDES, TILES) if run.full else (SMALL_SIDES, SMALL_TILES)
    rows, catalogs = [], []
    with run.unfinished(weights=str(weights), full=run.full) as kept:
        for side in sides:
            image = kept / f"field-{side}.fits"
            if not image.exists():
                write_field(image, side, seed=run.seed)
            for tile in tiles if side == sides[-1] else tiles[:1]:
                found = kept / f"catalog-{side}-{tile}.ecsv"
                if not found.exists():
                    _in_a_process(image, found, tile, weights)
                catalogs.append(Table.read(found))
                rows.append({"side": side, "tile": tile, "true": fits.getval(image, "SOURCES")} | catalogs[-1].meta)
        rows[-2] |= {"same": 1.0, "worst": 0.0}
        rows[-1] |= compare_catalogs(*catalogs[-2:])
        run.write(formatted([{"same": np.nan, "worst": np.nan} | row for row in rows]))


def write_field(path: Path, side: int, *, seed: int) -> None:
    """Simulate a square field and write it, with the number of its sources in the header."""
    rng, camera = np.random.default_rng(seed), Camera.candels_f160w()
    light, sources, wanted, batch = torch.zeros(side, side), 0, round(DENSITY * side**2), 0
    while sources < wanted:
        scenes = published_scenes(int(rng.choice(SOURCES)), 16, seed=seed_of(seed, 1, batch))
        for number in range(len(scenes)):
            own = scenes.scene == number
            _add(light, scenes.light[own][:, 0].sum(0), rng)
            sources += int(own.sum())
            if sources >= wanted:
                break
        batch += 1
    noise = {name: getattr(camera, name)[None] for name in ("sky_rms", "exposure", "noise_kernel")}
    image = add_noise(light[None, None], **noise, generator=torch.Generator().manual_seed(seed))[0, 0].numpy()
    with whole_file(path) as temporary:
        fits.PrimaryHDU(image, fits.Header({"SOURCES": sources})).writeto(temporary)


def _add(light: torch.Tensor, stamp: torch.Tensor, rng: np.random.Generator) -> None:
    """Add a stamp at a random place, at most a quarter of it outside."""
    side, size = len(light), len(stamp)
    top, left = rng.integers(-size // 4, side - 3 * size // 4, 2).tolist()
    rows, columns = (slice(max(start, 0), min(start + size, side)) for start in (top, left))
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    light[rows, columns] += stamp[inside]


def _in_a_process(*given: object) -> None:
    process = get_context("spawn").Process(target=_deblend, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process that deblends must end well, got exit code {process.exitcode}")


def _deblend(image: Path, output: Path, tile: int, weights: Path | None) -> None:
    """Deblend an image and write its catalog, with the seconds it took and the peak memory in GB."""
    torch.set_num_threads(1)
    camera, deblender = Camera.candels_f160w(), load(weights)
    began = time.perf_counter(), time.process_time()
    known = {"psf": camera.psf[0].numpy(), "sky_rms": float(camera.sky_rms[0]), "gain": float(camera.exposure[0])}
    posterior = deblender(image, zero_point=camera.zero_point[0], tile=tile, **known)
    seconds = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    catalog = Table(posterior.catalog()[["x", "y", "flux", "flux_err"]])
    catalog.meta = {"found": len(catalog)} | seconds | {"memory": _peak_memory(), "megapixels": 0.0}
    catalog.meta["megapixels"] = fits.getdata(image).size / 1e6
    with whole_file(output) as temporary:
        catalog.write(temporary, format="ascii.ecsv")


def _peak_memory() -> float:
    """Return the largest resident memory of this process in GB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024**2


def compare_catalogs(first: Table, second: Table) -> dict[str, float]:
    """Return the fraction of sources in both catalogs, and the largest difference of their fluxes over the error."""
    places = [np.column_stack([np.asarray(table[name], dtype=float) for name in "xy"]) for table in (first, second)]
    away, index = KDTree(places[1]).query(places[0], distance_upper_bound=APART)
    both = np.isfinite(away)
    flux, other = (np.asarray(table["flux"], dtype=float) for table in (first, second))
    error = np.asarray(first["flux_err"], dtype=float)[both]
    worst = np.abs(flux[both] - other[index[both]]) / error
    return {"same": both.sum() / max(len(first), len(second), 1), "worst": float(worst.max(initial=0.0))}


if __name__ == "__main__":
    main()
