"""Simulate sets of scenes, and train networks."""

from __future__ import annotations

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
