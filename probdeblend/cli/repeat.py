"""Test errors on two exposures of the same sky."""

from __future__ import annotations

from math import inf
from pathlib import Path

import click

from .options import FILE, overwrite_option, sampling_options, weights_option

__all__: list[str] = []  # what is here is used from the command line


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--hdu", metavar="HDU", help="Number or name of the images' HDU.")
@click.option("--pixel-scale", type=float, help="Arcsec a pixel.  [default: from the header of A]")
@click.option(
    "--correlation",
    type=float,
    default=0.0,
    show_default=True,
    help="Of the noise of A and B: n / sqrt(n_A n_B) where they share n exposures.",
)
@click.option(
    "--zero-points", type=(float, float), help="AB magnitudes of unit flux in A and B.  [default: from the headers]"
)
@click.option("--exposures", type=(float, float), help="Counts per unit of flux in A and B, for SEP's photon noise.")
@sampling_options
@click.option("--output", type=FILE, default="repeat", show_default=True, help="Folder to write.")
@overwrite_option
@weights_option
@click.option("--calibrator", type=FILE, help="A calibrator's file.  [default: the one inside the weights]")
@click.option("--no-calibrator", is_flag=True, help="Leave the network's posterior as it is.")
def repeat(a: Path, b: Path, **options: object) -> None:
    """Deblend the blends of A and B, two images of the same sky on the same pixels, and compare the fluxes.

    The differences over their errors, z, have mean 0 and standard deviation 1 if the errors are right: no truth is
    needed. OUTPUT holds z.ecsv (a row a galaxy, for the network and for SEP), report.txt and repeat.png.

    \b
    Example:
      probdeblend repeat first_epoch.fits second_epoch.fits --output epochs
    """  # noqa: D301
    from .._files import output_folder
    from ..deblending import weights
    from ..training.repeat import FILES, compare_exposures, read_exposures, report, write_repeat

    if options["no_calibrator"] and options["calibrator"] is not None:
        raise ValueError("calibrator and no_calibrator exclude each other, got both")
    with output_folder(options["output"], overwrite=options["overwrite"], files=FILES) as folder:
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
            **{name: options[name] for name in ("draws", "passes", "seed")},
        )
        names = write_repeat(folder, result)
    click.echo(report(result))
    click.echo(f"written to {options['output']}: {', '.join(names)}")
