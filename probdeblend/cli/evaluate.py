"""Measure accuracy and coverage, and calibrate."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

if TYPE_CHECKING:
    from ..deblending.deblender import Deblender
    from ..training.calibrate import CalibratorFit

__all__: list[str] = []  # used from the command line alone

ACCURACY = ["method", "detected", "mape", "nmad_mag", "bias_mag", "outliers", "coverage_68", "coverage_90", "width"]
ACCURACY += ["crps_ln", "residual_correlation", "iou"]
TESTED = ["state", "quantity", "coverage_50", "coverage_68", "coverage_90", "coverage_95", "pull_sd"]
TESTED += ["interval_score", "width"]


@click.command(short_help="Measure accuracy and coverage on blends of known truth.")
@click.argument("blends", type=FILE)
@options.weights
@click.option("--count", is_flag=True, help="Count galaxies: raise the anomaly score where two are unlikely.")
@options.sampling
@click.option("--output", type=FILE, help="Also write the whole table, as ECSV.")
@options.overwrite
def evaluate(blends: Path, **given: object) -> None:
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

    output, overwrite = given.pop("output"), given.pop("overwrite")
    with nullcontext() if output is None else whole_file(output, overwrite=overwrite) as temporary:
        deblender = weights.load(given.pop("weights"))
        counter = default_counts(deblender) if given.pop("count") else None
        table, by_anomaly = evaluate_network(blends, deblender, counter=counter, **given)
        if temporary is not None:
            table.write(temporary, format="ascii.ecsv")
    options.show(table[ACCURACY])
    if len(by_anomaly):
        click.echo("\nThe network by anomaly score:")
        options.show(by_anomaly)


@click.command(short_help="Fit a calibrator to your own images.")
@click.option("--blends", type=FILE, help="Fit to a set of blends with truth, as `simulate` or `inject` writes it.")
@click.option("--images", type=FILE, multiple=True, help="Fit to blends in the sky of this image; may be repeated.")
@click.option("--catalog", type=FILE, help="Galaxies of a single image, with magnitudes.  [default: SEP's]")
@click.option("--columns", metavar="NAME=COLUMN,...", default="", help="The catalog's columns, as for `isolate`.")
@options.psf
@options.hdu
@options.catalog_zero_point
@click.option("--exposure", type=float, help="Counts per unit of flux.  [default: that of the weights]")
@click.option(
    "--galaxies",
    type=click.Choice(["auto", "own", "simulated"]),
    default="auto",
    show_default=True,
    help="Blend the images' own isolated galaxies, or simulated ones; auto: their own where there are enough.",
)
@options.faintest(24.5)
@click.option("--count", type=click.IntRange(100), default=4000, show_default=True, help="Blends to fit to.")
@click.option("--least", type=click.IntRange(20), default=200, show_default=True, help="Least galaxies in a group.")
@click.option(
    "--repair",
    type=click.Choice(["conformal", "floor"]),
    default="conformal",
    show_default=True,
    help="Map whole quantiles or, where galaxies are few, add one error in quadrature (floor).",
)
@options.weights
@options.sampling
@options.output("calibration")
@options.overwrite
def calibrate(**given: object) -> None:
    """Fit a calibrator to blends made from your own images, and test it.

    Without images it is fitted to a set of blends, or to simulated blends of the training population, as the one
    that ships. OUTPUT holds calibrator.json (for `deblend --calibrator`), weights.safetensors (the weights with it
    inside, for `deblend --weights`), and the test: tested.ecsv and calibration.png.

    \b
    Example:
      probdeblend calibrate --images mosaic.fits --psf psf.fits --output survey
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.calibrate import calibrate_blends, write_fit

    options.exclusive(given, "blends", "images")
    options.refuse_existing(given["output"], overwrite=given["overwrite"])
    deblender = load(given["weights"])
    settings = options.picked(given, "least", "repair", "seed", "draws", "passes")
    if given["images"]:
        fit = _calibrate_images(deblender, given, settings)
    else:
        fit = calibrate_blends(deblender, given["blends"], count=given["count"], **settings)
    names = write_fit(given["output"], fit, deblender, overwrite=given["overwrite"])
    click.echo("\n".join(fit.calibrator.summary().pformat(max_width=-1, max_lines=-1, show_name=False)))
    click.echo("Each galaxy, repaired by a calibrator that was fitted on others:")
    options.show(fit.tested[TESTED])
    click.echo(f"written to {given['output']}: {', '.join(names)}")


def _calibrate_images(deblender: Deblender, given: dict, settings: dict) -> CalibratorFit:
    import torch

    from ..photometry.images import read_psf
    from ..training.calibrate import Survey, calibrate_survey

    if len(given["images"]) > 1 and given["catalog"] is not None:
        raise ValueError(f"catalog must come with one image, got {len(given['images'])} images")
    instrument = deblender.instrument
    changes = {name: given[name] for name in ("zero_point", "exposure") if given[name] is not None}
    if given["psf"] is not None:
        psf = read_psf(given["psf"], pixel_scale=instrument.pixel_scale)
        deblender.check_psf(psf)
        changes["psf"] = torch.from_numpy(psf).float()
    survey = Survey(
        given["images"],
        instrument.replace(**changes),
        columns=tuple(options.columns(given["columns"]).items()),
        **options.picked(given, "hdu", "catalog", "galaxies", "magnitude", "count"),
    )
    return calibrate_survey(survey, deblender, **settings)


@click.command(short_help="Compare the same blends in two exposures.")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@options.hdu
@options.pixel_scale
@click.option(
    "--correlation",
    default=0.0,
    show_default=True,
    help="Noise correlation of A and B: n / sqrt(n_A n_B) where they share n exposures.",
)
@click.option("--zero-points", type=(float, float), help="AB magnitudes of unit flux in A, B.  [default: the headers']")
@click.option("--exposures", type=(float, float), help="Counts per unit of flux in A and B, for SEP's photon noise.")
@options.sampling
@options.output("repeat")
@options.overwrite
@options.weights
@options.calibrator
def repeat(a: Path, b: Path, **given: object) -> None:
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

    options.exclusive(given, "calibrator", "no_calibrator")
    names = ("z.ecsv", "repeat.png")
    with output_folder(given["output"], overwrite=given["overwrite"], files=names) as folder:
        first, second = read_exposures(a, b, hdu=given["hdu"])
        deblender = weights.load(given["weights"], calibrator=given["calibrator"])
        scale = first.pixel_scale if given["pixel_scale"] is None else given["pixel_scale"]
        if scale is None:
            raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
        deblender.check_pixel_scale(scale)
        result = compare_exposures(
            first.data,
            second.data,
            deblender,
            correlation=given["correlation"],
            zero_points=given["zero_points"] or (first.zero_point, second.zero_point),
            exposures=given["exposures"] or (inf, inf),
            calibrate=not given["no_calibrator"],
            **options.picked(given, "draws", "passes", "seed"),
        )
        result.table.write(folder / names[0], format="ascii.ecsv")
        plot_pulls(result.pulls()).figure.savefig(folder / names[1], dpi=120)
    options.show(result.summary())
    click.echo(f"sky rms of a pixel: {result.sky_rms[0]:.4g} and {result.sky_rms[1]:.4g} in units of A")
    click.echo(f"the correlation of neighboring pixels, not in SEP's errors, raises them by {result.noise_factor:.2f}")
    click.echo(f"written to {given['output']}: {', '.join(names)}")
