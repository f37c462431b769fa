"""The command line: flags to calls.

Every command imports what it needs when it runs, so that ``--help`` is quick. What a user can do wrong ends
in one sentence on standard error and exit status 1, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import inf, isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import __version__

if TYPE_CHECKING:
    from .field import FieldResult
    from .io import FieldImage
    from .stamps import StampResult
    from .weights import Deblender

__all__ = ["main"]

FILE = click.Path(path_type=Path)


class _Group(click.Group):
    """A group whose commands end with a sentence where the input is at fault."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, TypeError, OSError) as error:
            raise click.ClickException(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    hint = "; --overwrite replaces it" if str(error).endswith("exists already") else ""
    return " ".join(str(error).split()) + hint


def _options(*options: Callable) -> Callable:
    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        raise ValueError(f"{option.name} must be finite, got {value}")
    return value


_overwrite = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
_resume = click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
_workers = click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that work; 0 for this one alone."
)
_weights = click.option("--weights", type=FILE, help="A weights file.  [default: those of the package]")
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same answer.")
_sampling = _options(
    click.option("--draws", type=click.IntRange(1), default=1000, show_default=True, help="Draws of each flux."),
    click.option("--passes", type=click.IntRange(0), default=32, show_default=True, help="Dropout passes; 0 for none."),
    _seed,
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="probdeblend")
def main() -> None:
    """Posteriors over the fluxes and the masks of overlapping galaxies."""


@main.command()
@click.argument("image", type=FILE, required=False)
@click.option("--stamps", is_flag=True, help="IMAGE is a 128 x 128 stamp, or a cube of them, without sky.")
@click.option("--hdu", metavar="HDU", help="Number or name of the image's HDU.")
@click.option("--rms", metavar="VALUE|FILE", help="Sky noise of a pixel.  [default: measured in the image]")
@click.option("--rms-as-is", is_flag=True, help="Do not scale an rms map to the scatter in the image.")
@click.option("--no-background", is_flag=True, help="The sky is subtracted already.")
@click.option("--psf", type=FILE, help="Effective PSF of the image, to check against that of the weights.")
@click.option("--pixel-scale", type=float, help="Arcsec a pixel.  [default: from the header]")
@click.option(
    "--zero-point", type=float, callback=_finite, help="AB magnitude of unit flux.  [default: from the header]"
)
@click.option("--exposure", type=float, help="Counts per unit of flux, for photon noise in SEP's errors.")
@_sampling
@click.option("--output", type=FILE, default="probdeblend-output", show_default=True, help="Folder to write.")
@_overwrite
@click.option("--save-draws", is_flag=True, help="Write the draws too, as draws.nc.")
@_weights
def deblend(image: Path | None, **options: object) -> None:
    """Find the blends of IMAGE and deblend them; without IMAGE, the example that ships.

    \b
    Example:
      probdeblend deblend field.fits --hdu 1 --rms rms.fits --output field
    """  # noqa: D301
    from . import weights
    from .example import EXAMPLE_PATH
    from .io import output_folder
    from .results import report, write_results

    with output_folder(options["output"], overwrite=options["overwrite"]) as folder:
        if image is None:
            image, options["stamps"] = EXAMPLE_PATH, True
        found = _read(image, options)
        result = _deblend(found, weights.load(options["weights"]), options)
        names = write_results(folder, result, wcs=found.wcs, save_draws=options["save_draws"])
    click.echo(report(result, rms=options["rms"]))
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def _read(image: Path, options: dict) -> FieldImage:
    from .io import read_image, read_stamps

    return (read_stamps if options["stamps"] else read_image)(image, hdu=options["hdu"])


