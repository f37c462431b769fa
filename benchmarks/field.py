"""Deblend a large field: seconds and memory by its area, the same catalog whatever the size of the tiles, and SEP's.

Groups of sources lie anywhere in an image of CANDELS F160W, 3,000 sources to 16 million pixels. The image is written to
a FITS file, and a process of its own deblends it from there, so that its peak memory is that of an astronomer's run.
Kron fluxes of isolated galaxies are easy: there the network must agree with the truth and with SEP.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from scipy.spatial import KDTree

from benchmarks._command import Run, benchmark, weights_option
from benchmarks._scenes import formatted
from probdeblend._files import whole_file
from probdeblend.deblending.weights import load
from probdeblend.photometry.detection import detect, kron_flux
from probdeblend.scene import SOURCE_TYPES
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import Simulator

__all__ = ["agreement", "compare_catalogs", "main", "write_field"]

DENSITY = 3000 / 4000**2  # sources per pixel
SIDES, SMALL_SIDES = (1000, 2000, 4000), (192, 384)  # pixels
TILES, SMALL_TILES = (512, 256), (256, 128)
APART = 0.5  # pixels, within which two catalogs list the same source
ISOLATED = 48.0  # pixels around a galaxy without another source, if it is isolated
NEAR = 2.0  # pixels, within which a measurement is that of an isolated galaxy
EDGE = 24.0  # pixels from the edge of the field, within which no galaxy counts as isolated
STAR = SOURCE_TYPES.index("star")
ONE_SIGMA = (0.16, 0.5, 0.84)


@benchmark("field")
@weights_option
def main(run: Run, weights: Path | None) -> None:
    """Deblend fields of several sizes: seconds, peak memory, and the catalog with tiles of two sizes.

    One row per size of the field and of the tiles, in pixels on a side: the sources that there are, and those found;
    seconds on one core, by the clock and of CPU, and CPU seconds per million pixels; peak memory in GB. `same` is the
    fraction of the sources that the catalog with the larger tiles has too, within half a pixel, and `worst` the largest
    difference of their fluxes in units of the quoted error.

    Below are the Kron fluxes of the isolated galaxies of the largest field: median and scatter of the differences
    between network, SEP and truth, in units of the quoted errors. SEP's do not know that noise is correlated.
    """
    sides, tiles = (SIDES, TILES) if run.full else (SMALL_SIDES, SMALL_TILES)
    rows, catalogs = [], []
    with run.unfinished(deblender=load(weights), full=run.full) as kept:
        for side in sides:
            image = kept / f"field-{side}.fits"
            if not image.exists():
                write_field(image, side, seed=run.seed)
            for tile in tiles if side == sides[-1] else tiles[:1]:
                found = kept / f"catalog-{side}-{tile}.ecsv"
                if not found.exists():
                    _in_a_process(image, found, tile, weights)
                catalogs.append(Table.read(found))
                count = len(Table.read(image, hdu="SOURCES"))
                rows.append({"side": side, "tile": tile, "sources": count} | catalogs[-1].meta)
        unknown = {"same": np.nan, "worst": np.nan}
        rows = [row | unknown for row in rows[:-1]] + [rows[-1] | compare_catalogs(*catalogs[-2:])]
        table = formatted(rows)
        table.meta = agreement(Table.read(image, hdu="SOURCES"), catalogs[-2], _by_sep(image))
        run.write(table)


def write_field(path: Path, side: int, *, seed: int) -> None:
    """Simulate a square field and write it, with a table of its sources and which of them are isolated galaxies."""
    population = Population.default().replace(size_scatter=0.0, star_fraction=0.1)
    groups = max(round(DENSITY * side**2 / np.dot(population.number, range(len(population.number)))), 1)
    simulator = Simulator(population, Camera.candels_f160w(), (side, side), groups=groups)
    (field,) = simulator.batches(1, seed=seed, batch_size=1)
    known = {"x": field.x, "y": field.y, "flux_auto": field.auto_flux[:, 0]}
    table = Table({name: values.double().numpy() for name, values in known.items()})
    places = _places(table)
    table["isolated"] = KDTree(places).query(places, k=2)[0][:, 1] > ISOLATED
    table["isolated"] &= field.source_type.numpy() != STAR
    table["isolated"] &= np.minimum(places, side - 1 - places).min(1) > EDGE
    with whole_file(path) as temporary:
        image, sources = fits.PrimaryHDU(field.image[0, 0].numpy()), fits.BinTableHDU(table, name="SOURCES")
        fits.HDUList([image, sources]).writeto(temporary)


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
    known |= {"zero_point": camera.zero_point[0], "wavelength": float(camera.wavelength[0])}
    posterior = deblender(image, tile=tile, **known)
    seconds = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    seconds["cpu_per_megapixel"] = seconds["cpu_seconds"] / (fits.getdata(image).size / 1e6)
    catalog = Table(posterior.catalog()[["x", "y", "flux", "flux_err", "flux_auto", "flux_auto_16", "flux_auto_84"]])
    catalog["error_auto"] = (catalog["flux_auto_84"] - catalog["flux_auto_16"]) / 2
    catalog.meta = {"found": len(catalog)} | seconds | {"memory": _peak_memory()}
    with whole_file(output) as temporary:
        catalog.write(temporary, format="ascii.ecsv")


def _peak_memory() -> float:
    """Return the largest resident memory of this process in GB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024**2


