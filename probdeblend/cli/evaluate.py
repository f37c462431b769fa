"""Measure accuracy and coverage, and calibrate."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    FILE,
    calibrator_options,
    columns,
    exclusive,
    finite,
    hdu_option,
    overwrite_option,
    picked,
    pixel_scale_option,
    psf_option,
    refuse_existing,
    sampling_options,
    show,
    weights_option,
)

if TYPE_CHECKING:
    from ..deblending.deblender import Deblender
    from ..training.calibrate import CalibratorFit

__all__: list[str] = []  # used from the command line alone

MASK_BLENDS = 10_000  # hold millions of pixels with light
ACCURACY = ["method", "detected", "mape", "nmad_mag", "bias_mag", "outliers", "coverage_68", "coverage_90", "width"]
ACCURACY += ["crps_ln", "residual_correlation", "iou"]
TESTED = ["state", "quantity", "coverage_50", "coverage_68", "coverage_90", "coverage_95", "pull_sd"]
TESTED += ["interval_score", "width"]


@click.command(short_help="Measure accuracy and coverage on blends of known truth.")
@click.argument("blends", type=FILE)
@weights_option
@click.option("--count", is_flag=True, help="Count galaxies: raise the anomaly score where two are unlikely.")
@sampling_options
@click.option("--output", type=FILE, help="Also write the whole table, as ECSV.")
@overwrite_option
def evaluate(blends: Path, **options: object) -> None:
    """Measure the accuracy and coverage of the network and of SEP on BLENDS, a set that `simulate` or `inject` wrote.

    A second table shows how errors grow with the network's anomaly score.

    \b
    Example:
      probdeblend evaluate test --output accuracy.ecsv
    """  # noqa: D301
    from .._files import whole_file
    from ..deblending import weights
    from ..deblending.counts import default_counts
    from ..training import evaluate as evaluate_network

    output, overwrite = options.pop("output"), options.pop("overwrite")
    with nullcontext() if output is None else whole_file(output, overwrite=overwrite) as temporary:
        deblender = weights.load(options.pop("weights"))
        counter = default_counts(deblender) if options.pop("count") else None
        table, by_anomaly = evaluate_network(blends, deblender, counter=counter, **options)
        if temporary is not None:
            table.write(temporary, format="ascii.ecsv")
    show(table[ACCURACY])
    if len(by_anomaly):
        click.echo("\nThe network by anomaly score:")
        show(by_anomaly)


@click.command(short_help="Fit a calibrator to your own images.")
@click.option("--blends", type=FILE, help="Fit to a set of blends with truth, as `simulate` or `inject` writes it.")
@click.option("--images", type=FILE, multiple=True, help="Fit to blends in the sky of this image; may be repeated.")
@click.option("--catalog", type=FILE, help="Galaxies of a single image, with magnitudes.  [default: SEP's]")
@click.option("--columns", metavar="NAME=COLUMN,...", default="", help="The catalog's columns, as for `isolate`.")
@psf_option
@hdu_option
@click.option("--zero-point", type=float, callback=finite, help="AB magnitude of unit flux, where headers have none.")
@click.option("--exposure", type=float, help="Counts per unit of flux.  [default: that of the weights]")
@click.option(
    "--galaxies",
    type=click.Choice(["auto", "own", "simulated"]),
    default="auto",
    show_default=True,
    help="Blend the images' own isolated galaxies, or simulated ones; auto: their own where there are enough.",
)
@click.option("--magnitude", type=float, default=24.5, show_default=True, callback=finite, help="Faintest magnitude.")
@click.option("--count", type=click.IntRange(100), default=4000, show_default=True, help="Blends to fit to.")
@click.option("--least", type=click.IntRange(20), default=200, show_default=True, help="Least galaxies in a group.")
@click.option(
    "--repair",
    type=click.Choice(["conformal", "scale", "floor"]),
    default="conformal",
    show_default=True,
    help="Map whole quantiles; where galaxies are few, fit one factor (scale) or one error in quadrature (floor).",
)
@weights_option
@sampling_options
@click.option("--output", type=FILE, default="calibration", show_default=True, help="Folder to write.")
@overwrite_option
def calibrate(**options: object) -> None:
    """Fit a calibrator to blends made from your own images, and test it.

    Without images it is fitted to a set of blends, or to simulated blends of the training population, as the one
    that ships. OUTPUT holds calibrator.json (for `deblend --calibrator`), weights.safetensors (the weights with it
    inside, for `deblend --weights`), and the test: tested.ecsv and calibration.png.

    \b
    Example:
      probdeblend calibrate --images mosaic.fits --psf psf.fits --output survey
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.calibrate import write_fit

    exclusive(options, "blends", "images")
    refuse_existing(options["output"], overwrite=options["overwrite"])
    deblender = load(options["weights"])
    fit = (_fit_images if options["images"] else _fit_blends)(deblender, options)
    names = write_fit(options["output"], fit, deblender, overwrite=options["overwrite"])
    click.echo("\n".join(fit.calibrator.summary().pformat(max_width=-1, max_lines=-1, show_name=False)))
    click.echo("Each galaxy, repaired by a calibrator that was fitted on others:")
    show(fit.tested[TESTED])
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def _fit_blends(deblender: Deblender, options: dict) -> CalibratorFit:
    from ..training.calibrate import fit_calibrator
    from ..training.evaluation import compare
    from ..training.features import training_population
    from ..training.streams import stored_blends

    sampling = picked(options, "draws", "passes", "seed")
    if options["blends"] is None:
        words = "simulated blends of the training population"
        family = training_population(deblender, close_fraction=deblender.description.close_fraction)
        blends = family.blends(options["count"], seed=options["seed"])
    else:
        words = f"blends of {options['blends'].name}"
        blends = stored_blends(options["blends"])
    answers = compare(blends, deblender, sep=(), **sampling)
    masks, close = answers.sums, deblender.description.encoder_close_fraction
    if options["blends"] is None and close != deblender.description.close_fraction:
        # Masks come from the encoder, and what it has not learned would spoil what it has.
        count, seed = min(options["count"], MASK_BLENDS), options["seed"] + 1
        others = training_population(deblender, close_fraction=close)
        masks = compare(others.blends(count, seed=seed), deblender, sep=(), **sampling).sums
    words = f"{len(answers.network)} {words}"
    settings = picked(options, "least", "repair")
    return fit_calibrator(answers.network, answers, masks=masks, fitted_on=words, **settings)


