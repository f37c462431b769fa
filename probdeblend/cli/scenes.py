"""Simulate sets of scenes, of real galaxies as well, and train networks on them."""

from pathlib import Path

import click

from . import options
from .options import FILE

__all__: list[str] = []  # used from the command line alone


@click.command(short_help="Simulate a set of scenes.")
@click.argument("output", type=FILE)
@options.scenes
@click.option("--galsim", is_flag=True, help="Render with GalSim, which takes ten times as long.")
def simulate(output: Path, **given: object) -> None:
    """Simulate scenes and write them, with their truth, to the folder OUTPUT.

    \b
    Example:
      probdeblend simulate crowded --population default --sources 8 --camera random
    """  # noqa: D301
    from ..simulation import SimulatedSources, render, render_galsim

    sources = SimulatedSources(engine=render_galsim if given["galsim"] else render)
    options.write_set(output, sources, given, {"command": "simulate", "galsim": given["galsim"]})


@click.command(short_help="Cut isolated galaxies out of an image.")
@click.argument("images", type=FILE, nargs=-1, required=True)
@options.observation
@click.option("--positions", type=FILE, help="Table with x, y (from 0) or ra, dec of galaxies.  [default: all sources]")
@click.option("--least-snr", type=float, default=20.0, callback=options.finite, help="Least signal-to-noise ratio.")
@options.output(None)
@options.overwrite
def isolate(images: tuple[Path, ...], **given: object) -> None:
    """Cut isolated galaxies out of IMAGES: a library with contact sheets, and keep.csv, a list for you to edit.

    IMAGES are the bands of one image, on one grid of pixels. --psf, --rms, --zero-point and --wavelength may be
    repeated, once per band.

    \b
    Example:
      probdeblend isolate mosaic.fits --psf psf.fits --least-snr 50 --output isolated
    """  # noqa: D301
    from ..surveys import isolate as isolated
    from ..surveys import write_library

    if given["output"].exists() and not given["overwrite"]:  # before the work, not after it
        raise FileExistsError(f"{given['output']}: exists already")
    how = options.picked(given, "positions", "least_snr") | {"origin": images[0].name.partition(".fit")[0]}
    galaxies = isolated(options.bands(given, images), **how, **options.observed(given))
    names = write_library(given["output"], galaxies, overwrite=given["overwrite"])
    click.echo(f"{sum(galaxy.keep for galaxy in galaxies)} of {len(galaxies)} galaxies to keep")
    click.echo(f"written to {given['output']}: {', '.join(names)}")


@click.command(short_help="Put isolated galaxies into scenes.")
@click.argument("libraries", type=FILE, nargs=-1, required=True)
@options.output(None, "Set")
@options.fold
@options.scenes
def inject(libraries: tuple[Path, ...], **given: object) -> None:
    """Simulate scenes of the real galaxies of LIBRARIES, and write a set of these with their truth.

    The fold of a galaxy, one of five, depends on its name alone: test on one, train and calibrate on the others.

    \b
    Example:
      probdeblend inject isolated --fold 0 --count 1000 --output real-test
    """  # noqa: D301
    galaxies = options.real_galaxies(libraries, given["folds"], 1.0)
    names = sorted(galaxy.identity for galaxy in galaxies.kept)
    options.write_set(given["output"], galaxies, given, {"command": "inject", "galaxies": names})


@click.command(short_help="Train a network.")
@click.argument("output", type=FILE)
@click.option("--steps", type=click.IntRange(1), default=40_000, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Scenes per batch.")
@click.option("--start", type=FILE, help="Weights to train further.  [default: random ones]")
@options.galaxies
@options.workers(1)
@options.seed
@options.resume
@options.overwrite
def train(output: Path, **given: object) -> None:
    """Train a network on simulated scenes, on a GPU if there is one, and write its weights to OUTPUT.

    On real galaxies, only what follows the trunk of weights to --start with is trained. What is done is kept beside
    OUTPUT, and --resume continues it. One worker and the network keep two cores busy.

    \b
    Example:
      probdeblend train my.safetensors --resume
    """  # noqa: D301
    from ..simulation.bank import Templates
    from ..simulation.stream import SceneStream
    from ..training.recipes import train as train_network

    templates = Templates(sources=options.sources(given), seed=given["seed"])
    stream = SceneStream(templates, **options.picked(given, "batch_size", "seed"))
    how = options.picked(given, "steps", "start", "workers", "resume", "overwrite")
    table = train_network(output, stream=stream, trunk=not given["galaxies"], **how)
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in table.meta.items()))
    click.echo(f"written to {output}")