def _by_sep(image: Path) -> Table:
    """Return SEP's catalog of a field: positions, Kron fluxes and their errors."""
    pixels, camera = fits.getdata(image), Camera.candels_f160w()
    found = detect(pixels, float(camera.sky_rms[0]))
    flux, error = kron_flux(pixels, found, float(camera.sky_rms[0]), exposure=float(camera.exposure[0]))
    return Table({"x": found.x, "y": found.y, "flux_auto": flux, "error_auto": error})


def _places(table: Table) -> NDArray[np.float64]:
    return np.column_stack([np.asarray(table[name], dtype=float) for name in "xy"])


def compare_catalogs(first: Table, second: Table) -> dict[str, float]:
    """Return the fraction of sources in both catalogs, and the largest difference of their fluxes over the error."""
    away, index = KDTree(_places(second)).query(_places(first), distance_upper_bound=APART)
    both = np.isfinite(away)
    flux, other = (np.asarray(table["flux"], dtype=float) for table in (first, second))
    error = np.asarray(first["flux_err"], dtype=float)[both]
    worst = np.abs(flux[both] - other[index[both]]) / error
    return {"same": both.sum() / max(len(first), len(second), 1), "worst": float(worst.max(initial=0.0))}


def agreement(sources: Table, network: Table, sep: Table) -> dict[str, float]:
    """Compare the Kron fluxes of isolated galaxies: median and scatter of differences in units of their errors.

    The scatter is half of the range of the central 68 %.
    """
    true = sources[np.asarray(sources["isolated"], dtype=bool)]
    values = {"truth": (np.asarray(true["flux_auto"], dtype=float), np.zeros(len(true)))}
    for name, table in (("network", network), ("SEP", sep)):
        index = KDTree(_places(table)).query(_places(true), distance_upper_bound=NEAR)[1]
        columns = (np.asarray(table[column], dtype=float) for column in ("flux_auto", "error_auto"))
        values[name] = tuple(np.append(column, np.nan)[index] for column in columns)
    found: dict[str, float] = {"isolated galaxies": len(true)}
    for first, second in (("network", "truth"), ("SEP", "truth"), ("network", "SEP")):
        (flux, error), (other, other_error) = values[first], values[second]
        z = (flux - other) / np.hypot(error, other_error)
        z = z[np.isfinite(z)]
        low, middle, high = np.quantile(z, ONE_SIGMA) if len(z) else (np.nan,) * 3
        found |= {f"{first} - {second}, median": float(middle), f"{first} - {second}, scatter": float(high - low) / 2}
    return found


if __name__ == "__main__":
    main()
