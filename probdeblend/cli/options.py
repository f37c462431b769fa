"""Options that the commands share, and error messages of one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from astropy.table import Table

__all__: list[str] = []  # used from the command line alone

FILE = click.Path(path_type=Path)


class Group(click.Group):
    """A group of commands that end with one sentence where the input is at fault, listed in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, TypeError, OSError) as error:
            raise click.ClickException(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
    if "Original Traceback" in str(error):  # raised in a worker of a data loader
        return str(error).strip().splitlines()[-1].partition(": ")[2]
    hint = "; --overwrite replaces it" if str(error).endswith("exists already") else ""
    return " ".join(str(error).split()) + hint


def combine(*options: Callable) -> Callable:
    """Make one decorator of several options."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse infinities and NaN."""
    if value is not None and not isfinite(value):
        raise ValueError(f"{option.name} must be finite, got {value}")
    return value


def probabilities(text: str) -> tuple[float, ...]:
    """Read probabilities that are separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"crowding must be numbers separated by commas, got {text!r}") from None


def columns(text: str) -> dict[str, str]:
    """Read NAME=COLUMN pairs that are separated by commas."""
    pairs = [part.split("=") for part in text.split(",") if part]
    if wrong := ["=".join(pair) for pair in pairs if len(pair) != 2]:
        raise ValueError(f"columns must be NAME=COLUMN, separated by commas, got {wrong[0]!r}")
    return {name.strip(): column.strip() for name, column in pairs}


def picked(options: dict, *names: str) -> dict:
    """Return some of the options by their names."""
    return {name: options[name] for name in names}


def exclusive(options: dict, *names: str) -> None:
    """Refuse two options that are mutually exclusive."""
    if all(options[name] not in (None, (), False) for name in names):
        raise ValueError(f"{' and '.join(names)} are mutually exclusive, got both")


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists before the work begins, not after it."""
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output}: exists already")


def show(table: Table) -> None:
    """Print a whole table."""
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))


def progress(batches: Iterator, count: int, size: int, first: int) -> Iterator:
    """Show a progress bar over batches, from the first one on."""
    from tqdm import tqdm

    yield from tqdm(batches, total=-(-count // size), initial=first, unit="batch")


overwrite = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
crowding = click.option(
    "--crowding", default="0,1", show_default=True, help="Probabilities of one, two, ... galaxies in a stamp."
)
resume = click.option("--resume", is_flag=True, help="Resume an interrupted run.")
workers = click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Worker processes; 0 for none."
)
weights = click.option("--weights", type=FILE, help="Weights file.  [default: shipped]")
hdu = click.option("--hdu", metavar="HDU", help="Number or name of the image HDU.")
psf = click.option("--psf", type=FILE, help="Effective PSF of the image, checked against that of the weights.")
pixel_scale = click.option("--pixel-scale", type=float, help="Arcsec per pixel.  [default: from the header]")
seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed: same seed, same result."
)
noise = combine(
    click.option("--rms", metavar="VALUE|FILE", help="Sky noise per pixel.  [default: measured in the image]"),
    click.option("--rms-as-is", is_flag=True, help="Do not rescale an rms map to the scatter in the image."),
)
sampling = combine(
    click.option("--draws", type=click.IntRange(1), default=1000, show_default=True, help="Posterior draws."),
    click.option(
        "--passes", type=click.IntRange(0), default=32, show_default=True, help="Monte Carlo dropout passes; 0: none."
    ),
    seed,
)
calibrator = combine(
    click.option("--calibrator", type=FILE, help="Calibrator file.  [default: the one inside the weights]"),
    click.option("--no-calibrator", is_flag=True, help="Return the network's posterior uncalibrated."),
)
catalog_zero_point = click.option(
    "--zero-point", type=float, callback=finite, help="AB magnitude of unit flux, where headers have none."
)


def output(default: str | None, what: str = "Folder") -> Callable:
    """Make the option that names the output; None if it must be given."""
    if default is None:
        return click.option("--output", type=FILE, required=True, help=f"{what} to write.")
    return click.option("--output", type=FILE, default=default, show_default=True, help=f"{what} to write.")


def faintest(default: float) -> Callable:
    """Make the option that names the faintest magnitude."""
    return click.option(
        "--magnitude", type=float, default=default, show_default=True, callback=finite, help="Faintest magnitude."
    )
