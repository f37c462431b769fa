"""Options that the commands share, and error messages of one sentence."""

from __future__ import annotations

import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import reduce
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..scene import Scene
    from ..simulation.light import Sources
    from ..surveys import RealGalaxies

__all__: list[str] = []  # used from the command line alone

FILE = click.Path(path_type=Path)
BATCH_PIXELS = 2**20  # of the images of a batch
CAMERAS = ("candels_f160w", "random")


class Group(click.Group):
    """A group of commands that end with one sentence where the input is at fault, listed in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command, which a request to terminate ends like Ctrl-C, so that nothing unfinished stays."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler) or signal.SIG_DFL
        quiet, verbose = ctx.params["quiet"], ctx.params["verbose"]
        shown = warnings.catch_warnings(action="default" if verbose else "ignore")  # notes and errors say what matters
        try:
            with shown, redirect_stdout(None) if quiet else nullcontext():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted!", err=True)
            raise click.exceptions.Exit(130) from None  # as shells report it
        except (BrokenPipeError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if verbose:
                traceback.print_exc()
            raise click.ClickException(sentence(error)) from error
        finally:
            signal.signal(signal.SIGTERM, before)


def sentence(error: Exception) -> str:
    """Say what went wrong in one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        text = f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    elif "Original Traceback" in text:  # raised in a worker of a data loader
        text = text.strip().splitlines()[-1].partition(": ")[2]
    elif not isinstance(error, ValueError | TypeError | OSError | ImportError):
        text = f"unexpected {type(error).__name__}: {text}"
    missing = f"; python -m pip install {error.name}" if isinstance(error, ModuleNotFoundError) and error.name else ""
    hint = "; --overwrite replaces it" if text.endswith("exists already") else missing
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split())[:600]) + hint


def combine(*options: Callable) -> Callable:
    """Make one decorator of several options."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


fold = click.option(
    "--fold", "folds", type=click.IntRange(0, 4), multiple=True, help="Folds of galaxies to use.  [default: all five]"
)
galaxies = combine(
    click.option("--galaxies", type=FILE, multiple=True, help="Library of real galaxies, for half of all."), fold
)


def real_galaxies(libraries: Iterable[Path], folds: Iterable[int], fraction: float) -> RealGalaxies:
    """Return the real galaxies of some folds of libraries, of all five if none is named."""
    from ..surveys import RealGalaxies, fold_of, read_library

    chosen = set(folds) or {*range(5)}
    return RealGalaxies([one for one in read_library(*libraries) if fold_of(one.identity) in chosen], fraction)


def sources(given: dict[str, Any]) -> Sources:
    """Return what makes the light of sources: half of the galaxies are real, if there are any."""
    from ..simulation.light import SimulatedSources

    if given["folds"] and not given["galaxies"]:
        raise ValueError("fold requires galaxies, got none")
    return real_galaxies(given["galaxies"], given["folds"], 0.5) if given["galaxies"] else SimulatedSources()


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse infinities and NaN."""
    if value is not None and not isfinite(value):
        raise ValueError(f"{option.name} must be finite, got {value}")
    return value


def picked(options: dict, *names: str) -> dict:
    """Return some of the options by their names."""
    return {name: options[name] for name in names}


def observed(given: Mapping[str, Any]) -> dict[str, object]:
    """Turn options into what is known of an image."""
    found = picked(given, "gain", "mask", "dq")
    found["psf"] = given["psf"][0] if len(given["psf"]) == 1 else list(given["psf"]) or None
    found |= {name: list(given[name]) or None for name in ("zero_point", "wavelength")}
    try:
        return found | {"sky_rms": [float(value) for value in given["rms"]] or None}
    except ValueError:
        if len(given["rms"]) > 1:
            text = ", ".join(given["rms"])
            raise ValueError(f"rms must be a file or numbers, one per band, got {text}") from None
        return found | {"sky_rms": given["rms"][0]}


def bands(given: Mapping[str, Any], images: Iterable[Path]) -> list[Path | str]:
    """Return images with the HDU that is chosen."""
    return [path if given["hdu"] is None else f"{path}[{given['hdu']}]" for path in images]


