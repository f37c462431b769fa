"""Check inference: refinement against its bound, and a companion that moves past its primary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import click

from probdeblend import __version__
from probdeblend.cli.options import (
    FILE,
    finish,
    method_option,
    overwrite_option,
    resume_option,
    sampling_options,
    weights_option,
)

if TYPE_CHECKING:
    from probdeblend.deblending.deblender import Deblender

__all__: list[str] = []  # what is here is used from the command line


@contextmanager
def _resumable(options: Mapping[str, object], settings: Mapping[str, object], deblender: Deblender) -> Iterator[Path]:
    """Keep finished parts beside the output until all is done."""
    from probdeblend._files import unfinished_folder

    calibrator, guide = deblender.calibrator, options.get("guide")
    subject = {
        "probdeblend": __version__,
        "network": deblender.digest,
        "calibrator": None if calibrator is None else calibrator.fitted_on,
        "guide": None if guide is None else sha256(guide.read_bytes()).hexdigest(),
    }
    replaced = {name: options[name] for name in ("resume", "overwrite")}
    kept, done = unfinished_folder(options["output"], settings | subject, **replaced), False
    try:
        yield kept
        done = True
    finally:
        if done or not any(kept.glob("*.npz")):
            shutil.rmtree(kept)


@click.command("refine-check")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Blends to draw and refine.")
@sampling_options
@weights_option
@click.option("--guide", type=FILE, help="A guide's file, to start from.  [default: that of the package]")
@method_option
@click.option("--output", type=FILE, default="refined", show_default=True, help="Folder to write.")
@resume_option
@overwrite_option
def refine_check(**options: object) -> None:
    """Refine blends drawn from the generative model, and compare with the bound and with the network.

    Some seconds a blend. OUTPUT holds refined.ecsv (a row a method); what an interrupted run found is kept beside it.

    \b
    Example:
      probdeblend refine-check --count 100 --draws 400 --output refined
    """  # noqa: D301
    from benchmarks.refinement import refine_check as check
    from benchmarks.refinement import report
    from probdeblend.deblending.weights import load
    from probdeblend.refinement.guides import default_guide, load_guide

    settings = {name: options[name] for name in ("count", "draws", "passes", "method", "seed")}
    deblender, path = load(options["weights"]), options["guide"]
    guide = default_guide(deblender) if path is None else load_guide(path, deblender)
    with _resumable(options, settings, deblender) as kept:
        table = check(deblender, lambda image: guide(image).mean, kept=kept, **settings)
        finish(options, table, "refined", report(table))


@click.command()
@click.option("--noise-draws", type=click.IntRange(10), default=500, show_default=True, help="Images of each step.")
@click.option("--refine", is_flag=True, help="Refine 40 images of each step as well: seconds each.")
@sampling_options
@weights_option
@click.option("--output", type=FILE, default="march", show_default=True, help="Folder to write.")
@resume_option
@overwrite_option
def march(**options: object) -> None:
    """Move a companion past its primary, and compare errors of both fluxes with those quoted, SEP's beside.

    OUTPUT holds march.ecsv (a row a method, galaxy and step) and march.png; what an interrupted run found is kept
    beside it.

    \b
    Example:
      probdeblend march --noise-draws 100 --output march
    """  # noqa: D301
    from benchmarks.march import march as run
    from benchmarks.march import report
    from benchmarks.plot_march import plot_march
    from probdeblend.deblending.weights import load
    from probdeblend.refinement.guides import default_guide

    settings = {name: options[name] for name in ("noise_draws", "draws", "passes", "seed")}
    deblender = load(options["weights"])
    guide = default_guide(deblender) if options["refine"] else None
    start = None if guide is None else lambda image: guide(image).mean
    with _resumable(options, settings | {"refine": options["refine"]}, deblender) as kept:
        table = run(deblender, start=start, kept=kept, **settings)
        finish(options, table, "march", report(table), figure=plot_march(table))


@click.command("profile-check")
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Blends of each kind.")
@sampling_options
@weights_option
@click.option("--guide", type=FILE, help="A guide's file, to start from.  [default: that of the package]")
@click.option("--output", type=FILE, default="profiles", show_default=True, help="Folder to write.")
@resume_option
@overwrite_option
def profile_check(**options: object) -> None:
    """Refine galaxies that are not as the model has them, and see what the gates let through.

    Some seconds a blend, of four kinds of galaxies under two models: Sérsic profiles of any index, and of
    exponential disks alone. OUTPUT holds profiles.ecsv (a row a model and kind); what an interrupted run found is
    kept beside it.

    \b
    Example:
      probdeblend profile-check --count 100 --output profiles
    """  # noqa: D301
    from dataclasses import replace

    from benchmarks.profiles import profile_check as check
    from benchmarks.profiles import report
    from probdeblend.deblending.weights import load
    from probdeblend.refinement.guides import default_guide, load_guide
    from probdeblend.refinement.refiner import Refiner
    from probdeblend.simulation.prior import Prior

    deblender, path = load(options["weights"]), options["guide"]
    guide = default_guide(deblender) if path is None else load_guide(path, deblender)
    disks = replace(Prior.default(), type_probabilities=(0.0, 1.0, 0.0, 0.0), smooth=True)
    refiners = {"any index": Refiner(deblender, guide), "exponential": Refiner(deblender, guide, prior=disks)}
    settings = {name: options[name] for name in ("count", "draws", "passes", "seed")}
    with _resumable(options, settings, deblender) as kept:
        table = check(refiners, kept=kept, **settings)
        finish(options, table, "profiles", report(table))