def _fit_images(deblender: Deblender, options: dict) -> CalibratorFit:
    import torch

    from ..photometry.images import read_psf
    from ..training.calibrate import Survey, calibrate_survey

    if len(options["images"]) > 1 and options["catalog"] is not None:
        raise ValueError(f"catalog must come with one image, got {len(options['images'])} images")
    instrument = deblender.instrument
    changes = {name: options[name] for name in ("zero_point", "exposure") if options[name] is not None}
    if options["psf"] is not None:
        psf = read_psf(options["psf"], pixel_scale=instrument.pixel_scale)
        deblender.check_psf(psf)
        changes["psf"] = torch.from_numpy(psf).float()
    survey = Survey(
        options["images"],
        instrument.replace(**changes),
        columns=tuple(columns(options["columns"]).items()),
        **picked(options, "hdu", "catalog", "galaxies", "magnitude", "count"),
    )
    settings = picked(options, "least", "repair", "seed", "draws", "passes")
    return calibrate_survey(survey, deblender, **settings)


@click.command(short_help="Compare the same blends in two exposures.")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@hdu_option
@pixel_scale_option
@click.option(
    "--correlation",
    type=float,
    default=0.0,
    show_default=True,
    help="Noise correlation of A and B: n / sqrt(n_A n_B) where they share n exposures.",
)
@click.option("--zero-points", type=(float, float), help="AB magnitudes of unit flux in A, B.  [default: the headers']")
@click.option("--exposures", type=(float, float), help="Counts per unit of flux in A and B, for SEP's photon noise.")
@sampling_options
@click.option("--output", type=FILE, default="repeat", show_default=True, help="Folder to write.")
@overwrite_option
@weights_option
@calibrator_options
def repeat(a: Path, b: Path, **options: object) -> None:
    """Compare the fluxes of the same blends in A and B, two images of one sky on the same pixels.

    If the errors are right, the differences over their errors, z, have mean 0 and standard deviation 1: no truth is
    needed. OUTPUT holds z.ecsv (one row per galaxy, for the network and for SEP) and repeat.png.

    \b
    Example:
      probdeblend repeat first_epoch.fits second_epoch.fits --output epochs
    """  # noqa: D301
    from .._files import output_folder
    from ..deblending import weights
    from ..plots.calibration import plot_pulls
    from ..training.repeat import compare_exposures, read_exposures

    exclusive(options, "calibrator", "no_calibrator")
    names = ("z.ecsv", "repeat.png")
    with output_folder(options["output"], overwrite=options["overwrite"], files=names) as folder:
        first, second = read_exposures(a, b, hdu=options["hdu"])
        deblender = weights.load(options["weights"], calibrator=options["calibrator"])
        scale = first.pixel_scale if options["pixel_scale"] is None else options["pixel_scale"]
        if scale is None:
            raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
        deblender.check_pixel_scale(scale)
        result = compare_exposures(
            first.data,
            second.data,
            deblender,
            correlation=options["correlation"],
            zero_points=options["zero_points"] or (first.zero_point, second.zero_point),
            exposures=options["exposures"] or (inf, inf),
            calibrate=not options["no_calibrator"],
            **picked(options, "draws", "passes", "seed"),
        )
        result.table.write(folder / names[0], format="ascii.ecsv")
        plot_pulls(result.pulls()).figure.savefig(folder / names[1], dpi=120)
    click.echo("\n".join(result.summary().pformat(max_width=-1, max_lines=-1)))
    click.echo(f"sky rms of a pixel: {result.sky_rms[0]:.4g} and {result.sky_rms[1]:.4g} in units of A")
    click.echo(f"the correlation of neighboring pixels, not in SEP's errors, raises them by {result.noise_factor:.2f}")
    click.echo(f"written to {options['output']}: {', '.join(names)}")
