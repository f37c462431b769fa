"""Simulate sets of blends, train networks, and fit a PSF."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from ..scene import Blend
    from ..training.streams import Mixture

__all__: list[str] = []  # used from the command line alone

KINDS = ("weights", "readout", "guide", "counts")


@click.command(short_help="Simulate a set of blends.")
@click.argument("output", type=FILE)
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Number of blends.")
@options.seed
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
@click.option("--separation", metavar="RULE", help="Where companions lie: published, anywhere or close.")
@click.option("--smooth", is_flag=True, help="Every galaxy is one Sérsic profile.")
@click.option("--white", is_flag=True, help="Uncorrelated sky noise.")
@options.crowding
@click.option("--sky-rms", type=float, default=3e-3, show_default=True, help="Sky noise per pixel in e-/s.")
@click.option(
    "--exposure", type=float, default=3200.0, show_default=True, help="Exposure time in s; inf for no photon noise."
)
@options.workers
@options.resume
@options.overwrite
def simulate(output: Path, **given: object) -> None:
    """Simulate blends as CANDELS F160W observes them and write them, with their truth, to the folder OUTPUT.

    \b
    Example:
      probdeblend simulate test --count 2000 --seed 1
    """  # noqa: D301
    from ..scene import Instrument
    from ..simulation.galsim import render_galsim, render_torch, simulate_blends
    from ..simulation.prior import Prior
    from ..simulation.sets import write_blends

    prior = getattr(Prior, given["prior"])()
    if given["separation"] is not None:
        prior = replace(prior, separation=given["separation"], anywhere_fraction=0.0)
    prior = replace(prior, smooth=given["smooth"], crowding=options.probabilities(given["crowding"]))
    instrument = Instrument.candels_f160w(sky_rms=given["sky_rms"], exposure=given["exposure"])
    instrument = instrument.replace(noise_kernel=None) if given["white"] else instrument
    render = {"galsim": render_galsim, "torch": render_torch}[given["renderer"]]
    size = min(given["count"], 64)
    conditions = ("separation", "smooth", "white", "crowding", "sky_rms", "exposure")
    names = ("count", "seed", "renderer", "prior", *conditions)
    settings = {"command": "simulate"} | options.picked(given, *names)
    work = {"prior": prior, "instrument": instrument, "render": render, "batch_size": size}
    work |= options.picked(given, "seed", "workers")

    def batches(first: int) -> Iterable[Blend]:
        return options.progress(simulate_blends(given["count"], **work, first=first), given["count"], size, first)

    writing = {"instrument": instrument, "settings": settings} | options.picked(given, "resume", "overwrite")
    count = write_blends(output, batches, **writing)
    click.echo(f"{count} blends written to {output}")


@click.command(short_help="Train networks.")
@click.argument("output", type=FILE, required=False)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="weights",
    show_default=True,
    help="weights: a whole network; readout: its hidden layers and head; guide: where refinement starts; "
    "counts: the count network.",
)
@click.option("--steps", type=click.IntRange(1), help="Number of batches.  [default: as for the shipped network]")
@click.option("--batch-size", type=click.IntRange(1), help="Blends per batch; with --kind weights only.  [default: 16]")
@click.option(
    "--blends", type=click.IntRange(300), help="Blends to encode; not with --kind weights.  [default: as shipped]"
)
@click.option("--weights", type=FILE, help="Weights whose encoder to use; not with --kind weights.  [default: shipped]")
@click.option("--data", type=FILE, help="Set of blends to train weights on.  [default: an endless simulated stream]")
@click.option("--library", type=FILE, multiple=True, help="Library of isolated galaxies to blend; may be repeated.")
@click.option("--real-fraction", type=float, help="Fraction of blends from the libraries.  [default: 0.5]")
@options.seed
@options.resume
@options.overwrite
def train(output: Path | None, kind: str, **given: object) -> None:
    """Train a network on simulated blends and write it to OUTPUT (KIND.safetensors if not given).

    The defaults are the recipes of the shipped networks. The readout, the guide and the count network use the frozen
    encoder of --weights; its features are computed once and kept beside OUTPUT until training ends.

    \b
    Example:
      probdeblend train my.safetensors --resume
    """  # noqa: D301
    from .. import training
    from ..deblending.weights import load

    output = Path(f"{kind}.safetensors") if output is None else output
    others = ("weights", "blends") if kind == "weights" else ("batch_size", "data", "library", "real_fraction")
    if refused := [name for name in others if given[name] not in (None, ())]:
        raise ValueError(f"{refused[0]} must not be given with --kind {kind}, got {given[refused[0]]}")
    common = options.picked(given, "seed", "resume", "overwrite")
    chosen = {name: given[name] for name in ("steps", "blends", "batch_size") if given[name] is not None}
    if kind == "weights":
        table = training.train_weights(output, source=_source(given), **chosen, **common)
    else:
        recipe = getattr(training, f"train_{kind}")
        table = recipe(output, load(given["weights"]), **chosen, **common)
    options.show(table)
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in table.meta.items()))
    click.echo(f"written to {output}")


def _source(given: dict) -> Path | tuple[Mixture, Mixture] | None:
    """Return what weights are trained on; None for the default."""
    from ..surveys import read_library
    from ..training import Mixture

    options.exclusive(given, "data", "library")
    if not given["library"]:
        return given["data"]
    library = read_library(*given["library"])
    # Three fifths of the galaxies are to train on and a fifth to validate on; the last fifth is left for tests.
    training, validation, _ = library.select(library.keep).split()
    fraction = 0.5 if given["real_fraction"] is None else given["real_fraction"]
    mixture = Mixture(library=training, real_fraction=fraction)
    return mixture, replace(mixture, library=validation)


@click.command("fit-psf", short_help="Fit the optical model to a PSF.")
@click.argument("image", type=FILE)
@click.option("--pixel-scale", type=float, required=True, help="Arcsec per pixel of IMAGE.")
@options.output("probdeblend-psf")
@click.option("--name", default="f160w", show_default=True, help="Filter name, used in file names.")
@options.overwrite
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