def _deblend(found: FieldImage, deblender: Deblender, options: dict) -> FieldResult | StampResult:
    from astropy.units import Quantity, Unit

    from .field import deblend_field
    from .io import read_psf
    from .stamps import deblend_stamps

    scale = found.pixel_scale if options["pixel_scale"] is None else options["pixel_scale"]
    if scale is None:
        raise ValueError("pixel_scale must be given with --pixel-scale where the header has none, got None")
    deblender.check_pixel_scale(scale)
    if options["psf"] is not None:
        deblender.check_psf(read_psf(options["psf"], pixel_scale=scale))
    zero_point = found.zero_point if options["zero_point"] is None else options["zero_point"]
    noise = {"rms": _rms(found, options), "rms_as_is": options["rms_as_is"]}
    sampling = {name: options[name] for name in ("draws", "passes", "seed")}
    image = Quantity(found.data, Unit(found.unit, parse_strict="silent"))
    if options["stamps"]:
        return deblend_stamps(image, deblender, **noise, zero_point=zero_point, wcs=found.wcs, **sampling)
    instrument = deblender.instrument.replace(
        zero_point=nan if zero_point is None else zero_point,
        exposure=inf if options["exposure"] is None else options["exposure"],
    )
    settings = {"background": not options["no_background"], "instrument": instrument, "wcs": found.wcs}
    return deblend_field(image, deblender, **noise, **settings, **sampling)


def _rms(found: FieldImage, options: dict) -> object:
    from .io import read_map

    given = options["rms"]
    if given is None:
        return found.header.get("SKYRMS") if options["stamps"] else None
    try:
        return float(given)
    except ValueError:
        return read_map(given, found.data.shape, bad_pixels=found.bad_pixels)


