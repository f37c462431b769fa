"""What benchmarks share on the command line: options, where they write, and one sentence for a mistake."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from astropy.table import Table
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from probdeblend.deblending.deblender import Deblender

__all__ = ["FILE", "RESULTS", "Command", "Run", "benchmark", "digests", "kept_arrays", "sized_option", "weights_option"]

RESULTS = Path("results")
FILE = click.Path(path_type=Path)
NOT_QUOTED = ("--output", "--overwrite", "--resume", "--weights")  # the table states digests of weights instead


@dataclass(frozen=True)
class Run:
    """One run of a benchmark: its seed, and where its table goes."""

    name: str
    output: Path
    seed: int
    full: bool
    overwrite: bool
    resume: bool = False
    command: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def asks(self, deblender: Deblender) -> dict[str, str]:
        """Note that the table is about the answers of a deblender, whose `digests` it then states."""
        self.asked.append(digests(deblender))
        return self.asked[-1]

    @contextmanager
    def unfinished(self, *, deblender: Deblender | None = None, **settings: object) -> Iterator[Path]:
        """Keep finished parts beside the output until the ``with`` block ends; they hold for the same settings only."""
        from probdeblend import __version__
        from probdeblend._files import unfinished_folder

        settings |= {"benchmark": self.name, "seed": self.seed, "probdeblend": __version__}
        if deblender is not None:
            settings |= self.asks(deblender)
        with unfinished_folder(self.output, settings, resume=self.resume, overwrite=self.overwrite) as kept:
            yield kept

    def write(self, table: Table, *, figure: Figure | None = None) -> None:
        """Write OUTPUT/NAME.ecsv, and NAME.png with a figure, and print the table and its metadata.

        The metadata tell how the table was made: the command, the version, and digests of the weights.
        """
        from probdeblend import __version__
        from probdeblend._files import output_folder

        table.meta |= {"command": self.command, "probdeblend": __version__}
        for name in ("weights", "calibrator") if self.asked else ():
            table.meta[name] = ", ".join(dict.fromkeys(one[name] for one in self.asked))
        names = [f"{self.name}.ecsv"] if figure is None else [f"{self.name}.ecsv", f"{self.name}.png"]
        with output_folder(self.output, overwrite=self.overwrite) as folder:
            table.write(folder / names[0], format="ascii.ecsv")
            if figure is not None:
                figure.savefig(folder / names[1], dpi=100)
        click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))
        for name, value in table.meta.items():
            click.echo(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
        click.echo(f"written to {self.output}: {', '.join(names)}")


def benchmark(name: str, *, resume: bool = True) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function that takes a `Run` and its own options."""
    output = {"type": FILE, "default": RESULTS / name, "show_default": True}
    options = [
        click.Option(["--full"], is_flag=True, is_eager=True, help="Run at the size quoted in the documentation."),
        click.Option(["--seed"], type=click.IntRange(0), default=0, show_default=True, help="Same seed, same table."),
        click.Option(["--output"], **output, help="Folder to write."),
        click.Option(["--overwrite"], is_flag=True, help="Replace an earlier output."),
    ]
    if resume:
        options.append(click.Option(["--resume"], is_flag=True, help="Resume an interrupted run."))

    def make(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def run(**given: object) -> None:
            taken = {option.name: given.pop(option.name) for option in options}
            if taken["output"].exists() and not taken["overwrite"]:
                raise FileExistsError(f"{taken['output']}: exists already; --overwrite replaces it")
            function(Run(name, **taken, command=_quoted(click.get_current_context())), **given)

        run.__click_params__ = options[::-1] + getattr(function, "__click_params__", [])
        return click.command(f"python -m benchmarks.{name}", cls=Command)(run)

    return make


def digests(deblender: Deblender) -> dict[str, str]:
    """Return digests of the network and of its calibrator, in hexadecimal digits."""
    fitted = deblender.calibrator
    calibrator = "none" if fitted is None else hashlib.sha256(fitted.describe().encode()).hexdigest()[:16]
    return {"weights": deblender.digest, "calibrator": calibrator}


def _quoted(context: click.Context) -> str:
    """Return the command with its options, without what depends on where files lie."""
    words = context.command.name.split()
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if not given or option.opts[0] in NOT_QUOTED:
            continue
        value = context.params[option.name]
        for one in value if option.multiple else [value]:
            words += [option.opts[0]] if option.is_flag else [option.opts[0], getattr(one, "name", str(one))]
    return shlex.join(words)


def sized_option(flag: str, small: int, full: int, *, least: int = 1, help: str) -> Callable:  # noqa: A002
    """Make an option for a number that is small by default and large with ``--full``."""

    def choose(context: click.Context, _: click.Parameter, value: int | None) -> int:
        return (full if context.params["full"] else small) if value is None else value

    text = f"{help}  [default: {small}, with --full {full}]"
    return click.option(flag, type=click.IntRange(least), callback=choose, help=text)


weights_option = click.option("--weights", type=FILE, help="Weights file.  [default: the one that ships]")


def kept_arrays(path: Path | None, make: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
    """Make arrays and keep them in an ``.npz`` file, or read what an interrupted run has kept; None keeps nothing."""
    import numpy as np

    from probdeblend._files import whole_file

    if path is None:
        return make()
    if not path.exists():
        arrays = make()
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path) as stored:
        return dict(stored)


class Command(click.Command):
    """A command that ends with a sentence where the input is at fault."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
