"""Deblend an image."""

from __future__ import annotations

import json
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.resources import files
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from astropy.table import QTable
    from dask.distributed import Client
    from tqdm import tqdm

__all__: list[str] = []  # used from the command line alone

EXAMPLE = {"psf": ("candels_f160w",), "rms": ("0.003",), "gain": 3200.0, "wavelength": (1.54,)}


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
@options.workers(0)
@options.overwrite
@click.option(
    "--table", type=click.Choice(["ecsv", "fits", "vot", "parquet"]), default="ecsv", help="Catalog's format."
)
@click.option("--save-draws", is_flag=True, help="Also write the whole posterior, as draws.nc.")
@click.option("--json", is_flag=True, help="Print the main columns as JSON, with all rows.")
@options.weights
@options.calibrator
def deblend(images: tuple[Path, ...], **given: object) -> None:
    """Find the sources in IMAGES and deblend them; without IMAGES, deblend the example that ships.

    IMAGES are the bands of one image, on one grid of pixels. --psf, --rms, --zero-point and --wavelength may be
    repeated, once per band. With --each, IMAGES are images of one band; those that have a folder already are left out,
    and --workers share the others.

    \b
    Example:
      probdeblend deblend field.fits --psf psf.fits --rms rms.fits --output field
    """  # noqa: D301
    from tqdm import tqdm

    from ..deblending import deblend_files

    options.exclusive(given, "calibrator", "no_calibrator")
    options.exclusive(given | click.get_current_context().find_root().params, "quiet", "json")
    if not images:
        images = (Path(str(files("probdeblend") / "data" / "example.fits")),)
        given |= {name: value for name, value in EXAMPLE.items() if not given[name]}
    folders = {given["output"]: options.bands(given, images)}
    if given["each"]:
        folders = {given["output"] / path.name.partition(".fit")[0]: options.bands(given, [path]) for path in images}
        if len(folders) < len(images):
            raise ValueError(f"images must have different names with each, got {len(folders)} of {len(images)}")
    elif given["workers"]:
        raise ValueError(f"workers must be 0 without each, got {given['workers']}")
    elif given["output"].exists() and not given["overwrite"]:
        raise FileExistsError(f"{given['output']}: exists already")
    arguments = options.observed(given) | {"calibrate": not given["no_calibrator"]}
    arguments |= options.picked(given, "weights", "calibrator", "positions", "draws", "passes", "seed", "tile")
    arguments |= options.picked(given, "table", "save_draws", "overwrite")
    failed = 0
    with (
        _cluster(given["workers"]) as client,
        tqdm(total=len(folders), desc="images", unit="", leave=False, disable=None if sys.stderr else True) as bar,
    ):
        arguments["progress"] = partial(_advance, bar) if client is None else None
        for folder, catalog in deblend_files(folders, client=client, **arguments):
            bar.clear()
            bar.update(client is not None)
            if isinstance(catalog, Exception):
                if not given["each"]:
                    raise catalog
                failed += 1
                click.echo(f"Error in {folder}: {options.sentence(catalog)}", err=True)
            elif catalog is None:
                click.echo(f"{folder}: finished already", err=True)
            else:
                _report(catalog, folder, given)
    if failed:
        raise click.ClickException(f"{failed} of {len(images)} images could not be deblended")


def _cluster(workers: int) -> AbstractContextManager[Client | None]:
    """Start worker processes, if any are wanted."""
    if not workers:
        return nullcontext()
    from dask.distributed import Client

    return Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.set_description("sources" if done < total else "fluxes")
    bar.update(done - bar.n)


def _report(catalog: QTable, output: Path, given: dict) -> None:
    """Print the main columns of a catalog, and what was measured or assumed."""
    from ..deblending import short_table

    table, unit = short_table(catalog, most=len(catalog) if given["json"] else 20), catalog.meta["unit"]
    assumed = [*filter(None, catalog.meta.get("notes", "").split("; "))]
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if given["json"]:
        sources = [dict(zip(table.colnames, row, strict=True)) for row in table.as_array().tolist()]
        found = {"sources": sources, "unit": unit, "notes": assumed, "output": str(output), "files": names}
        click.echo(json.dumps(json.loads(json.dumps(found), parse_constant=lambda _: None)))  # JSON has no NaN
    elif given["each"]:
        failed = [note for note in assumed if note.startswith("field.png")]
        click.echo("; ".join([f"{len(catalog)} sources written to {output}", *failed]))
    else:
        lines = partial(table.pformat, max_width=-1, max_lines=-1, show_unit=False)
        for name in ("correlation", "star", "group", "existence", "mag", "flux_err"):  # only if there is room
            if len(lines()[0]) > get_terminal_size().columns:
                table.remove_columns([column for column in table.colnames if re.match(f"{name}(_|$)", column)])
        rest = [f"... and {len(catalog) - len(table)} more"] if len(catalog) > len(table) else []
        assumed = [f"fluxes are in {unit}", *assumed] if unit else assumed
        click.echo("\n".join([*lines(), *rest, *assumed, f"written to {output}: {', '.join(names)}"]))
