"""Atomic file output, resumable runs, and the header of every file of the package.

A long run keeps its finished parts in a folder beside its output (`unfinished_folder`): the one way to resume. Every
file of the package states its kind and version (`header`, `check_header`).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

__all__: list[str] = []  # private to the package

VERSION = 1  # of every kind of file; raise it when a format changes after a release


def header(kind: str) -> dict[str, str]:
    """Return the kind and version of a file, to be stored beside its data."""
    return {"format": f"probdeblend {kind}", "version": str(VERSION)}


def check_header(attributes: Mapping[str, object], kind: str, path: object) -> None:
    """Raise a ValueError for a file of another kind or version than `header` states."""
    if attributes.get("format") != f"probdeblend {kind}":
        raise ValueError(f"{path}: must be a {kind} written by probdeblend, got another file")
    if str(version := attributes.get("version")) != str(VERSION):
        raise ValueError(f"{path}: must be a {kind} of version {VERSION}, got version {version}")


@contextlib.contextmanager
def output_folder(path: str | PathLike[str], *, files: Iterable[str], overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder that appears whole at the end of the ``with`` block, or not at all.

    An earlier output is replaced only once the new one is complete, and only if it holds nothing but `files`.
    """
    target = Path(path).resolve()
    if target.exists():
        if not overwrite:
            raise FileExistsError(f"{path}: exists already")
        if not target.is_dir():
            raise FileExistsError(f"{path}: is a file, not a folder, and is not replaced")
        if foreign := sorted({entry.name for entry in target.iterdir()} - set(files)):
            raise FileExistsError(f"{path}: is not replaced, because it holds {foreign[0]}, which no earlier run wrote")
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
    """Write a file under a temporary name; it appears at the end of the ``with`` block, or not at all."""
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
    """Return the folder for the finished parts of a long run: new, or the one that an interrupted run left.

    It lies beside the output `path`, with ``.partial`` appended, and records the `settings` that the run depends on,
    values that JSON can hold. `overwrite` drops earlier parts. The caller removes the folder at the end.
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
            raise ValueError(f"{kept}: must be resumed with the settings it was begun with: overwrite starts over")
        return kept
    if kept.exists():
        if not overwrite:
            raise FileExistsError(f"{kept}: an interrupted run exists: resume continues it, overwrite starts over")
        shutil.rmtree(kept)
    kept.mkdir(parents=True)
    record.write_text(json.dumps(settings), encoding="utf-8")
    return kept


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a folder, replacing an earlier one, which is back if that fails."""
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
    """Return the metadata and the tensors of a safetensors file, which must be of a kind as by `header`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({error})") from None
    check_header(metadata, kind, path)
    return metadata, tensors


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, kind: str
) -> None:
    """Write tensors and metadata as a safetensors file of a kind; an existing file is replaced."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_bytes(serialize(stored, header(kind) | dict(metadata)))
