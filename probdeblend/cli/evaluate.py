"""Measure accuracy and coverage, and calibrate."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .options import FILE

__all__: list[str] = []  # used from the command line alone

SIMULATED = 250  # fields; they take eight minutes on one core
TABLES = ("accuracy", "detection", "summary")
ACCURACY = ["method", "flux", "sources", "count", "mape", "nmad_mag", "bias_mag", "outliers", "coverage_68", "joint_68"]
ACCURACY += ["total_68", "iou"]


@click.command(short_help="Measure accuracy and coverage on scenes of known truth.")
@click.argument("scenes", type=FILE)
@options.weights
@options.calibrator
@options.seed
@click.option("--output", type=FILE, help="Folder to write the whole tables to.")
@options.overwrite
def evaluate(scenes: Path, **given: object) -> None:
    """Measure the accuracy, coverage and detections of the network and of SEP on SCENES, a set with truth.

    Fluxes are measured at the true positions, and judged by the number of sources in a group. Such sets are written by
    `simulate` and `inject`.

    \b
    Example:
      probdeblend evaluate crowded --output accuracy
    """  # noqa: D301
    from contextlib import nullcontext

    from ..deblending import weights
    from ..training import evaluation

    options.exclusive(given, "calibrator", "no_calibrator")
    output, names = given["output"], [f"{name}.ecsv" for name in TABLES]
    folder = nullcontext() if output is None else options.new_folder(given, scenes)
    with folder as path:
        deblender = weights.load(given["weights"], calibrator=given["calibrator"])
        if given["no_calibrator"]:
            deblender.use(None)
        found = evaluation.evaluate(evaluation.stored_scenes(scenes), deblender, seed=given["seed"])
        for name in TABLES if path is not None else ():
            getattr(found, name).write(path / f"{name}.ecsv", format="ascii.ecsv")
    options.show(found.accuracy[ACCURACY])
    click.echo()
    options.show(found.summary)
    if output is not None:
        click.echo(f"written to {output}: {', '.join(names)}")


@click.command(short_help="Fit a calibrator to scenes of known truth.")
@click.argument("scenes", type=FILE, nargs=-1)
@click.option("--count", type=click.IntRange(5), help="Number of fields to simulate, without SCENES.  [default: 250]")
@click.option("--least", type=click.IntRange(20), default=400, help="Least sources with one map.")
@options.weights
@options.seed
@options.output("calibration")
@options.overwrite
def calibrate(scenes: tuple[Path, ...], **given: object) -> None:
    """Fit a calibrator to SCENES, sets with truth like the images to deblend, and test it.

    Sets may be of different cameras, sizes and bands. Without any, fields with sources like those of the training are
    simulated, and deblended as images are: sky and noise are measured.
    OUTPUT holds calibrator.json (for `deblend --calibrator`), weights.safetensors (the weights with it inside, for
    `deblend --weights`) and tested.ecsv: fitted to four fifths of the scenes, tested on the others.

    \b
    Example:
      probdeblend calibrate real-training --output survey
    """  # noqa: D301
    from itertools import chain

    from ..deblending import weights
    from ..training.calibrate import AsImages, fit_calibrator, training_fields
    from ..training.evaluation import stored_scenes

    options.exclusive({"scenes": scenes} | given, "scenes", "count")
    names, count = ("calibrator.json", "weights.safetensors", "tested.ecsv"), given["count"] or SIMULATED
    how = options.picked(given, "least", "seed") | {"fitted_on": ", ".join(map(str, scenes))}
    with options.new_folder(given, *scenes) as folder:
        deblender = weights.load(given["weights"])
        deblender.use(None)
        batches, deblends = chain.from_iterable(map(stored_scenes, scenes)), deblender
        if not scenes:
            batches, deblends = training_fields(count, seed=given["seed"]), AsImages(deblender)
            how["fitted_on"] = f"{count} simulated fields: pairs in CANDELS F160W, and crowds of random cameras"
        fit = fit_calibrator(batches, deblends, **how)
        fit.calibrator.save(folder / names[0])
        deblender.use(fit.calibrator)
        weights.save(deblender, folder / names[1])
        fit.tested.write(folder / names[2], format="ascii.ecsv")
    options.show(fit.tested[fit.tested["sources"] == "all"])
    click.echo()
    options.show(fit.probabilities)
    click.echo(f"written to {given['output']}: {', '.join(names)}")
