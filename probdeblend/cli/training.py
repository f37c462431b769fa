"""Simulate sets of blends, train networks, and fit a PSF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    FILE,
    crowding_option,
    exclusive,
    overwrite_option,
    picked,
    probabilities,
    progress,
    resume_option,
    seed_option,
    weights_option,
    workers_option,
)

if TYPE_CHECKING:
    from ..training.streams import Mixture

__all__: list[str] = []  # used from the command line alone


@click.command()
@click.argument("output", type=FILE)
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Number of blends.")
@seed_option
@click.option(
    "--renderer",
    type=click.Choice(["galsim", "torch"]),
    default="galsim",
    show_default=True,
    help="Rendering engine.",
)
@click.option(
    "--prior",
    type=click.Choice(["default", "published"]),
    default="published",
    show_default=True,
    help="Population: the published test set, or the training population, which is fainter.",
)
@click.option(
    "--separation", metavar="RULE", help="Where companions lie: published, public-code, paper-text, anywhere or close."
)
@click.option("--smooth", is_flag=True, help="Every galaxy is one Sérsic profile.")
@click.option("--white", is_flag=True, help="Uncorrelated sky noise.")
@crowding_option
@click.option("--sky-rms", type=float, default=3e-3, show_default=True, help="Sky noise per pixel in e-/s.")
@click.option(
    "--exposure", type=float, default=3200.0, show_default=True, help="Exposure time in s; inf for no photon noise."
)
@workers_option
@resume_option
@overwrite_option
def simulate(output: Path, **options: object) -> None:
    """Simulate blends as CANDELS F160W observes them, with their truth, and write them to OUTPUT, a folder of HDF5 files.

    \b
    Example:
      probdeblend simulate test --count 2000 --seed 1
    """  # noqa: D301
    from ..scene import Instrument
    from ..simulation.galsim import render_galsim, render_torch, simulate_blends
    from ..simulation.prior import Prior
    from ..simulation.sets import finished_batches, write_blends

    prior = getattr(Prior, options["prior"])()
    if options["separation"] is not None:
        prior = replace(prior, separation=options["separation"], anywhere_fraction=0.0)
    prior = replace(prior, smooth=options["smooth"], crowding=probabilities(options["crowding"]))
    instrument = Instrument.candels_f160w(sky_rms=options["sky_rms"], exposure=options["exposure"])
    instrument = instrument.replace(noise_kernel=None) if options["white"] else instrument
    render = {"galsim": render_galsim, "torch": render_torch}[options["renderer"]]
    size = min(options["count"], 64)
    conditions = ("separation", "smooth", "white", "crowding", "sky_rms", "exposure")
    names = ("count", "seed", "renderer", "prior", *conditions)
    settings = {"command": "simulate"} | picked(options, *names)
    first = finished_batches(output, settings) if options["resume"] else 0
    batches = simulate_blends(
        options["count"],
        prior=prior,
        instrument=instrument,
        seed=options["seed"],
        render=render,
        batch_size=size,
        first=first,
        workers=options["workers"],
    )
    bar = progress(batches, options["count"], size, first)
    writing = {"instrument": instrument, "settings": settings, "first": first}
    count = write_blends(output, bar, **writing, overwrite=options["overwrite"])
    click.echo(f"{count} blends written to {output}")


@click.command()
@click.argument("output", type=FILE, default="weights.safetensors")
@click.option("--steps", type=click.IntRange(1), default=20_000, show_default=True, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Blends a batch.")
@seed_option
@click.option("--data", type=FILE, help="A set of blends to train on.  [default: an endless simulated stream]")
@click.option("--library", type=FILE, multiple=True, help="A library of lone galaxies to blend; may be repeated.")
@click.option("--real-fraction", type=float, default=0.5, show_default=True, help="Share of blends from libraries.")
@resume_option
@overwrite_option
def train(output: Path, **options: object) -> None:
    """Train a network on simulated blends and write its weights to OUTPUT (weights.safetensors).

    Its defaults are the recipe of the weights that ship with the package.

    \b
    Example:
      probdeblend train my.safetensors --resume
    """  # noqa: D301
    from ..training.recipe import train_weights

    data, libraries, real = (options.pop(name) for name in ("data", "library", "real_fraction"))
    if data is not None and libraries:
        raise ValueError("data and library exclude each other, got both")
    source = _mixtures(libraries, real) if libraries else data
    train_weights(output, source=source, **options)
    click.echo(f"weights written to {output}")


@click.command()
@click.argument("output", type=FILE, default="weights.safetensors")
@weights_option
@click.option("--blends", type=click.IntRange(10), default=256_000, show_default=True, help="Blends to learn from.")
@click.option("--steps", type=click.IntRange(1), default=60_000, show_default=True, help="Number of batches of 256.")
@seed_option
@resume_option
@overwrite_option
def retrain(output: Path, weights: Path | None, **options: object) -> None:
    """Go on training the hidden layers of weights, with a new head, and write OUTPUT (weights.safetensors).

    What the encoder says of simulated blends is computed once, and kept beside OUTPUT until all is done: 8 kB a
    blend. Masks stay as they are. A calibrator is not taken over: calibrate the new weights.

    \b
    Example:
      probdeblend retrain my.safetensors --weights first.safetensors
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.recipe import retrain_weights

    retrain_weights(load(weights), output, **options)
    click.echo(f"weights written to {output}")


def _mixtures(libraries: tuple[Path, ...], real_fraction: float) -> tuple[Mixture, Mixture]:
    """Train on three fifths of the galaxies and validate on a fifth; the last fifth is left to test on."""
    from dataclasses import replace

    from ..surveys.collect import read_libraries
    from ..training.recipe import default_mixture

    library = read_libraries(libraries)
    training, validation, _ = library.select(library.keep).split()
    mixture = replace(default_mixture(), library=training, real_fraction=real_fraction)
    return mixture, replace(mixture, library=validation)


@click.command("fit-psf")
@click.argument("image", type=FILE)
@click.option("--pixel-scale", type=float, required=True, help="Arcsec per pixel of IMAGE.")
@click.option("--output", type=FILE, default="probdeblend-psf", show_default=True, help="Folder to write.")
@click.option("--name", default="f160w", show_default=True, help="Filter name, used in file names.")
@overwrite_option
def fit_psf(image: Path, pixel_scale: float, output: Path, name: str, overwrite: bool) -> None:
    """Fit the optical model to IMAGE, an effective PSF; write the model and its PSF at 0.06" per pixel.

    \b
    Example:
      probdeblend fit-psf f160w.fits --pixel-scale 0.04 --output psf
    """  # noqa: D301
    from .._files import output_folder
    from ..photometry.images import read_psf
    from ..simulation import psf as optics

    files = [f"psf_{name}.npy", f"psf_{name}.json"]
    with output_folder(output, overwrite=overwrite, files=files) as folder:
        fit = optics.fit_psf(read_psf(image, pixel_scale=pixel_scale), pixel_scale)
        optics.write_psf(fit, folder, name=name)
    measured, fitted = fit.fwhm
    click.echo(f'FWHM {fitted:.3f}" (measured {measured:.3f}")')
    click.echo(f"largest residual {fit.max_residual:.1%} of the peak")
    click.echo(f"written to {output}: {', '.join(files)}")
