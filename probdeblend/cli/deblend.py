"""Deblend an image."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..posterior.draws import Posterior

__all__: list[str] = []  # used from the command line alone

EXAMPLE = {"psf": ("candels_f160w",), "rms": ("0.003",), "gain": 3200.0, "wavelength": (1.54,)}
LARGEST_FIGURE = 2**22  # pixels


@click.command(short_help="Find the sources in an image and deblend them.")
@click.argument("images", type=FILE, nargs=-1)
@options.hdu
@click.option(
    "--psf", metavar="FILE|CAMERA", multiple=True, help="Effective PSF, or candels_f160w.  [default: measured]"
)
@click.option("--rms", metavar="VALUE|FILE", multiple=True, help="Sky noise per pixel.  [default: measured]")
@click.option("--positions", type=FILE, help="Table of sources to measure: x, y (from 0) or ra, dec.  [default: found]")
@click.option("--mask", type=FILE, help="Image that is not zero where pixels are bad.")
@click.option("--zero-point", type=float, multiple=True, help="AB magnitude of unit flux.  [default: from the header]")
@click.option("--gain", type=float, callback=options.finite, help="Counts per unit of flux, for photon noise.")
@click.option("--wavelength", type=float, multiple=True, help="Wavelength in micron.")
@options.sampling
@click.option("--tile", type=click.IntRange(64), default=512, help="Side of a tile in pixels.")
@options.output("probdeblend-output")
@options.overwrite
@click.option("--save-draws", is_flag=True, help="Also write the whole posterior, as draws.nc.")
@click.option("--json", is_flag=True, help="Print the catalog as JSON, with all rows.")
@options.weights
@options.calibrator
def deblend(images: tuple[Path, ...], **given: object) -> None:
    """Find the sources in IMAGES and deblend them; without IMAGES, deblend the example that ships.

    IMAGES are the bands of one image, on one grid of pixels. --psf, --rms, --zero-point and --wavelength may be
    repeated, once per band.

    \b
    Example:
      probdeblend deblend field.fits --psf psf.fits --rms rms.fits --output field
    """  # noqa: D301
    from tqdm import tqdm

    from ..deblending import weights
    from ..deblending.products import write_products

    options.exclusive(given, "calibrator", "no_calibrator")
    with options.new_folder(given, *images, *given["psf"], *given["rms"]) as folder:
        if not images:
            images = (Path(str(files("probdeblend") / "data" / "example.fits")),)
            given |= {name: value for name, value in EXAMPLE.items() if not given[name]}
        bands = [path if given["hdu"] is None else f"{path}[{given['hdu']}]" for path in images]
        deblender = weights.load(given["weights"], calibrator=given["calibrator"])
        with tqdm(unit="tile", leave=False) as bar:
            posterior = deblender(bands, **_arguments(given), progress=partial(_advance, bar))
        write_products(folder, posterior, save_draws=given["save_draws"])
        failed = _draw(folder / "field.png", posterior, bands[0])
        names = sorted(path.name for path in folder.iterdir())
    _report(posterior, names, failed, given)


def _arguments(given: dict) -> dict[str, object]:
    """Turn options into arguments of a `Deblender`."""
    from .._files import read_table

    found = options.picked(given, "gain", "mask", "draws", "passes", "seed", "tile")
    found["calibrate"] = not given["no_calibrator"]
    found["psf"] = given["psf"][0] if len(given["psf"]) == 1 else list(given["psf"]) or None
    found["sky_rms"] = _noise(given["rms"])
    for name in ("zero_point", "wavelength"):
        found[name] = list(given[name]) or None
    found["positions"] = None if given["positions"] is None else read_table(given["positions"])
    return found


def _noise(given: tuple[str, ...]) -> object:
    """Return the sky noise that the user gives as numbers or a file; None where it is to be measured."""
    if not given:
        return None
    try:
        return [float(value) for value in given]
    except ValueError:
        if len(given) > 1:
            raise ValueError(f"rms must be a file or numbers, one per band, got {', '.join(given)}") from None
        return given[0]


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _draw(target: Path, posterior: Posterior, path: Path | str) -> list[str]:
    """Draw a field that is not too large, whatever settings the user has; a failure is noted and costs nothing else."""
    from ..photometry.images import open_mosaic

    try:
        from matplotlib import style

        from ..plots.sources import plot_field

        with open_mosaic(path) as image, style.context("default"):
            if prod(image.shape) <= LARGEST_FIGURE:
                plot_field(posterior, image.data[:, :])[0].figure.savefig(target, dpi=120)
    except Exception as error:
        target.unlink(missing_ok=True)
        return [f"{target.name} could not be drawn: {options.sentence(error)}"]
    return []


def _report(posterior: Posterior, names: list[str], notes: list[str], given: dict) -> None:
    """Print the main columns of the catalog, and what was measured or assumed."""
    from ..deblending.products import short_table

    catalog = posterior.catalog()
    table = short_table(catalog, most=len(catalog) if given["json"] else 20)
    notes = [*filter(None, posterior.dataset.attrs.get("notes", "").split("; ")), *notes]
    if given["json"]:
        rows = [
            [None if isinstance(value, float) and not isfinite(value) else value for value in row]
            for row in table.as_array().tolist()
        ]
        sources = [dict(zip(table.colnames, row, strict=True)) for row in rows]
        click.echo(json.dumps({"sources": sources, "notes": notes, "output": str(given["output"]), "files": names}))
        return
    options.show(table)
    if len(catalog) > len(table):
        click.echo(f"... and {len(catalog) - len(table)} more")
    for note in notes:
        click.echo(note)
    click.echo(f"written to {given['output']}: {', '.join(names)}")