@main.command()
@click.argument("output", type=FILE)
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Number of blends.")
@_seed
@click.option(
    "--renderer",
    type=click.Choice(["galsim", "torch"]),
    default="galsim",
    show_default=True,
    help="Who draws.",
)
@click.option(
    "--prior",
    type=click.Choice(["default", "published"]),
    default="published",
    show_default=True,
    help="The galaxies: those of the published test set, or fainter ones too as for training.",
)
@click.option("--separation", metavar="RULE", help="published, public-code, paper-text or anywhere.")
@click.option("--sky-rms", type=float, default=3e-3, show_default=True, help="Sky noise of a pixel in e-/s.")
@click.option("--exposure", type=float, default=3200.0, show_default=True, help="Exposure in s; inf for no photons.")
@_workers
@_resume
@_overwrite
def simulate(output: Path, **options: object) -> None:
    """Simulate blends with their truth in CANDELS F160W conditions and write them to OUTPUT, a folder of HDF5 files.

    \b
    Example:
      probdeblend simulate test --count 2000 --seed 1
    """  # noqa: D301
    from dataclasses import replace

    from tqdm import tqdm

    from .io import finished_batches, write_blends
    from .prior import Prior
    from .scene import Instrument
    from .simulate import render_galsim, render_torch, simulate_blends

    prior = getattr(Prior, options["prior"])()
    if options["separation"] is not None:
        prior = replace(prior, separation=options["separation"], anywhere_fraction=0.0)
    instrument = Instrument.candels_f160w(sky_rms=options["sky_rms"], exposure=options["exposure"])
    render = {"galsim": render_galsim, "torch": render_torch}[options["renderer"]]
    size = min(options["count"], 64)
    names = ("count", "seed", "renderer", "prior", "separation", "sky_rms", "exposure")
    settings = {"command": "simulate"} | {name: options[name] for name in names}
    first = finished_batches(output, settings) if options["resume"] else 0
    batches = simulate_blends(
        options["count"],
        prior=prior,
        instrument=instrument,
        seed=options["seed"],
        render=render,
        batch_size=size,
        first=first,
        workers=options["workers"],
    )
    bar = tqdm(batches, total=-(-options["count"] // size), initial=first, desc="simulate", unit="batch")
    writing = {"instrument": instrument, "settings": settings, "first": first}
    count = write_blends(output, bar, **writing, overwrite=options["overwrite"])
    click.echo(f"{count} blends written to {output}")


@main.command()
@click.argument("output", type=FILE, default="weights.safetensors")
@click.option("--steps", type=click.IntRange(1), default=20_000, show_default=True, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Blends a batch.")
@_seed
@click.option("--data", type=FILE, help="A set of blends to train on.  [default: an endless simulated stream]")
@_resume
@_overwrite
def train(output: Path, **options: object) -> None:
    """Train a network on simulated blends and write its weights to OUTPUT (weights.safetensors).

    With its defaults this makes the weights that ship with the package.

    \b
    Example:
      probdeblend train my.safetensors --resume
    """  # noqa: D301
    from .recipe import train_weights

    train_weights(output, **options)
    click.echo(f"weights written to {output}")


@main.command()
@click.argument("blends", type=FILE)
@_weights
@_sampling
@click.option("--output", type=FILE, help="Write the whole table there too, as ECSV.")
@_overwrite
def evaluate(blends: Path, **options: object) -> None:
    """Measure accuracy and coverage of the network and of SEP on BLENDS, a set that `simulate` wrote.

    \b
    Example:
      probdeblend evaluate test --output accuracy.ecsv
    """  # noqa: D301
    from . import validate, weights
    from .io import whole_file

    output, overwrite = options.pop("output"), options.pop("overwrite")
    with nullcontext() if output is None else whole_file(output, overwrite=overwrite) as temporary:
        table = validate.evaluate(blends, weights.load(options.pop("weights")), **options)
        if temporary is not None:
            table.write(temporary, format="ascii.ecsv")
    click.echo(validate.report(table))


@main.command("render-check")
def render_check() -> None:
    """Compare the torch renderer with GalSim over a grid of galaxies: pixels, fluxes and speed.

    Exit status 1 where a limit is exceeded.

    \b
    Example:
      probdeblend render-check
    """  # noqa: D301
    from . import rendercheck

    table = rendercheck.render_check()
    click.echo(rendercheck.tabulate(table))
    if exceeded := int((~table["passed"]).sum()):
        raise click.ClickException(f"limits exceeded for {exceeded} of {len(table)} profiles")


@main.command("fit-psf")
@click.argument("image", type=FILE)
@click.option("--pixel-scale", type=float, required=True, help="Arcsec a pixel of IMAGE.")
@click.option("--output", type=FILE, default="probdeblend-psf", show_default=True, help="Folder to write.")
@click.option("--name", default="f160w", show_default=True, help="Name of the filter in the files' names.")
@_overwrite
def fit_psf(image: Path, pixel_scale: float, output: Path, name: str, overwrite: bool) -> None:
    """Fit the optical model to IMAGE, an effective PSF; write the model and its PSF at 0.06" a pixel.

    \b
    Example:
      probdeblend fit-psf f160w.fits --pixel-scale 0.04 --output psf
    """  # noqa: D301
    from . import optics
    from .io import output_folder, read_psf

    files = [f"psf_{name}.npy", f"psf_{name}.json"]
    with output_folder(output, overwrite=overwrite, files=files) as folder:
        fit = optics.fit_psf(read_psf(image, pixel_scale=pixel_scale), pixel_scale)
        optics.write_psf(fit, folder, name=name)
    measured, fitted = fit.fwhm
    click.echo(f'FWHM {fitted:.3f}" (measured {measured:.3f}")')
    click.echo(f"largest residual {fit.max_residual:.1%} of the peak")
    click.echo(f"written to {output}: {', '.join(files)}")


@main.command("fit-prior")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="prior.json", show_default=True, help="File to write.")
@_seed
@_overwrite
def fit_prior(table: Path, output: Path, seed: int, overwrite: bool) -> None:
    """Fit the prior of types, magnitudes and radii to the distinct galaxies in TABLE.

    TABLE is the published table of pairs of Boucaud et al. (2020) as CSV: its columns g1_id, g1_mag, g1_rad
    (pixels of 0.06 arcsec) and g1_type, and the same for g2, are used.

    \b
    Example:
      probdeblend fit-prior test_results.csv --output prior.json
    """  # noqa: D301
    from .io import whole_file
    from .published import describe_fit, read_galaxies

    with whole_file(output, overwrite=overwrite) as temporary:
        text, count = describe_fit(*read_galaxies(table), seed=seed)
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"prior of {count} galaxies written to {output}")
