"""Fit calibrators, and check what is calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import (
    FILE,
    columns,
    finite,
    overwrite_option,
    refuse_existing,
    sampling_options,
    weights_option,
)

if TYPE_CHECKING:
    from ..deblending.deblender import Deblender
    from ..training.fitting import Fit

__all__: list[str] = []  # what is here is used from the command line

MASK_BLENDS = 10_000  # hold millions of pixels with light


@click.command()
@click.option("--blends", type=FILE, help="Fit to a set of blends with truth, as `simulate` or `pair` write it.")
@click.option("--images", type=FILE, multiple=True, help="Fit to blends made of this image's sky; may be repeated.")
@click.option("--catalog", type=FILE, help="Galaxies of the one image, with magnitudes.  [default: SEP's]")
@click.option("--columns", metavar="NAME=COLUMN,...", default="", help="The catalog's columns, as for `stamps`.")
@click.option("--psf", type=FILE, help="Effective PSF of the images.  [default: that of the weights]")
@click.option("--hdu", metavar="HDU", help="Number or name of the images' HDU.")
@click.option("--zero-point", type=float, callback=finite, help="AB magnitude of unit flux, where headers have none.")
@click.option("--exposure", type=float, help="Counts per unit of flux.  [default: that of the weights]")
@click.option(
    "--galaxies",
    type=click.Choice(["auto", "own", "simulated"]),
    default="auto",
    show_default=True,
    help="Blend the images' own lone galaxies, or simulated ones; auto: its own where there are enough.",
)
@click.option("--magnitude", type=float, default=24.5, show_default=True, callback=finite, help="Faintest lone galaxy.")
@click.option("--count", type=click.IntRange(100), default=4000, show_default=True, help="Blends to fit to.")
@click.option(
    "--least", type=click.IntRange(20), default=200, show_default=True, help="Galaxies that a group holds at least."
)
@click.option(
    "--repair",
    type=click.Choice(["conformal", "isotonic", "scale", "floor"]),
    default="conformal",
    show_default=True,
    help="Whole quantile maps, or, where galaxies are few, one factor or one error in quadrature.",
)
@weights_option
@sampling_options
@click.option("--output", type=FILE, default="calibration", show_default=True, help="Folder to write.")
@overwrite_option
def calibrate(**options: object) -> None:
    """Fit a calibrator to blends made of your own images, and test it.

    Without images it is fitted to a set of blends, or to simulated ones like those of the training, as the one that
    ships. OUTPUT holds calibrator.json (for `deblend --calibrator`), weights.safetensors (the weights with it inside,
    for `deblend --weights`), and the test: report.txt, tested.ecsv and calibration.png.

    \b
    Example:
      probdeblend calibrate --images mosaic.fits --psf psf.fits --output survey
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.fitting import report, write_fit

    if options["images"] and options["blends"] is not None:
        raise ValueError("blends and images exclude each other, got both")
    refuse_existing(options["output"], overwrite=options["overwrite"])
    deblender = load(options["weights"])
    fit = (_fit_images if options["images"] else _fit_blends)(deblender, options)
    names = write_fit(options["output"], fit, deblender, overwrite=options["overwrite"])
    click.echo(report(fit))
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def _fit_blends(deblender: Deblender, options: dict) -> Fit:
    from ..training.fitting import fit_calibrator
    from ..training.trial import run_trial, set_batches, simulated_batches

    sampling = {name: options[name] for name in ("draws", "passes", "seed")}
    if options["blends"] is None:
        words = "simulated blends like those of the training"
        blends = simulated_batches(
            options["count"], seed=options["seed"], close_fraction=deblender.description.close_fraction
        )
    else:
        words = f"blends of the set {options['blends'].name}"
        blends = set_batches(options["blends"])
    trial = run_trial(blends, deblender, sep=(), **sampling)
    masks, close = trial.sums, deblender.description.encoder_close_fraction
    if options["blends"] is None and close != deblender.description.close_fraction:
        # Masks come from the encoder, and what it has not learned would spoil what it has.
        count, seed = min(options["count"], MASK_BLENDS), options["seed"] + 1
        others = simulated_batches(count, seed=seed, close_fraction=close)
        masks = run_trial(others, deblender, sep=(), **sampling).sums
    words = f"{len(trial.network)} {words}"
    settings = {name: options[name] for name in ("least", "repair")}
    return fit_calibrator(trial.network, trial, masks=masks, fitted_on=words, **settings)


def _fit_images(deblender: Deblender, options: dict) -> Fit:
    import torch

    from ..photometry.images import read_psf
    from ..training.survey import Survey, calibrate_survey

    if len(options["images"]) > 1 and options["catalog"] is not None:
        raise ValueError(f"a catalog belongs to one image, got {len(options['images'])} images")
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
        **{name: options[name] for name in ("hdu", "catalog", "galaxies", "magnitude", "count")},
    )
    settings = {name: options[name] for name in ("least", "repair", "seed", "draws", "passes")}
    return calibrate_survey(survey, deblender, **settings)
