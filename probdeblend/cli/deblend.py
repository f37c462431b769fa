"""Deblend an image, and count the galaxies in stamps."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .options import FILE

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
@options.hdu
@options.noise
@click.option("--no-background", is_flag=True, help="The sky is subtracted already.")
@options.psf
@options.pixel_scale
@click.option(
    "--zero-point", type=float, callback=options.finite, help="AB magnitude of unit flux.  [default: from the header]"
)
@click.option("--exposure", type=float, help="Counts per unit of flux, for SEP's errors and --refine.")
@options.sampling
@options.output("probdeblend-output")
@options.overwrite
@click.option("--save-draws", is_flag=True, help="Also write the posterior draws, as draws.nc.")
@options.weights
@options.calibrator
@click.option("--count", is_flag=True, help="Flag stamps that are unlikely to hold two galaxies.")
@click.option("--counts", type=FILE, help="Count network file for --count.  [default: shipped]")
@click.option(
    "--refine", is_flag=True, help="Refine stamps where the generative model can be trusted; seconds per blend."
)
def deblend(image: Path | None, **given: object) -> None:
    """Find the blends in IMAGE and deblend them; without IMAGE, deblend the example that ships.

    \b
    Example:
      probdeblend deblend field.fits --hdu 1 --rms rms.fits --output field
    """  # noqa: D301
    from .._files import output_folder
    from ..deblending import weights
    from ..deblending.products import FILES, write_products
    from ..deblending.stamps import EXAMPLE_PATH

    with output_folder(given["output"], overwrite=given["overwrite"], files=FILES) as folder:
        if image is None:
            image, given["stamps"] = EXAMPLE_PATH, True
        found = _read(image, given)
        options.exclusive(given, "calibrator", "no_calibrator")
        result = _deblend(found, weights.load(given["weights"], calibrator=given["calibrator"]), given)
        names = write_products(folder, result, wcs=found.wcs, save_draws=given["save_draws"])
    _print(result, given["rms"])
    click.echo(f"written to {given['output']}: {', '.join(names)}")


def _print(result: DeblendedImage, rms: str | None) -> None:
    """Print the main columns of the catalog, and one line for each thing that was measured."""
    from ..deblending.products import short_table

    table = short_table(result.catalog)
    options.show(table)
    if len(result.catalog) > len(table):
        click.echo(f"... and {len(result.catalog) - len(table)} more")
    click.echo(f"\nsky rms of a pixel: {result.sky_rms:.4g}")
    if result.rms_factor != 1:
        click.echo(f"the rms map {rms} was multiplied by {result.rms_factor:.3f} to match the scatter in the image")
    if result.noise_factor is not None:
        click.echo(f"noise is correlated: SEP's errors of isolated sources are multiplied by {result.noise_factor:.2f}")
    if result.posterior is None:
        click.echo("no sources overlap: there are no masks and no figure of blends")


def _read(image: Path, given: dict) -> FieldImage:
    from ..photometry.images import read_image, read_stamps

    return (read_stamps if given["stamps"] else read_image)(image, hdu=given["hdu"])


def _deblend(found: FieldImage, deblender: Deblender, given: dict) -> DeblendedImage:
    from ..deblending.field import deblend_field
    from ..deblending.stamps import deblend_stamps

    image = _checked_image(found, deblender, given)
    zero_point = found.zero_point if given["zero_point"] is None else given["zero_point"]
    noise = {"rms": _given_rms(found, given["rms"], stamps=given["stamps"]), "rms_as_is": given["rms_as_is"]}
    sampling = options.picked(given, "draws", "passes", "seed") | {"calibrate": not given["no_calibrator"]}
    asked = _counting(deblender, given["counts"]) if given["count"] else deblender
    asked = _refiner(asked, zero_point, given) if given["refine"] else asked
    if given["stamps"]:
        return deblend_stamps(image, asked, **noise, zero_point=zero_point, wcs=found.wcs, **sampling)
    instrument = deblender.instrument.replace(
        zero_point=nan if zero_point is None else zero_point,
        exposure=inf if given["exposure"] is None else given["exposure"],
    )
    settings = {"background": not given["no_background"], "instrument": instrument, "wcs": found.wcs}
    return deblend_field(image, asked, **noise, **settings, **sampling)


def _counting(deblender: Deblender, path: Path | None) -> CountingDeblender:
    from ..deblending.counts import CountingDeblender, default_counts, load_counts

    return CountingDeblender(deblender, default_counts(deblender) if path is None else load_counts(path, deblender))


def _refiner(deblender: Deblender | CountingDeblender, zero_point: float | None, given: dict) -> Refiner:
    import torch

    from ..photometry.images import read_psf
    from ..refinement.guide import default_guide
    from ..refinement.refiner import Refiner

    instrument = deblender.instrument.replace(zero_point=nan if zero_point is None else zero_point)
    if not given["stamps"]:
        raise ValueError("refine must be given with --stamps, got a field: only stamps can be refined")
    if given["exposure"] is not None:
        instrument = instrument.replace(exposure=given["exposure"])
    elif instrument.zero_point != deblender.instrument.zero_point:
        raise ValueError(
            "exposure must be given with --exposure for refinement where the zero point is not that of the weights "
            f"({deblender.instrument.zero_point:g}), got None for {instrument.zero_point:g}"
        )
    if given["psf"] is not None:
        psf = read_psf(given["psf"], pixel_scale=instrument.pixel_scale)
        instrument = instrument.replace(psf=torch.from_numpy(psf.astype("float32")))
    return Refiner(deblender, default_guide(deblender), instrument=instrument)


def _checked_image(found: FieldImage, deblender: Deblender, given: dict) -> Quantity:
    """Return pixels with their unit; refuse another pixel scale or PSF than that of the weights."""
    from astropy.units import Quantity, Unit

    from ..photometry.images import read_psf

    scale = found.pixel_scale if given["pixel_scale"] is None else given["pixel_scale"]
    if scale is None:
        raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
    deblender.check_pixel_scale(scale)
    if given["psf"] is not None:
        deblender.check_psf(read_psf(given["psf"], pixel_scale=scale))
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
@options.hdu
@options.noise
@options.psf
@options.pixel_scale
@click.option("--flux", is_flag=True, help="Also give the flux of the central galaxy, marginalized over the number.")
@options.sampling
@options.output("counts.ecsv", "Table")
@options.overwrite
@options.weights
@click.option("--counts", type=FILE, help="Count network file.  [default: shipped]")
def count(stamps: Path, **given: object) -> None:
    """Estimate the number of galaxies in each of STAMPS: a sky-subtracted 128 x 128 stamp, or a cube of stamps.

    The table gives the probability of one galaxy, of two, and of three or more. --draws, --passes and
    --seed apply only with --flux.

    \b
    Example:
      probdeblend count stamps.fits --rms 0.003 --flux
    """  # noqa: D301
    from .._files import whole_file
    from ..deblending.counts import count_stamps, count_table, default_counts, load_counts
    from ..deblending.stamps import stamp_noise
    from ..deblending.weights import load
    from ..photometry.images import read_stamps

    options.refuse_existing(given["output"], overwrite=given["overwrite"])
    found, deblender = read_stamps(stamps, hdu=given["hdu"]), load(given["weights"])
    chosen = given["counts"]
    network = default_counts(deblender) if chosen is None else load_counts(chosen, deblender)
    image = _checked_image(found, deblender, given)
    noise, _ = stamp_noise(found.data, _given_rms(found, given["rms"], stamps=True), rms_as_is=given["rms_as_is"])
    probability = count_stamps(image, network, sky_rms=noise)
    sampling = options.picked(given, "draws", "passes", "seed")
    posterior = deblender(image, sky_rms=noise, **sampling) if given["flux"] else None
    table = count_table(probability, posterior, seed=given["seed"])
    with whole_file(given["output"], overwrite=given["overwrite"]) as temporary:
        table.write(temporary, format="ascii.ecsv")
    options.show(table)
    click.echo(f"written to {given['output']}")
