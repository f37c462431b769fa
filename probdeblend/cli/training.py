"""Simulate sets of scenes, and train networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from ..simulation.cameras import Camera

__all__: list[str] = []  # used from the command line alone


@click.command(short_help="Simulate a set of scenes.")
@click.argument("output", type=FILE)
@options.count
@options.population
@options.size
@click.option(
    "--camera",
    type=click.Choice(["candels_f160w", "random"]),
    default="candels_f160w",
    help="CANDELS F160W, or one drawn at random by the seed.",
)
@click.option("--bands", type=click.IntRange(1, 3), default=1, help="Bands of a random camera.")
@click.option("--fwhm", type=float, help="Width of a random camera's PSF in pixels.  [default: 1.8 to 5]")
@click.option("--sky-rms", type=float, default=3e-3, help="Sky noise of CANDELS in e-/s.")
@click.option("--exposure", type=float, default=3200.0, help="Exposure of CANDELS in s; inf: no photon noise.")
@click.option("--white", is_flag=True, help="Uncorrelated sky noise.")
@click.option("--galsim", is_flag=True, help="Render with GalSim, which takes ten times as long.")
@options.seed
@options.workers(0)
@options.resume
@options.overwrite
def simulate(output: Path, **given: object) -> None:
    """Simulate scenes and write them, with their truth, to the folder OUTPUT.

    \b
    Example:
      probdeblend simulate crowded --population default --sources 8 --camera random --bands 3
    """  # noqa: D301
    from ..simulation.galsim import render_galsim
    from ..simulation.profiles import render
    from ..simulation.scenes import Simulator

    engine = render_galsim if given["galsim"] else render
    simulator = Simulator(options.population_of(given), _camera(given), (given["size"],) * 2, engine=engine)
    conditions = ("camera", "bands", "fwhm", "sky_rms", "exposure", "white", "galsim")
    options.write_set(output, simulator.batches, given, {"command": "simulate"} | options.picked(given, *conditions))


def _camera(given: dict) -> Camera:
    import numpy as np

    from ..simulation.cameras import Camera, Cameras

    if given["camera"] == "random":
        limits = {} if given["fwhm"] is None else {"fwhm": (given["fwhm"],) * 2}
        bands = tuple(float(given["bands"] == number) for number in (1, 2, 3))
        cameras = Cameras(native_fraction=0.0, bands=bands, **limits)
        camera = cameras.sample(np.random.default_rng(given["seed"]))
    elif given["bands"] > 1 or given["fwhm"] is not None:
        raise ValueError("bands and fwhm must be given with --camera random, got those of candels_f160w")
    else:
        camera = Camera.candels_f160w(**options.picked(given, "sky_rms", "exposure"))
    return replace(camera, noise_kernel=None) if given["white"] else camera


@click.command(short_help="Train a network.")
@click.argument("output", type=FILE)
@click.option("--steps", type=click.IntRange(1), default=40_000, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Scenes per batch.")
@click.option("--start", type=FILE, help="Weights to train further.  [default: random ones]")
@options.workers(1)
@options.seed
@options.resume
@options.overwrite
def train(output: Path, **given: object) -> None:
    """Train a network on simulated scenes, on a GPU if there is one, and write its weights to OUTPUT.

    What is done is kept beside OUTPUT, and --resume continues it. One worker and the network keep two cores busy.

    \b
    Example:
      probdeblend train my.safetensors --resume
    """  # noqa: D301
    from ..training.recipes import train as train_network

    table = train_network(output, **given)
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in table.meta.items()))
    click.echo(f"written to {output}")
