"""Deblend an image."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..deblending import Deblender
    from ..posterior.draws import Posterior

__all__: list[str] = []  # used from the command line alone

EXAMPLE = {"psf": ("candels_f160w",), "rms": ("0.003",), "gain": 3200.0, "wavelength": (1.54,)}
SPARED = ("correlation", "star", "group", "existence", "mag", "flux_err")  # columns that it has only if there is room


@click.command(short_help="Find the sources in an image and deblend them.")
@click.argument("images", type=FILE, nargs=-1)
@options.observation
@click.option("--positions", type=FILE, help="Table with x, y (from 0) or ra, dec, or map of labels.  [default: found]")
@click.option("--draws", type=click.IntRange(1), default=1000, help="Posterior draws.")
@click.option("--passes", type=click.IntRange(0), default=32, help="Monte Carlo dropout passes; 0: none.")
@options.seed
@click.option("--tile", type=click.IntRange(64), default=512, help="Side of a tile in pixels.")
@options.output("probdeblend-output")
@click.option("--each", is_flag=True, help="Deblend every image by itself, into a folder of OUTPUT with its name.")
@options.overwrite
@click.option("--save-draws", is_flag=True, help="Also write the whole posterior, as draws.nc.")
@click.option("--json", is_flag=True, help="Print the catalog as JSON, with all rows.")
@options.weights
@options.calibrator
def deblend(images: tuple[Path, ...], **given: object) -> None:
    """Find the sources in IMAGES and deblend them; without IMAGES, deblend the example that ships.

    IMAGES are the bands of one image, on one grid of pixels. --psf, --rms, --zero-point and --wavelength may be
    repeated, once per band. With --each, IMAGES are images of one band; those that have a folder already are left out.

    \b
    Example:
      probdeblend deblend field.fits --psf psf.fits --rms rms.fits --output field
    """  # noqa: D301
    from .._files import RECORD
    from ..deblending import weights
    from ..deblending.positions import read_positions

    options.exclusive(given, "calibrator", "no_calibrator")
    if not images:
        images = (Path(str(files("probdeblend") / "data" / "example.fits")),)
        given |= {name: value for name, value in EXAMPLE.items() if not given[name]}
    folders = {given["output"]: images}
    if given["each"]:
        folders = {given["output"] / path.name.partition(".fit")[0]: (path,) for path in images}
        if len(folders) < len(images):
            raise ValueError(f"images must have different names with each, got {len(folders)} of {len(images)}")
    arguments = options.picked(given, "draws", "passes", "seed", "tile") | options.observed(given)
    arguments["calibrate"] = not given["no_calibrator"]
    arguments["positions"] = given["positions"] and read_positions(given["positions"])
    failed = 0
    deblender = weights.load(given["weights"], calibrator=given["calibrator"])
    for output, bands in folders.items():
        if given["each"] and (output / RECORD).is_file() and not given["overwrite"]:
            click.echo(f"{output}: finished already", err=True)
            continue
        try:
            _deblend_image(deblender, bands, arguments, given | {"output": output})
        except Exception as error:
            if not given["each"]:
                raise
            failed += 1
            click.echo(f"Error in {output}: {options.sentence(error)}", err=True)
    if failed:
        raise click.ClickException(f"{failed} of {len(images)} images could not be deblended")


def _deblend_image(deblender: Deblender, images: tuple[Path, ...], arguments: dict, given: dict) -> None:
    """Deblend one image, write its files and print its main numbers."""
    from tqdm import tqdm

    from ..deblending.products import write_products

    with options.new_folder(given, *images, *given["psf"], *given["rms"]) as folder:
        bands = options.bands(given, images)
        with tqdm(desc="sky, noise and PSF", unit="tile", leave=False, disable=None if sys.stderr else True) as bar:
            posterior = deblender(bands, **arguments, progress=partial(_advance, bar))
        write_products(folder, posterior, save_draws=given["save_draws"])
        _draw(folder / "field.png", posterior, bands[0])
        names = sorted(path.name for path in folder.iterdir())
    _report(posterior, names, given)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.set_description("sources" if done < total else "fluxes")
    bar.update(done - bar.n)


def _draw(target: Path, posterior: Posterior, path: Path | str) -> None:
    """Draw a field, whatever settings the user has; a failure is reported and costs nothing else."""
    from ..photometry.images import open_mosaic

    try:
        from matplotlib import style

        from ..plots.sources import plot_field

        with open_mosaic(path) as image, style.context("default"):
            plot_field(posterior, image.data)[0].figure.savefig(target, dpi=180)
    except Exception as error:
        target.unlink(missing_ok=True)
        click.echo(f"{target.name} could not be drawn: {options.sentence(error)}", err=True)


def _report(posterior: Posterior, names: list[str], given: dict) -> None:
    """Print the main columns of the catalog, and what was measured or assumed."""
    from ..deblending.products import short_table

    catalog, output, unit = posterior.catalog(), str(given["output"]), posterior.dataset.attrs["unit"]
    table = short_table(catalog, most=len(catalog) if given["json"] else 20)
    assumed = [*filter(None, posterior.dataset.attrs.get("notes", "").split("; "))]
    if given["json"]:
        sources = [dict(zip(table.colnames, row, strict=True)) for row in table.as_array().tolist()]
        found = {"sources": sources, "unit": unit, "notes": assumed, "output": output, "files": names}
        click.echo(json.dumps(json.loads(json.dumps(found), parse_constant=lambda _: None)))  # JSON has no NaN
    elif given["each"]:
        click.echo(f"{len(catalog)} sources written to {output}")
    else:
        lines = partial(table.pformat, max_width=-1, max_lines=-1, show_unit=False)
        for name in SPARED:
            if len(lines()[0]) > get_terminal_size().columns:
                table.remove_columns([column for column in table.colnames if re.match(f"{name}(_|$)", column)])
        rest = [f"... and {len(catalog) - len(table)} more"] if len(catalog) > len(table) else []
        assumed = [f"fluxes are in {unit}", *assumed] if unit else assumed
        click.echo("\n".join([*lines(), *rest, *assumed, f"written to {output}: {', '.join(names)}"]))
