"""Build libraries of isolated galaxies, and put them into scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from . import options
from .options import FILE

__all__: list[str] = []  # used from the command line alone

PARTS = ("training", "validation", "test")


@click.command(short_help="Cut isolated galaxies out of images.")
@click.argument("images", type=FILE, nargs=-1, required=True)
@options.output(None)
@click.option("--catalog", type=FILE, help="Galaxies of a single image, as FITS, ECSV or CSV.  [default: SEP's]")
@click.option(
    "--columns",
    metavar="NAME=COLUMN,...",
    help="The catalog's columns for x, y (from 0) or ra, dec; magnitude; id; type.",
)
@options.hdu
@click.option("--magnitude", type=float, default=23.5, callback=options.finite, help="Faintest magnitude.")
@click.option(
    "--zero-point",
    type=float,
    callback=options.finite,
    help="AB magnitude of unit flux, where headers have none.  [default: that of CANDELS F160W]",
)
@options.seed
@options.overwrite
def isolate(images: tuple[Path, ...], **given: object) -> None:
    """Cut isolated galaxies out of IMAGES: a library with contact sheets, and keep.csv, a list for you to edit.

    \b
    Example:
      probdeblend isolate mosaic.fits --catalog sources.fits --columns ra=RA,dec=DEC,magnitude=H_MAG --output isolated
    """  # noqa: D301
    from ..simulation import Camera
    from ..surveys import isolate_galaxies, write_library

    changes = {} if given["zero_point"] is None else {"zero_point": (given["zero_point"],)}
    if given["output"].exists() and not given["overwrite"]:  # before the work, not after it
        raise FileExistsError(f"{given['output']}: exists already")
    collection = isolate_galaxies(
        images,
        **options.picked(given, "catalog", "hdu", "seed"),
        columns=options.columns(given["columns"]),
        instrument=replace(Camera.candels_f160w(), **changes),
        faintest=given["magnitude"],
    )
    names = write_library(given["output"], collection.library, overwrite=given["overwrite"])
    table = collection.summary()
    options.show(table)
    click.echo(f"{table.meta['distinct']} distinct galaxies to keep")
    click.echo(f"written to {given['output']}: {', '.join(names)}")


@click.command(short_help="Put isolated galaxies into scenes.")
@click.argument("libraries", type=FILE, nargs=-1, required=True)
@options.output(None, "Set")
@options.count
@click.option("--part", type=click.Choice([*PARTS, "all"]), default="all", help="Part (60, 20, 20 %) to use.")
@options.population
@options.size
@click.option("--dimming", type=float, default=1.0, help="Largest dimming in magnitudes.")
@options.seed
@options.workers(0)
@options.resume
@options.overwrite
def inject(libraries: tuple[Path, ...], **given: object) -> None:
    """Put the isolated galaxies of LIBRARIES into scenes, and write a set of these with their truth.

    \b
    Example:
      probdeblend inject isolated --part training --count 10000 --output real-training
    """  # noqa: D301
    from ..simulation import Camera
    from ..surveys import Injector, read_library

    library = read_library(*libraries)
    library = library.select(library.keep)
    if given["part"] != "all":
        library = library.split()[PARTS.index(given["part"])]
    how = options.picked(given, "size", "dimming")
    injector = Injector(library, Camera.candels_f160w(), options.population_of(given), **how)
    settings = {"command": "inject"} | options.picked(given, "part", "dimming")
    options.write_set(given["output"], injector.batches, given, settings | {"library": library.digest()})
