"""Atomic file output, resumable runs, and the header of every file of the package.

A long run keeps its finished parts in a folder beside its output (`unfinished_folder`): the one way to resume. Every
file of the package states its kind and version (`header`, `check_header`).
"""

import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from xml.etree import ElementTree

import h5py
from astropy.table import Table
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

__all__: list[str] = []  # private to the package

VERSION = 1  # of every kind of file; raise it when a format changes after a release
TABLES = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".fit": "fits", ".vot": "votable"}
TABLES[".parquet"] = "parquet"
LARGEST_RATIO = 1100  # of data to what zlib stores
LARGEST_HOLE, LEAST_FILLED = 2**26, 100  # bytes, and the ratio of a file's length to what is stored of it
GZIP = b"\x1f\x8b"  # at the beginning of a compressed file
RECORD = ".probdeblend.json"  # in a folder: the digests of the files that a run wrote
HERE, EXCHANGE = -100, 2  # of Linux's renameat2: paths from the working folder, and both names keep a folder


def header(kind: str) -> dict[str, str]:
    """Return the kind and version of a file, to be stored beside its data."""
    return {"format": f"probdeblend {kind}", "version": str(VERSION)}


def check_header(attributes: Mapping[str, object], kind: str, path: object) -> None:
    """Raise a ValueError for a file of another kind or version than `header` states."""
    if str(attributes.get("format")) != f"probdeblend {kind}":
        raise ValueError(f"{path}: must be a {kind} written by probdeblend, got another file")
    if (version := str(attributes.get("version")).strip("[]")) != str(VERSION):
        raise ValueError(f"{path}: must be a {kind} of version {VERSION}, got version {version}")


def check_file(path: str | PathLike[str], kind: str = "file") -> None:
    """Refuse a path where no file is, or one that is nearly all a hole, which would be read as gigabytes of zeros."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such {kind}")
    size, blocks = Path(path).stat().st_size, getattr(Path(path).stat(), "st_blocks", 0)
    if size > LARGEST_HOLE and 0 < 512 * LEAST_FILLED * blocks < size:
        raise ValueError(f"{path}: must hold what it has room for, got a {kind} that is nearly all a hole")


@contextlib.contextmanager
def readable(path: object, otherwise: str, *others: str) -> Iterator[None]:
    """Turn what is raised while a file is read, whatever its damage, into a sentence, if it is none of `others`."""
    try:
        yield
    except Exception as error:
        if str(error).startswith((f"{path}: ", *others)):
            raise
        raise ValueError(f"{path}: {otherwise} ({' '.join(str(error).split())[:200]})") from error


@contextlib.contextmanager
def open_hdf5(path: str | PathLike[str], kind: str) -> Iterator[h5py.File]:
    """Open an HDF5 file of a kind as by `header`, which holds all its data; what is read of it may be damaged."""
    check_file(path)
    wanted = f"must be a {kind} written by probdeblend, got another or a damaged file"
    with readable(path, wanted), h5py.File(path, "r") as file:
        check_header(file.attrs, kind, path)
        links: dict[str, object] = {}
        file.visititems_links(links.__setitem__)
        for name, link in links.items():
            item = file[name] if isinstance(link, h5py.HardLink) else None
            if item is None or (isinstance(item, h5py.Dataset) and not _stored(item)):
                raise ValueError(f"{name} is not stored in it")
        yield file


def _stored(item: h5py.Dataset) -> bool:
    """Return whether a file holds all that it claims: nothing is elsewhere, missing or packed more than zlib can."""
    stored = item.id.get_storage_size()
    if item.is_scale and not stored:  # a dimension of netCDF without coordinates
        stored = Path(item.file.filename).stat().st_size
    return not (item.is_virtual or item.external) and (item.nbytes or 0) <= LARGEST_RATIO * stored


@contextlib.contextmanager
def output_folder(
    path: str | PathLike[str], *, overwrite: bool = False, inputs: Iterable[str | PathLike[str]] = ()
) -> Iterator[Path]:
    """Fill a folder that appears whole at the end of the ``with`` block, or not at all.

    An earlier output is replaced only once the new one is complete, and only if it holds nothing but what an earlier
    run wrote, and none of the `inputs`.
    """
    target = Path(path).resolve()
    _refuse_existing(path, overwrite=overwrite)
    if target.exists():
        if not target.is_dir():
            raise FileExistsError(f"{path}: is a file, not a folder, and is not replaced")
        _refuse_foreign(target, path)
        if own := [given for given in inputs if target in Path(given).resolve().parents]:
            raise FileExistsError(f"{path}: is not replaced, because it holds the input {own[0]}")
    home = next(parent for parent in target.parents if parent.is_dir())
    temporary = _hidden(home / target.name)
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target, overwrite=overwrite)
    finally:
        _discard(temporary)


@contextlib.contextmanager
def whole_file(path: str | PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name; it appears at the end of the ``with`` block, or not at all."""
    target = _followed(path)
    if target.is_dir():
        raise FileExistsError(f"{path}: is a folder, not a file, and is not replaced")
    _refuse_existing(path, overwrite=overwrite)
    temporary = _hidden(target)
    try:
        yield temporary
        _refuse_existing(path, overwrite=overwrite)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_bytes(path: str | PathLike[str], *, overwrite: bool = False) -> Iterator[io.BytesIO]:
    """Collect the bytes of a `whole_file`, for libraries that crash where the disk is full."""
    with whole_file(path, overwrite=overwrite) as temporary:
        yield (memory := io.BytesIO())
        temporary.write_bytes(memory.getbuffer())


