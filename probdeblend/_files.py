"""Files that appear whole or not at all, resumable work, and the header that every file of the package bears.

A long run keeps its finished parts in one folder beside its output (`unfinished_folder`), arrays with `kept_arrays`:
the one way to resume. Every file of the package states its kind and version (`header`, `check_header`).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__: list[str] = []  # private to the package

OUTPUT_FILES = ("catalog.ecsv", "masks.fits", "images.fits", "blends.png", "field.png", "draws.nc")


VERSION = 1  # of every kind of file: none was released yet


def header(kind: str) -> dict[str, str]:
    """Return what a file of the package states about itself, to be stored as attributes or words beside its data."""
    return {"format": f"probdeblend {kind}", "version": str(VERSION)}


def check_header(attributes: Mapping[str, object], kind: str, path: object) -> None:
    """Refuse, with a ValueError, a file of another kind or version than `header` states."""
    if attributes.get("format") != f"probdeblend {kind}":
        raise ValueError(f"{path}: must be a {kind} written by probdeblend, got another file")
    if str(version := attributes.get("version")) != str(VERSION):
        raise ValueError(f"{path}: must be a {kind} of version {VERSION}, got version {version}")


def write_catalog(table: Table, path: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Write a catalog as ECSV, which keeps units, masks and descriptions.

    Parameters
    ----------
    table
        The catalog.
    path
        The file.
    overwrite
        Whether a file that exists may be replaced.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is not set.
    """
    with whole_file(path, overwrite=overwrite) as temporary:
        table.write(temporary, format="ascii.ecsv")


def write_table(
    path: str | PathLike[str], table: Table, name: str, *, figure: Figure | None = None, overwrite: bool = False
) -> list[str]:
    """Write a folder with a table, and perhaps a figure of it.

    Parameters
    ----------
    path
        The folder.
    table
        The table.
    name
        Of the files, without their endings.
    figure
        What the table shows.
    overwrite
        Whether an earlier output may be replaced.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the folder exists and is not to be, or must not be, replaced.
    """
    files = [f"{name}.ecsv"] if figure is None else [f"{name}.ecsv", f"{name}.png"]
    with output_folder(path, overwrite=overwrite, files=files) as folder:
        write_catalog(table, folder / files[0])
        if figure is not None:
            figure.savefig(folder / files[1], dpi=100)
    return files


def write_pixels(
    path: str | PathLike[str], arrays: Mapping[str, ArrayLike], corners: Table, *, header: fits.Header | None = None
) -> None:
    """Write mask probabilities, or galaxies' own images, as FITS.

    Each array is an image HDU; the table STAMPS says where in the image each blend's stamp begins.

    Parameters
    ----------
    path
        The file.
    arrays
        Pixels ``(blend, galaxy, y, x)`` by name; all of one shape.
    corners
        A row a blend: ``blend`` and the position ``x0``, ``y0`` of the stamp's first pixel in the image.
    header
        Cards for the primary header, such as the image's world coordinates.

    Raises
    ------
    FileExistsError
        If the file exists.
    ValueError
        If the shapes do not fit each other.
    """
    pixels = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    shape = next(iter(pixels.values())).shape
    for name, array in pixels.items():
        if array.ndim != 4 or array.shape != shape or len(array) != len(corners):
            axes = f"(blend, galaxy, y, x) with {len(corners)} blends, one a row of corners"
            raise ValueError(f"{name.lower()} must have the axes {axes}, got shape {array.shape}")
    hdus = [fits.PrimaryHDU(header=header)]
    hdus += [fits.ImageHDU(array, name=name) for name, array in pixels.items()]
    hdus.append(fits.table_to_hdu(corners))
    hdus[-1].name = "STAMPS"
    with whole_file(path) as temporary:
        fits.HDUList(hdus).writeto(temporary)


@contextlib.contextmanager
def output_folder(
    path: str | PathLike[str], *, overwrite: bool = False, files: Iterable[str] = OUTPUT_FILES
) -> Iterator[Path]:
    """Fill a folder that appears whole at the end of the ``with`` block, or not at all.

    Parameters
    ----------
    path
        The folder.
    overwrite
        Whether an earlier output may be replaced, which happens only once the new one is complete.
    files
        The names of what an output may hold: a folder with anything else in it is never replaced.

    Yields
    ------
    pathlib.Path
        A temporary folder to write to.

    Raises
    ------
    FileExistsError
        If `path` exists and is not to be, or must not be, replaced.
    """
    target = Path(path).resolve()
    if target.exists():
        if not overwrite:
            raise FileExistsError(f"{path}: exists already")
        if not target.is_dir():
            raise FileExistsError(f"{path}: is a file, not a folder, and is not replaced")
        if foreign := sorted({entry.name for entry in target.iterdir()} - set(files)):
            raise FileExistsError(f"{path}: is no earlier output and is not replaced, it holds {foreign[0]}")
    home = next(parent for parent in target.parents if parent.is_dir())
    temporary = home / f".{target.name}.{secrets.token_hex(4)}.partial"
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: str | PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file that appears whole at the end of the ``with`` block, or not at all.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether a file that exists may be replaced.

    Yields
    ------
    pathlib.Path
        A temporary name to write to.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished_folder(
    path: str | PathLike[str], settings: Mapping[str, object], *, resume: bool = False, overwrite: bool = False
) -> Path:
    """Make the folder that a long run keeps finished parts in, or find it again.

    Parameters
    ----------
    path
        The output of the run: the folder is beside it, with ``.partial`` appended.
    settings
        What the run depends on; of values that JSON can hold.
    resume
        Go on with the parts that an interrupted run kept.
    overwrite
        Drop them; and the output may exist.

    Returns
    -------
    pathlib.Path
        The folder. Who finishes the run removes it.

    Raises
    ------
    FileExistsError
        If the output, or an interrupted run's folder, exists and is not to be replaced.
    ValueError
        If there is nothing to resume, or it was begun with other settings.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already")
    kept = path.with_name(path.name + ".partial")
    record = kept / "settings.json"
    if resume:
        if not record.is_file():
            raise ValueError(f"there is nothing to resume: {kept} does not exist")
        if json.loads(record.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
            raise ValueError(f"{kept}: was begun with other settings, resume with those or overwrite it")
        return kept
    if kept.exists():
        if not overwrite:
            raise FileExistsError(f"{kept}: exists; resume goes on from it, overwrite starts anew")
        shutil.rmtree(kept)
    kept.mkdir(parents=True)
    record.write_text(json.dumps(settings), encoding="utf-8")
    return kept


def kept_arrays(path: Path | None, make: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
    """Make arrays and keep them, or read those that an interrupted run has kept.

    Parameters
    ----------
    path
        A file in an `unfinished_folder`, with ``.npz`` at its end; None keeps nothing.
    make
        Called where there is no such file yet.

    Returns
    -------
    dict of str to NDArray
        The arrays by their names.
    """
    if path is None:
        return make()
    if not path.exists():
        arrays = make()
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path) as stored:
        return dict(stored)


def put_in_place(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        folder.rename(target)
        return
    earlier = folder.with_suffix(".replaced")
    target.rename(earlier)
    try:
        folder.rename(target)
    except OSError:
        earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def read_tensors(path: str | PathLike[str], *, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        The file.
    kind
        What it should be, in words.

    Returns
    -------
    metadata, tensors
        Words and tensors by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None


def write_tensors(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    tensors, metadata
        Tensors and words by name.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    Path(path).write_bytes(serialize(stored, dict(metadata)))
