"""Observe stamps of one simulated galaxy of known flux, such as those of the VELA simulations, as CANDELS F160W would.

The stamps are taken as they are seen, and resampled to the instrument's pixels: their PSF stays, and so does their
noise, with the photons'. Sky noise is added up to the instrument's. A stamp whose own noise exceeds that keeps it and
is surrounded by noise of the same variance; if the excess is more than a factor of 2, it is left out. What is written
is a library of galaxies, as `probdeblend isolate` writes it, with true fluxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import galsim
import numpy as np
from astropy.io import fits
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark
from probdeblend.cli.options import FILE
from probdeblend.scene import Instrument, seed_of
from probdeblend.surveys.aperture import fit_aperture_correction, library_of
from probdeblend.surveys.isolated import IsolatedGalaxy, NotIsolatedError
from probdeblend.surveys.library import write_library
from probdeblend.surveys.reobserve import NOISY, draw_stamp, inner_square, measure_with_noise
from probdeblend.surveys.selection import Collection, check_some

__all__ = ["main", "observe_cube", "observe_stamps", "read_cube"]

MOST_NOISE = 2.0
BORDER = 8  # pixels at the edge of a stamp that hold sky alone
COLUMNS = ("mag_ab", "zero_point", "pixel_scale")


def read_cube(path: Path) -> tuple[NDArray[np.float64], Table]:
    """Return the stamps ``(stamp, y, x)`` of the first HDU, and the table of the second."""
    try:
        with fits.open(path) as hdus:
            data = hdus[0].data
            if data is None or data.ndim != 3 or len(hdus) < 2:
                raise ValueError(f"{path}: must hold a cube of stamps and their table, got other HDUs")
            table = Table(hdus[1].data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: not a FITS file, or damaged") from error
    if missing := [name for name in COLUMNS if name not in table.colnames]:
        there = ", ".join(table.colnames)
        raise ValueError(f"{path}: the columns {', '.join(missing)} are missing, there are {there}")
    if len(table) != len(data):
        raise ValueError(f"{path}: the table must have one row for each of {len(data)} stamps, got {len(table)}")
    return np.asarray(data, dtype=np.float64), table


def observe_stamps(
    stamps: NDArray, table: Table, *, instrument: Instrument, skipped: Counter[str], seed: int = 0
) -> Iterator[tuple[IsolatedGalaxy, float]]:
    """Observe stamps ``(stamp, y, x)`` of one galaxy; yield what is measured, and the true flux in the same units.

    The table gives the true AB magnitude, the zero point and the size of a pixel in arcsec of each. The seed of the
    noise is keyed by the stamp's number; `skipped` counts the reasons for which stamps are left out.
    """
    rows = zip(stamps, *(np.asarray(table[name], dtype=float) for name in COLUMNS), strict=True)
    for number, (pixels, magnitude, zero_point, scale) in enumerate(rows):
        native = np.asarray(pixels, dtype=np.float64) * 10 ** (0.4 * (instrument.zero_point - zero_point))
        try:
            galaxy = _observe(native, scale, instrument, seed_of(seed, number))
        except NotIsolatedError as error:
            skipped[str(error)] += 1
            continue
        yield galaxy, 10 ** (-0.4 * (magnitude - instrument.zero_point))


def _observe(native: NDArray[np.float64], scale: float, instrument: Instrument, seed: int) -> IsolatedGalaxy:
    if not np.isfinite(native).all():
        raise NotIsolatedError("missing pixels")
    image = draw_stamp(galsim.InterpolatedImage(galsim.Image(native, scale=scale)), instrument)
    side = min(native.shape) * scale
    own = inner_square(side - 2 * instrument.pixel_scale, instrument)
    own_rms = float(mad_std(image[own & ~inner_square(side - 2 * BORDER * instrument.pixel_scale, instrument)]))
    if own_rms > MOST_NOISE * instrument.sky_rms:
        raise NotIsolatedError(NOISY)
    seen = instrument.replace(sky_rms=max(own_rms, instrument.sky_rms))
    return measure_with_noise(image, seen.sky_rms**2 - np.where(own, own_rms**2, 0.0), seen, seed=seed)


def observe_cube(path: Path, *, instrument: Instrument, seed: int) -> Collection:
    """Return the library of a cube, whose galaxy has the name of the file, with true fluxes."""
    skipped: Counter[str] = Counter()
    seen = observe_stamps(*read_cube(path), instrument=instrument, skipped=skipped, seed=seed)
    found = list(tqdm(seen, desc=path.name, unit="stamp", leave=False))
    check_some(found, skipped)
    galaxies, flux = zip(*found, strict=True)
    correction = fit_aperture_correction(instrument)
    library = library_of(galaxies, origin=path.name, instrument=instrument, correction=correction)
    same = {"identity": path.stem, "flux_kind": "true", "flux_error": 0.0}
    known = {name: np.full(len(library), value) for name, value in same.items()}
    return Collection(replace(library, flux=np.array(flux), **known), skipped, correction.scatter)


@benchmark("vela", resume=False)
@click.argument("cube", type=FILE)
def main(run: Run, cube: Path) -> None:
    """Observe CUBE, stamps of one simulated galaxy, as CANDELS F160W would, and write a library of galaxies.

    The first HDU of CUBE holds the stamps, the second a table with the true AB magnitude (mag_ab), the zero_point and
    the pixel_scale in arcsec of each.
    """
    found = observe_cube(cube, instrument=Instrument.candels_f160w(), seed=run.seed)
    names = write_library(run.output, found.library, overwrite=run.overwrite)
    click.echo("\n".join(found.summary().pformat(max_width=-1, max_lines=-1)))
    click.echo(f"written to {run.output}: {', '.join(names)}")


if __name__ == "__main__":
    main()