def exclusive(options: dict, *names: str) -> None:
    """Refuse two options that are mutually exclusive."""
    if all(options[name] not in (None, (), False) for name in names):
        raise ValueError(f"{' and '.join(names)} are mutually exclusive, got both")


def new_folder(given: Mapping[str, Any], *inputs: object) -> AbstractContextManager[Path]:
    """Return the output's folder, which must not hold `inputs` or another file that is given."""
    from .._files import output_folder

    others = [value for name, value in given.items() if isinstance(value, Path) and name != "output"]
    return output_folder(given["output"], overwrite=given["overwrite"], inputs=[*inputs, *others])


def write_set(output: Path, sources: Sources, given: Mapping[str, Any], settings: dict) -> None:
    """Write a set of the scenes that are asked for, with a progress bar, and say how many they are."""
    import numpy as np
    from tqdm import tqdm

    from ..simulation import Camera, Cameras, Population, Simulator, write_scenes

    camera, count, side = Camera.candels_f160w(), given["count"], given["size"]
    if given["camera"] == "random":
        camera = Cameras(native_fraction=0.0).sample(np.random.default_rng(given["seed"]))
    population = getattr(Population, given["population"])()
    simulator = Simulator(population, camera, (side, side), given["sources"], sources)
    size = max(1, min(64, count, BATCH_PIXELS // side**2))

    def batches(first: int) -> Iterator[Scene]:
        made = simulator.batches(count, seed=given["seed"], batch_size=size, first=first, workers=given["workers"])
        return iter(tqdm(made, total=-(-count // size), initial=first, unit="batch", disable=None))

    settings = settings | picked(given, "count", "population", "sources", "camera", "size", "seed")
    how = picked(given, "resume", "overwrite")
    written = write_scenes(output, batches, settings=settings | {"batch_size": size}, **how)
    click.echo(f"{written} scenes written to {output}")


overwrite = click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
resume = click.option("--resume", is_flag=True, help="Resume an interrupted run.")
weights = click.option("--weights", type=FILE, help="Weights file.  [default: shipped]")
seed = click.option("--seed", type=click.IntRange(0), default=0, help="Random seed: same seed, same result.")
observation = combine(
    click.option("--hdu", metavar="HDU", help="Number or name of the image HDU, or NAME,VERSION."),
    click.option("--psf", metavar="FILE|candels_f160w", multiple=True, help="Effective PSF.  [default: measured]"),
    click.option("--rms", metavar="VALUE|FILE", multiple=True, help="Sky noise per pixel.  [default: measured]"),
    click.option("--mask", type=FILE, help="Image that is not zero where pixels are bad."),
    click.option("--dq", metavar="BITS", help="Bits of extension DQ that make a pixel bad.  [default: the usual ones]"),
    click.option("--zero-point", type=float, multiple=True, help="AB magnitude of unit flux.  [default: the header's]"),
    click.option("--gain", type=float, callback=finite, help="Counts per unit of flux, for photon noise."),
    click.option("--wavelength", type=float, multiple=True, help="Wavelength in micron."),
)
calibrator = combine(
    click.option("--calibrator", type=FILE, help="Calibrator file.  [default: the one inside the weights]"),
    click.option("--no-calibrator", is_flag=True, help="Return the network's posterior uncalibrated."),
)


def output(default: str | None, what: str = "Folder") -> Callable:
    """Make the option that names the output; None if it must be given."""
    return click.option("--output", type=FILE, default=default, required=default is None, help=f"{what} to write.")


def workers(default: int) -> Callable:
    """Make the option that names the number of worker processes."""
    return click.option("--workers", type=click.IntRange(0), default=default, help="Worker processes; 0 for none.")


scenes = combine(
    click.option("--count", type=click.IntRange(1), default=2000, help="Number of scenes."),
    click.option(
        "--population",
        type=click.Choice(["published", "pairs", "default"]),
        default="published",
        help="published or fainter pairs; default: 0 to 14 clustered galaxies and stars.",
    ),
    click.option("--sources", type=click.IntRange(0), help="Number of sources in every scene.  [default: drawn]"),
    click.option("--camera", type=click.Choice(CAMERAS), default=CAMERAS[0], help="random: one drawn by the seed."),
    click.option("--size", type=click.IntRange(16), default=128, help="Pixels on a side."),
    seed,
    workers(0),
    resume,
    overwrite,
)
