"""Deblend an image, and measure how well that goes."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE, finite, method_option, overwrite_option, sampling_options, weights_option

if TYPE_CHECKING:
    from astropy.units import Quantity

    from ..deblending.counts import CountingDeblender
    from ..deblending.deblender import Deblender
    from ..deblending.field import FieldResult
    from ..deblending.stamps import StampResult
    from ..photometry.images import FieldImage
    from ..refinement.refiner import Refiner

__all__: list[str] = []  # what is here is used from the command line


@click.command()
@click.argument("image", type=FILE, required=False)
@click.option("--stamps", is_flag=True, help="IMAGE is a 128 x 128 stamp, or a cube of them, without sky.")
@click.option("--hdu", metavar="HDU", help="Number or name of the image's HDU.")
@click.option("--rms", metavar="VALUE|FILE", help="Sky noise of a pixel.  [default: measured in the image]")
@click.option("--rms-as-is", is_flag=True, help="Do not scale an rms map to the scatter in the image.")
@click.option("--no-background", is_flag=True, help="The sky is subtracted already.")
@click.option("--psf", type=FILE, help="Effective PSF of the image, to check against that of the weights.")
@click.option("--pixel-scale", type=float, help="Arcsec a pixel.  [default: from the header]")
@click.option(
    "--zero-point", type=float, callback=finite, help="AB magnitude of unit flux.  [default: from the header]"
)
@click.option("--exposure", type=float, help="Counts per unit of flux, for SEP's errors and --refine.")
@sampling_options
@click.option("--output", type=FILE, default="probdeblend-output", show_default=True, help="Folder to write.")
@overwrite_option
@click.option("--save-draws", is_flag=True, help="Write the draws too, as draws.nc.")
@weights_option
@click.option("--calibrator", type=FILE, help="A calibrator's file.  [default: the one inside the weights]")
@click.option("--no-calibrator", is_flag=True, help="Leave the network's posterior as it is.")
@click.option("--count", is_flag=True, help="Flag stamps that are not likely to hold two galaxies.")
@click.option("--counts", type=FILE, help="Count network's file for --count.  [default: that of the package]")
@click.option(
    "--refine", is_flag=True, help="Refine stamps where the generative model can be trusted; seconds a blend."
)
@method_option
def deblend(image: Path | None, **options: object) -> None:
    """Find the blends of IMAGE and deblend them; without IMAGE, the example that ships.

    \b
    Example:
      probdeblend deblend field.fits --hdu 1 --rms rms.fits --output field
    """  # noqa: D301
    from .._files import output_folder
    from ..deblending import weights
    from ..deblending.example import EXAMPLE_PATH
    from ..deblending.results import report, write_results

    with output_folder(options["output"], overwrite=options["overwrite"]) as folder:
        if image is None:
            image, options["stamps"] = EXAMPLE_PATH, True
        found = _read(image, options)
        if options["no_calibrator"] and options["calibrator"] is not None:
            raise ValueError("calibrator and no_calibrator exclude each other, got both")
        result = _deblend(found, weights.load(options["weights"], calibrator=options["calibrator"]), options)
        names = write_results(folder, result, wcs=found.wcs, save_draws=options["save_draws"])
    click.echo(report(result, rms=options["rms"]))
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def _read(image: Path, options: dict) -> FieldImage:
    from ..photometry.images import read_image, read_stamps

    return (read_stamps if options["stamps"] else read_image)(image, hdu=options["hdu"])


def _deblend(found: FieldImage, deblender: Deblender, options: dict) -> FieldResult | StampResult:
    from ..deblending.field import deblend_field
    from ..deblending.stamps import deblend_stamps

    image = checked_image(found, deblender, options)
    zero_point = found.zero_point if options["zero_point"] is None else options["zero_point"]
    noise = {"rms": given_rms(found, options["rms"], stamps=options["stamps"]), "rms_as_is": options["rms_as_is"]}
    sampling = {name: options[name] for name in ("draws", "passes", "seed")}
    sampling["calibrate"] = not options["no_calibrator"]
    asked = _counting(deblender, options["counts"]) if options["count"] else deblender
    asked = _refiner(asked, zero_point, options) if options["refine"] else asked
    if options["stamps"]:
        return deblend_stamps(image, asked, **noise, zero_point=zero_point, wcs=found.wcs, **sampling)
    instrument = deblender.instrument.replace(
        zero_point=nan if zero_point is None else zero_point,
        exposure=inf if options["exposure"] is None else options["exposure"],
    )
    settings = {"background": not options["no_background"], "instrument": instrument, "wcs": found.wcs}
    return deblend_field(image, asked, **noise, **settings, **sampling)


def _counting(deblender: Deblender, path: Path | None) -> CountingDeblender:
    from ..deblending.counts import CountingDeblender, default_counts, load_counts

    return CountingDeblender(deblender, default_counts(deblender) if path is None else load_counts(path, deblender))


def _refiner(deblender: Deblender | CountingDeblender, zero_point: float | None, options: dict) -> Refiner:
    import torch

    from ..photometry.images import read_psf
    from ..refinement.guides import default_guide
    from ..refinement.refiner import Refiner

    instrument = deblender.instrument.replace(zero_point=nan if zero_point is None else zero_point)
    if not options["stamps"]:
        raise ValueError("refine works on stamps, which are all data: give --stamps, got a field")
    if options["exposure"] is not None:
        instrument = instrument.replace(exposure=options["exposure"])
    elif instrument.zero_point != deblender.instrument.zero_point:
        raise ValueError(
            "exposure must be given with --exposure for refinement where the zero point is not that of the weights "
            f"({deblender.instrument.zero_point:g}), got None for {instrument.zero_point:g}"
        )
    if options["psf"] is not None:
        psf = read_psf(options["psf"], pixel_scale=instrument.pixel_scale)
        instrument = instrument.replace(psf=torch.from_numpy(psf.astype("float32")))
    return Refiner(deblender, default_guide(deblender), instrument=instrument, method=options["method"])


def checked_image(found: FieldImage, deblender: Deblender, options: dict) -> Quantity:
    """Refuse images of another pixel scale or PSF than the weights', and return pixels with their unit."""
    from astropy.units import Quantity, Unit

    from ..photometry.images import read_psf

    scale = found.pixel_scale if options["pixel_scale"] is None else options["pixel_scale"]
    if scale is None:
        raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
    deblender.check_pixel_scale(scale)
    if options["psf"] is not None:
        deblender.check_psf(read_psf(options["psf"], pixel_scale=scale))
    return Quantity(found.data, Unit(found.unit, parse_strict="silent"))


