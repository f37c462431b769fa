"""Build libraries of isolated galaxies, and blend them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    FILE,
    columns,
    crowding_option,
    finite,
    hdu_option,
    overwrite_option,
    picked,
    probabilities,
    progress,
    refuse_existing,
    resume_option,
    seed_option,
    show,
    workers_option,
)

if TYPE_CHECKING:
    from ..scene import Blend
    from ..surveys.selection import Collection

__all__: list[str] = []  # used from the command line alone

PARTS = ("training", "validation", "test")


def _write(collection: Collection, options: Mapping[str, object]) -> None:
    """Write a library, and tell which galaxies it holds."""
    from ..surveys import write_library

    names = write_library(options["output"], collection.library, overwrite=options["overwrite"])
    table = collection.summary()
    show(table)
    click.echo(f"{table.meta['distinct']} distinct galaxies to keep")
    if "scatter" in table.meta:
        correction = "total over AUTO flux {aperture_correction:.3f}, scatter {scatter:.3f}".format(**table.meta)
        click.echo(f"aperture correction: {correction}")
    click.echo(f"written to {options['output']}: {', '.join(names)}")


@click.command(short_help="Cut isolated galaxies out of images.")
@click.argument("images", type=FILE, nargs=-1, required=True)
@click.option("--output", type=FILE, required=True, help="Folder to write.")
@click.option("--catalog", type=FILE, help="Galaxies of a single image, as FITS, ECSV or CSV.  [default: SEP's]")
@click.option(
    "--columns",
    metavar="NAME=COLUMN,...",
    default="",
    help="The catalog's columns for x, y (from 0) or ra, dec; magnitude; id; p_sph, p_disk, p_irr.",
)
@hdu_option
@click.option("--rms", type=FILE, help="Sky noise map of a single image.")
@click.option("--magnitude", type=float, default=23.5, show_default=True, callback=finite, help="Faintest magnitude.")
@click.option("--probability", type=float, default=0.8, show_default=True, help="Least probability of the type.")
@click.option("--zero-point", type=float, callback=finite, help="AB magnitude of unit flux, where headers have none.")
@seed_option
@overwrite_option
def isolate(images: tuple[Path, ...], **options: object) -> None:
    """Cut isolated galaxies out of IMAGES: a library with contact sheets, and keep.csv, a list for you to edit.

    \b
    Example:
      probdeblend isolate mosaic.fits --catalog sources.fits --columns ra=RA,dec=DEC,magnitude=H_MAG --output isolated
    """  # noqa: D301
    from ..scene import Instrument
    from ..surveys import Selection, isolate_galaxies

    changes = {} if options["zero_point"] is None else picked(options, "zero_point")
    refuse_existing(options["output"], overwrite=options["overwrite"])
    collection = isolate_galaxies(
        images,
        **picked(options, "catalog", "hdu", "rms", "seed"),
        columns=columns(options["columns"]),
        instrument=Instrument.candels_f160w().replace(**changes),
        selection=Selection(options["magnitude"], options["probability"]),
    )
    _write(collection, options)


@click.command(short_help="Observe galaxies of other surveys as CANDELS F160W.")
@click.argument("file", type=FILE)
@click.option("--output", type=FILE, required=True, help="Folder to write.")
@click.option("--identity", help="Name of the single galaxy in FILE, a cube of its stamps.  [default: FILE's name]")
@click.option("--sky-rms", type=float, default=3e-3, show_default=True, help="Sky noise per pixel in e-/s.")
@click.option("--exposure", type=float, default=3200.0, show_default=True, help="Exposure time in s.")
@seed_option
@overwrite_option
def reobserve(file: Path, **options: object) -> None:
    """Observe the galaxies of FILE as CANDELS F160W would: GalSim's RealGalaxy catalog, or a cube of stamps.

    \b
    Example:
      probdeblend reobserve real_galaxy_catalog.fits --output cosmos
    """  # noqa: D301
    from ..scene import Instrument
    from ..surveys import reobserve_galaxies

    instrument = Instrument.candels_f160w(**picked(options, "sky_rms", "exposure"))
    refuse_existing(options["output"], overwrite=options["overwrite"])
    collection = reobserve_galaxies(file, **picked(options, "identity", "seed"), instrument=instrument)
    _write(collection, options)


@click.command(short_help="Blend isolated galaxies.")
@click.argument("libraries", type=FILE, nargs=-1, required=True)
@click.option("--output", type=FILE, required=True, help="Set to write.")
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Number of blends.")
@click.option("--part", type=click.Choice([*PARTS, "all"]), default="all", show_default=True, help="Galaxies to use.")
@click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the 60/20/20 split.")
@click.option("--separation", metavar="RULE", default="published", show_default=True, help="As for `simulate`.")
@click.option("--sky", type=click.Choice(["one", "both"]), default="one", show_default=True, help="Whose sky to keep.")
@click.option("--dimming", type=float, default=1.0, show_default=True, help="Dim galaxies by up to so many magnitudes.")
@crowding_option
@seed_option
@workers_option
@resume_option
@overwrite_option
def inject(libraries: tuple[Path, ...], **options: object) -> None:
    """Blend the isolated galaxies of LIBRARIES and write a set of blends with their truth.

    \b
    Example:
      probdeblend inject isolated cosmos --part training --count 10000 --output real-training
    """  # noqa: D301
    from ..scene import Instrument
    from ..simulation.sets import write_blends
    from ..surveys import PairRules, pair_blends, read_library

    library = read_library(*libraries)
    library = library.select(library.keep)
    if options["part"] != "all":
        library = library.split(seed=options["split_seed"])[PARTS.index(options["part"])]
    rules = PairRules(crowding=probabilities(options["crowding"]))
    rules = replace(rules, **picked(options, "separation", "sky", "dimming"))
    names = ("count", "part", "split_seed", "separation", "sky", "dimming", "crowding", "seed")
    settings = {"command": "inject"} | picked(options, *names) | {"library": library.digest()}
    size = min(options["count"], 64)
    instrument = Instrument.candels_f160w()
    work = {"instrument": instrument, "rules": rules, "batch_size": size} | picked(options, "seed", "workers")

    def batches(first: int) -> Iterable[Blend]:
        return progress(pair_blends(library, options["count"], **work, first=first), options["count"], size, first)

    writing = {"instrument": instrument, "settings": settings} | picked(options, "resume", "overwrite")
    count = write_blends(options["output"], batches, **writing)
    click.echo(f"{count} blends of {len(set(library.identity))} galaxies written to {options['output']}")
