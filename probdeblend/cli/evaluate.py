"""Measure accuracy and coverage, and calibrate."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from . import options
from .options import FILE

__all__: list[str] = []  # used from the command line alone

FIELDS, LEAST_FIELDS = 250, 40  # by default, of one band or simulated: a quarter of an hour on two cores; and of many
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
    output = given["output"]
    folder = nullcontext() if output is None else options.new_folder(given, scenes)
    with folder as path:
        deblender = weights.load(given["weights"], calibrator=given["calibrator"])
        if given["no_calibrator"]:
            deblender.use(None)
        found = evaluation.evaluate(evaluation.stored_scenes(scenes), deblender, seed=given["seed"])
        for name, table in vars(found).items() if path is not None else ():
            table.write(path / f"{name}.ecsv", format="ascii.ecsv")
    found.accuracy[ACCURACY].pprint_all()
    click.echo()
    found.summary.pprint_all()
    if output is not None:
        click.echo(f"written to {output}: {', '.join(f'{name}.ecsv' for name in vars(found))}")


@click.command(short_help="Fit a calibrator to a survey's own images.")
@click.argument("paths", type=FILE, nargs=-1, metavar="[IMAGES|SCENES]...")
@options.observation
@click.option("--each", is_flag=True, help="IMAGES are fields of one band, instead of the bands of one field.")
@click.option("--catalog", type=FILE, help="Table of magnitudes or fluxes, and radii, that injected sources follow.")
@options.galaxies
@click.option("--count", type=click.IntRange(5), help="Number of fields.  [default: 250, fewer of several bands]")
@click.option("--least", type=click.IntRange(20), default=400, help="Least sources with one map.")
@options.weights
@options.seed
@options.output("calibration")
@options.resume
@options.overwrite
def calibrate(paths: tuple[Path, ...], **given: object) -> None:
    """Fit a calibrator to sources of known flux in IMAGES, test it, and say how wrong error bars were without it.

    IMAGES are the bands of one field, as for `deblend`. Galaxies and stars are injected into windows of them. They are
    as bright and as large as those of --catalog, such as one that `deblend` wrote, if there is one. SCENES are sets
    with truth, of any cameras; without both, fields with sources like those of the training are simulated. With
    --galaxies, half of the injected or simulated galaxies are real ones, such as `isolate` cuts out; --fold leaves
    some of them for a test.
    OUTPUT holds calibrator.json (for `deblend --calibrator`), weights.safetensors (the weights with it inside, for
    `deblend --weights`), report.ecsv and tested.ecsv. What is done is kept beside OUTPUT, and --resume continues it.

    \b
    Example:
      probdeblend calibrate field.fits --psf psf.fits --output survey
    """  # noqa: D301
    from .._files import unfinished_folder
    from ..deblending import weights
    from ..training.calibrate import answers_of, fit_answers

    deblender = weights.load(given["weights"])
    before = deblender.calibrator
    deblender.use(None)
    of_images = options.picked(given, "each", "hdu", "catalog") | options.observed(given)
    sources = options.sources(given)
    count, fields, fitted_on = _fields(paths, given | {"sources": sources}, of_images)
    settings = {"paths": [*map(str, paths)], "seed": given["seed"], "weights": deblender.digest}
    names = sorted(galaxy.identity for galaxy in getattr(sources, "kept", ()))
    settings |= {name: str(value) for name, value in of_images.items()} | {"galaxies": names}
    with (
        unfinished_folder(given["output"], settings, **options.picked(given, "resume", "overwrite")) as kept,
        options.new_folder(given, *paths, *given["psf"], *given["rms"]) as folder,
    ):
        answers = answers_of(partial(fields, deblender), count, kept, seed=given["seed"])
        fit = fit_answers(answers, before=before, least=given["least"], fitted_on=fitted_on)
        deblender.use(fit.calibrator)
        fit.report.meta["comments"] = fit.findings()
        fit.calibrator.save(folder / "calibrator.json")
        weights.save(deblender, folder / "weights.safetensors")
        for name, table in (("report", fit.report), ("tested", fit.tested)):
            table.write(folder / f"{name}.ecsv", format="ascii.ecsv")
        names = sorted(path.name for path in folder.iterdir())
    tested = fit.tested[fit.tested["sources"] == "all"]["state", "bands", *ACCURACY[1:-1]]
    for table in filter(len, (tested, fit.probabilities, fit.report)):  # astropy cannot print one without columns
        table.pprint_all()
        click.echo()
    click.echo("\n".join([*fit.findings(), f"written to {given['output']}: {', '.join(names)}"]))


def _fields(paths: tuple[Path, ...], given: dict, of_images: dict) -> tuple[int, Callable, str]:
    """Return the number of fields, what makes them for a deblender from their numbers, and their description."""
    from .._files import read_table
    from ..simulation import read_scenes
    from ..training import evaluation, fields

    text, on_images = ", ".join(map(str, paths)), not all(path.is_dir() for path in paths)
    if wrong := [name for name, value in of_images.items() if not on_images and value not in (None, False)]:
        raise ValueError(f"{wrong[0]} must be left out without images, got {of_images[wrong[0]]}")
    how = options.picked(given, "sources", "seed")
    if not paths:
        count = given["count"] or FIELDS
        text = f"{count} simulated fields of the training's cameras, with pairs in CANDELS F160W where that is one"
        text += ", half of the galaxies real" if given["galaxies"] else ""
        return count, partial(fields.simulated_fields, **how), text
    if not on_images:
        options.exclusive({"scenes": paths} | given, "scenes", "count")
        options.exclusive({"scenes": paths} | given, "scenes", "galaxies")
        parts = evaluation.stored_parts(paths)
        return len(parts), lambda deblender, numbers: ((n, read_scenes(*parts[n]), deblender) for n in numbers), text
    bands = options.bands(given, paths)
    images = [[band] for band in bands] if given["each"] else [bands]
    count = given["count"] or max(LEAST_FIELDS, FIELDS // len(images[0]))
    how |= {"images": images, "catalog": given["catalog"] and read_table(given["catalog"])} | options.observed(given)
    return count, partial(fields.injected_fields, **how), f"{count} windows of {text}"
