"""Count the galaxies of stamps, and train the network that does."""

from __future__ import annotations

from pathlib import Path

import click

from .answers import checked_image, given_rms
from .options import FILE, overwrite_option, refuse_existing, sampling_options, seed_option, weights_option

__all__: list[str] = []  # what is here is used from the command line


@click.command("train-counts")
@click.option("--blends", type=click.IntRange(300), default=40_000, show_default=True, help="Blends to learn from.")
@click.option("--steps", type=click.IntRange(1), default=4000, show_default=True, help="Number of batches.")
@click.option("--test-blends", type=click.IntRange(1), default=4000, show_default=True, help="Blends to test on.")
@seed_option
@weights_option
@click.option("--output", type=FILE, default="counts.safetensors", show_default=True, help="The network's file.")
@overwrite_option
def train_counts(**options: object) -> None:
    """Train a network that counts the galaxies of a stamp on the encoder of the weights, and test it.

    A quarter of an hour on one core, most of it to draw the blends.

    \b
    Example:
      probdeblend train-counts --blends 10000 --steps 2000
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.counting import report, train_default_counts

    refuse_existing(options["output"], overwrite=options["overwrite"])
    settings = {name: options[name] for name in ("blends", "steps", "test_blends", "seed", "overwrite")}
    tables = train_default_counts(load(options["weights"]), options["output"], **settings)
    click.echo(report(*tables))
    click.echo(f"written to {options['output']}")


@click.command()
@click.argument("stamps", type=FILE)
@click.option("--hdu", metavar="HDU", help="Number or name of the stamps' HDU.")
@click.option("--rms", metavar="VALUE|FILE", help="Sky noise of a pixel.  [default: measured in each stamp]")
@click.option("--rms-as-is", is_flag=True, help="Do not scale an rms map to the scatter in the stamps.")
@click.option("--psf", type=FILE, help="Effective PSF of the stamps, to check against that of the weights.")
@click.option("--pixel-scale", type=float, help="Arcsec a pixel.  [default: from the header]")
@click.option("--flux", is_flag=True, help="Deblend too, for the central galaxy's flux whatever their number.")
@sampling_options
@click.option("--output", type=FILE, default="counts.ecsv", show_default=True, help="Table to write, as ECSV.")
@overwrite_option
@weights_option
@click.option("--counts", type=FILE, help="A count network's file.  [default: the one of the package]")
def count(stamps: Path, **options: object) -> None:
    """Say how probable one galaxy, two, and three or more are in STAMPS: one of 128 x 128 pixels, or a cube of them.

    The sky is subtracted already. Draws, passes and seed are those of --flux.

    \b
    Example:
      probdeblend count stamps.fits --rms 0.003 --flux
    """  # noqa: D301
    from .._files import write_catalog
    from ..deblending.counts import count_stamps, count_table, default_counts, load_counts
    from ..deblending.stamps import stamp_noise
    from ..deblending.weights import load
    from ..photometry.images import read_stamps

    refuse_existing(options["output"], overwrite=options["overwrite"])
    found, deblender = read_stamps(stamps, hdu=options["hdu"]), load(options["weights"])
    chosen = options["counts"]
    network = default_counts(deblender) if chosen is None else load_counts(chosen, deblender)
    image = checked_image(found, deblender, options)
    noise, _ = stamp_noise(found.data, given_rms(found, options["rms"], stamps=True), rms_as_is=options["rms_as_is"])
    probability = count_stamps(image, network, sky_rms=noise)
    sampling = {name: options[name] for name in ("draws", "passes", "seed")}
    posterior = deblender(image, sky_rms=noise, **sampling) if options["flux"] else None
    table = count_table(probability, posterior, seed=options["seed"])
    write_catalog(table, options["output"], overwrite=options["overwrite"])
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))
    click.echo(f"written to {options['output']}")


@click.command("train-guide")
@click.option("--blends", type=click.IntRange(300), default=100_000, show_default=True, help="Blends to draw.")
@click.option("--steps", type=click.IntRange(1), default=12_000, show_default=True, help="Number of batches.")
@seed_option
@weights_option
@click.option("--output", type=FILE, default="guide.safetensors", show_default=True, help="The guide's file.")
@overwrite_option
def train_guide(**options: object) -> None:
    """Train a guide over photometry and morphology on the encoder of the weights.

    Half an hour on one core, most of it to draw the blends.

    \b
    Example:
      probdeblend train-guide --blends 40000 --steps 6000
    """  # noqa: D301
    from ..deblending.weights import load
    from ..training.amortize import train_default_guide

    refuse_existing(options["output"], overwrite=options["overwrite"])
    settings = {name: options[name] for name in ("blends", "steps", "seed", "overwrite")}
    history = train_default_guide(load(options["weights"]), options["output"], **settings)
    click.echo(f"validation loss {history.best:.3f} nat after {history.step} batches")
    click.echo(f"written to {options['output']}")