def given_rms(found: FieldImage, given: str | None, *, stamps: bool) -> object:
    """Read the sky noise that the user gives as a number or a file; None where it is to be measured."""
    from ..photometry.images import read_map

    if given is None:
        return found.header.get("SKYRMS") if stamps else None
    try:
        return float(given)
    except ValueError:
        return read_map(given, found.data.shape, bad_pixels=found.bad_pixels)


@click.command()
@click.argument("blends", type=FILE)
@weights_option
@click.option("--count", is_flag=True, help="Count galaxies: doubt grows where there are not likely to be two.")
@sampling_options
@click.option("--output", type=FILE, help="Write the whole table there too, as ECSV.")
@overwrite_option
def evaluate(blends: Path, **options: object) -> None:
    """Measure accuracy and coverage of the network and of SEP on BLENDS, a set that `simulate` wrote.

    And how the errors grow with the network's doubt.

    \b
    Example:
      probdeblend evaluate test --output accuracy.ecsv
    """  # noqa: D301
    from .._files import whole_file
    from ..deblending import weights
    from ..deblending.counts import default_counts
    from ..training import evaluation

    output, overwrite = options.pop("output"), options.pop("overwrite")
    with nullcontext() if output is None else whole_file(output, overwrite=overwrite) as temporary:
        deblender = weights.load(options.pop("weights"))
        counter = default_counts(deblender) if options.pop("count") else None
        table = evaluation.evaluate(blends, deblender, counter=counter, **options)
        if temporary is not None:
            table.write(temporary, format="ascii.ecsv")
    click.echo(evaluation.report(table))
