"""Deblend an image, and count the galaxies in stamps."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    FILE,
    calibrator_options,
    exclusive,
    finite,
    hdu_option,
    noise_options,
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
    from astropy.units import Quantity

    from ..deblending.counts import CountingDeblender
    from ..deblending.deblender import Deblender
    from ..deblending.products import DeblendedImage
    from ..photometry.images import FieldImage
    from ..refinement.refiner import Refiner

__all__: list[str] = []  # used from the command line alone


@click.command(short_help="Find the blends in an image and deblend them.")
@click.argument("image", type=FILE, required=False)
@click.option("--stamps", is_flag=True, help="IMAGE is a sky-subtracted 128 x 128 stamp, or a cube of stamps.")
@hdu_option
@noise_options
@click.option("--no-background", is_flag=True, help="The sky is subtracted already.")
@psf_option
@pixel_scale_option
@click.option(
    "--zero-point", type=float, callback=finite, help="AB magnitude of unit flux.  [default: from the header]"
)
@click.option("--exposure", type=float, help="Counts per unit of flux, for SEP's errors and --refine.")
@sampling_options
@click.option("--output", type=FILE, default="probdeblend-output", show_default=True, help="Folder to write.")
@overwrite_option
@click.option("--save-draws", is_flag=True, help="Also write the posterior draws, as draws.nc.")
@weights_option
@calibrator_options
@click.option("--count", is_flag=True, help="Flag stamps that are unlikely to hold two galaxies.")
@click.option("--counts", type=FILE, help="Count network file for --count.  [default: the one that ships]")
@click.option(
    "--refine", is_flag=True, help="Refine stamps where the generative model can be trusted; seconds per blend."
)
def deblend(image: Path | None, **options: object) -> None:
    """Find the blends in IMAGE and deblend them; without IMAGE, deblend the example that ships.

    \b
    Example:
      probdeblend deblend field.fits --hdu 1 --rms rms.fits --output field
    """  # noqa: D301
    from .._files import output_folder
    from ..deblending import weights
    from ..deblending.products import FILES, write_products
    from ..deblending.stamps import EXAMPLE_PATH

    with output_folder(options["output"], overwrite=options["overwrite"], files=FILES) as folder:
        if image is None:
            image, options["stamps"] = EXAMPLE_PATH, True
        found = _read(image, options)
        exclusive(options, "calibrator", "no_calibrator")
        result = _deblend(found, weights.load(options["weights"], calibrator=options["calibrator"]), options)
        names = write_products(folder, result, wcs=found.wcs, save_draws=options["save_draws"])
    _print(result, options["rms"])
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def _print(result: DeblendedImage, rms: str | None) -> None:
    """Print the main columns of the catalog, and one line for each thing that was measured."""
    from ..deblending.products import short_table

    table = short_table(result.catalog)
    show(table)
    if len(result.catalog) > len(table):
        click.echo(f"... and {len(result.catalog) - len(table)} more")
    click.echo(f"\nsky rms of a pixel: {result.sky_rms:.4g}")
    if result.rms_factor != 1:
        click.echo(f"the rms map {rms} was multiplied by {result.rms_factor:.3f} to match the scatter in the image")
    if result.noise_factor is not None:
        click.echo(f"noise is correlated: SEP's errors of isolated sources are multiplied by {result.noise_factor:.2f}")
    if result.posterior is None:
        click.echo("no sources overlap: there are no masks and no figure of blends")


def _read(image: Path, options: dict) -> FieldImage:
    from ..photometry.images import read_image, read_stamps

    return (read_stamps if options["stamps"] else read_image)(image, hdu=options["hdu"])


def _deblend(found: FieldImage, deblender: Deblender, options: dict) -> DeblendedImage:
    from ..deblending.field import deblend_field
    from ..deblending.stamps import deblend_stamps

    image = _checked_image(found, deblender, options)
    zero_point = found.zero_point if options["zero_point"] is None else options["zero_point"]
    noise = {"rms": _given_rms(found, options["rms"], stamps=options["stamps"]), "rms_as_is": options["rms_as_is"]}
    sampling = picked(options, "draws", "passes", "seed") | {"calibrate": not options["no_calibrator"]}
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
    from ..refinement.guide import default_guide
    from ..refinement.refiner import Refiner

    instrument = deblender.instrument.replace(zero_point=nan if zero_point is None else zero_point)
    if not options["stamps"]:
        raise ValueError("refine must be given with --stamps, got a field: only stamps can be refined")
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
    return Refiner(deblender, default_guide(deblender), instrument=instrument)


def _checked_image(found: FieldImage, deblender: Deblender, options: dict) -> Quantity:
    """Return pixels with their unit; refuse another pixel scale or PSF than that of the weights."""
    from astropy.units import Quantity, Unit

    from ..photometry.images import read_psf

    scale = found.pixel_scale if options["pixel_scale"] is None else options["pixel_scale"]
    if scale is None:
        raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
    deblender.check_pixel_scale(scale)
    if options["psf"] is not None:
        deblender.check_psf(read_psf(options["psf"], pixel_scale=scale))
    return Quantity(found.data, Unit(found.unit, parse_strict="silent"))


def _given_rms(found: FieldImage, given: str | None, *, stamps: bool) -> object:
    """Return the sky noise that the user gives as a number or a file; None where it is to be measured."""
    from ..photometry.images import read_map

    if given is None:
        return found.header.get("SKYRMS") if stamps else None
    try:
        return float(given)
    except ValueError:
        return read_map(given, found.data.shape, bad_pixels=found.bad_pixels)


@click.command(short_help="Estimate the number of galaxies in stamps.")
@click.argument("stamps", type=FILE)
@hdu_option
@noise_options
@psf_option
@pixel_scale_option
@click.option("--flux", is_flag=True, help="Also deblend, for the flux of the central galaxy whatever the number.")
@sampling_options
@click.option("--output", type=FILE, default="counts.ecsv", show_default=True, help="Table to write, as ECSV.")
@overwrite_option
@weights_option
@click.option("--counts", type=FILE, help="Count network file.  [default: the one that ships]")
def count(stamps: Path, **options: object) -> None:
    """Estimate the number of galaxies in each of STAMPS: a sky-subtracted 128 x 128 stamp, or a cube of stamps.

    The table gives the probability of one galaxy, of two, and of three or more. Draws, passes and seed belong to
    --flux.

    \b
    Example:
      probdeblend count stamps.fits --rms 0.003 --flux
    """  # noqa: D301
    from .._files import whole_file
    from ..deblending.counts import count_stamps, count_table, default_counts, load_counts
    from ..deblending.stamps import stamp_noise
    from ..deblending.weights import load
    from ..photometry.images import read_stamps

    refuse_existing(options["output"], overwrite=options["overwrite"])
    found, deblender = read_stamps(stamps, hdu=options["hdu"]), load(options["weights"])
    chosen = options["counts"]
    network = default_counts(deblender) if chosen is None else load_counts(chosen, deblender)
    image = _checked_image(found, deblender, options)
    noise, _ = stamp_noise(found.data, _given_rms(found, options["rms"], stamps=True), rms_as_is=options["rms_as_is"])
    probability = count_stamps(image, network, sky_rms=noise)
    sampling = picked(options, "draws", "passes", "seed")
    posterior = deblender(image, sky_rms=noise, **sampling) if options["flux"] else None
    table = count_table(probability, posterior, seed=options["seed"])
    with whole_file(options["output"], overwrite=options["overwrite"]) as temporary:
        table.write(temporary, format="ascii.ecsv")
    show(table)
    click.echo(f"written to {options['output']}")