@contextlib.contextmanager
def unfinished_folder(
    path: str | PathLike[str], settings: Mapping[str, object], *, resume: bool = False, overwrite: bool = False
) -> Iterator[Path]:
    """Give a long run the folder for its finished parts: new, or the one that an interrupted run left.

    It lies beside the output `path`, with ``.partial`` appended, and records the `settings` that the run depends on,
    values that JSON can hold. `overwrite` drops earlier parts. At the end of the ``with`` block the folder is removed;
    after an error it stays if any part is finished. What a run that was killed had begun to write is dropped.
    """
    path = _followed(path)
    _refuse_existing(path, overwrite=overwrite)
    if path.is_dir():
        _refuse_foreign(path, path)
    kept = path.with_name(path.name + ".partial")
    record = kept / "settings.json"
    if resume:
        if not record.is_file():
            raise ValueError(f"there is nothing to resume: {kept} does not exist")
        if json.loads(record.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
            raise ValueError(f"{kept}: must be resumed with the settings it was begun with: overwrite starts over")
        for begun in kept.glob(".*.partial"):
            begun.unlink()
    else:
        if record.is_file() and not overwrite:
            raise FileExistsError(f"{kept}: an interrupted run exists: resume continues it, overwrite starts over")
        if kept.exists() and not record.is_file():
            _refuse_foreign(kept, kept)
        _remove(kept)
        with output_folder(kept) as fresh:
            (fresh / record.name).write_text(json.dumps(settings), encoding="utf-8")
    try:
        yield kept
    except BaseException:
        if {part.name for part in kept.glob("[!.]*")} <= {record.name}:
            _remove(kept)
        raise
    _remove(kept)


def put_in_place(folder: Path, target: Path, *, overwrite: bool = False) -> None:
    """Rename a folder, with a record of its files, to one that is new or holds nothing but what an earlier run wrote.

    The earlier one then has the name of the new one, which the caller removes; if that fails, it is where it was.
    """
    (folder / RECORD).write_text(json.dumps(_digests(folder), sort_keys=True), encoding="utf-8")
    target = _followed(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _refuse_existing(target, overwrite=overwrite)
    if not target.exists():
        folder.rename(target)
        return
    _exchange(folder, target)
    try:
        _refuse_foreign(folder, target)
    except BaseException:
        _exchange(folder, target)
        raise


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change names: at once in most file systems of Linux; else one name is free for a moment."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # depends on the system
        if not ctypes.CDLL(None).renameat2(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE):
            return
    aside = _hidden(other)
    try:
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
    except BaseException:
        if not other.exists():
            aside.rename(other)
        raise


def _remove(folder: Path) -> None:
    """Remove a folder, if there is one; what is half removed has a hidden name."""
    with contextlib.suppress(FileNotFoundError):
        _discard(folder.rename(_hidden(folder)))


def _discard(temporary: Path) -> None:
    """Remove a folder, if there is one, also where the first try is interrupted."""
    try:
        shutil.rmtree(temporary, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _followed(path: str | PathLike[str]) -> Path:
    """Return the place that a path names: where it is a link, the one that it leads to."""
    path = Path(path)
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _hidden(path: Path) -> Path:
    """Return an unused name beside a path, which nobody can predict."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder; what is no file has none."""
    entries = [entry for entry in folder.iterdir() if entry.name != RECORD]
    return {entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else "" for entry in entries}


def _refuse_existing(path: str | PathLike[str], *, overwrite: bool) -> None:
    """Raise a FileExistsError for what exists and is not to be replaced."""
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already")


def _refuse_foreign(folder: Path, path: str | PathLike[str]) -> None:
    """Raise a FileExistsError for a folder, known as `path`, with a file that no run wrote, or not as it is now.

    Nor is the working folder replaced: whoever is in there would see an empty one.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{path}: holds the working folder, and is not replaced: choose another output")
    record = folder / RECORD
    written = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if foreign := sorted(_digests(folder).items() - written.items()):
        found = f"because it holds {foreign[0][0]}, which no earlier run wrote as it is now"
        raise FileExistsError(f"{path}: is not replaced, {found}: move it away, or choose another output")


def read_table(path: str | PathLike[str], **options: object) -> Table:
    """Read a table in the format that its name states: one that is detected could open what a file has links to.

    The options are those of `astropy.table.Table.read` for this format.
    """
    check_file(path)
    ending = Path(str(path).lower().removesuffix(".gz")).suffix
    if ending not in TABLES:
        raise ValueError(f"{path}: must be a table whose name ends with one of {', '.join(TABLES)}")
    with readable(path, "not a table of the kind that its name says"):
        if TABLES[ending] == "votable":
            for _, node in ElementTree.iterparse(path):
                if "href" in node.attrib and node.tag.endswith("STREAM"):
                    raise ValueError("its rows are in another file")
        with Path(path).open("rb") as file:
            if file.read(len(GZIP)) == GZIP:
                with gzip.open(path) as packed:
                    packed.seek(0, os.SEEK_END)  # where its checksum is
        return Table.read(path, format=TABLES[ending], **options)


def read_tensors(path: str | PathLike[str], *, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a safetensors file, which must be of a kind as by `header`."""
    check_file(path, kind)
    with readable(path, "not a safetensors file, or damaged"), safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_header(metadata, kind, path)
    return metadata, tensors


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, kind: str
) -> None:
    """Write tensors and metadata as a safetensors file of a kind; an existing file is replaced."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_bytes(serialize(stored, header(kind) | dict(metadata)))
