"""What commands share: options, and how a mistake of the user's is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure

__all__: list[str] = []  # what is here is used from the command line

FILE = click.Path(path_type=Path)


class Group(click.Group):
    """A group whose commands end with a sentence where the input is at fault."""

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


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Say before long work that its output exists."""
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output}: exists already")


def finish(options: Mapping[str, object], table: Table, name: str, said: str, *, figure: Figure | None = None) -> None:
    """Write a table, and its figure, and say what is in them."""
    from .._files import write_table

    names = write_table(options["output"], table, name, figure=figure, overwrite=options["overwrite"])
    click.echo(said)
    click.echo(f"written to {options['output']}: {', '.join(names)}")


def progress(batches: Iterator, count: int, size: int, first: int) -> Iterator:
    """Show a bar over batches, from the first one on."""
    from tqdm import tqdm

    yield from tqdm(batches, total=-(-count // size), initial=first, unit="batch")


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
crowding_option = click.option(
    "--crowding", default="0,1", show_default=True, help="Probabilities of one, two, ... galaxies."
)
resume_option = click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
workers_option = click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that work; 0 for this one alone."
)
weights_option = click.option("--weights", type=FILE, help="A weights file.  [default: those of the package]")
method_option = click.option(
    "--method",
    type=click.Choice(["auto", "gauss-newton", "elbo"]),
    default="auto",
    show_default=True,
    help="Refine from the curvature at the mode, by variational inference, or by this where the first does badly.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same answer."
)
sampling_options = combine(
    click.option("--draws", type=click.IntRange(1), default=1000, show_default=True, help="Draws of each flux."),
    click.option("--passes", type=click.IntRange(0), default=32, show_default=True, help="Dropout passes; 0 for none."),
    seed_option,
)
