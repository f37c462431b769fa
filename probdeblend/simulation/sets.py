"""Sets of blends with their truth, in HDF5.

A set is a folder of shards, ``blends-00000000.h5`` and so on, the number being that of the shard's first
blend. A shard is an HDF5 file with the attributes ``format`` ("probdeblend blends"), ``version`` and
``settings`` (JSON that says how the set was made). Each known field of a `Blend` is a dataset of that name
whose first axis counts blends. The pixels of ``image`` and ``isolated`` are 16-bit floats in units of 16 times
the blend's ``sky_rms``: rounding adds 0.03 % of a pixel, far less than its photon noise. Boolean arrays
are packed along their last axis (`numpy.packbits`), the attribute ``width`` giving its length. The group
``instrument`` holds the numbers of the `Instrument` as attributes and its arrays as datasets.

While a set is written, its whole shards stand in a folder with ``.partial`` appended to the name; an
interrupted run can go on from there.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import torch

from .._files import put_in_place, whole_file
from ..scene import Blend, Instrument

__all__ = ["count_blends", "finished_batches", "read_blends", "read_instrument", "write_blends"]

FORMAT = "probdeblend blends"
VERSION = 2
BATCHES_PER_SHARD = 16
PIXELS = ("image", "isolated")
PIXEL_UNIT = 16.0  # in units of the sky noise
LARGEST = float(np.finfo(np.float16).max)


def write_blends(
    path: str | PathLike[str],
    batches: Iterable[Blend],
    *,
    instrument: Instrument,
    settings: Mapping[str, object] | None = None,
    first: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a set of blends, 16 batches a shard, with one batch in memory at a time.

    Where writing is interrupted or fails, whole shards stay in ``PATH.partial``, to go on from.

    Parameters
    ----------
    path
        The folder.
    batches
        Batches with the same known fields.
    instrument
        What the images were taken with.
    settings
        How the set is made, in terms that JSON knows; stored in every shard.
    first
        Number of the first of `batches`: what `finished_batches` returns to go on with an interrupted set.
    overwrite
        Whether a set that exists, or an unfinished one, may be replaced.

    Returns
    -------
    int
        How many blends the set holds.

    Raises
    ------
    FileExistsError
        If the folder exists and `overwrite` is not set, or is no set; if there is an unfinished set and
        `first` is zero.
    ValueError
        If there is no batch, or the fields of one differ from those of the first.
    """
    path = Path(path)
    _check_free(path, overwrite=overwrite)
    unfinished = _unfinished(path)
    if not first and unfinished.exists():
        if not overwrite:
            raise FileExistsError(f"{unfinished}: an unfinished set; --resume goes on, --overwrite starts anew")
        shutil.rmtree(unfinished)
    attributes = {"format": FORMAT, "version": VERSION, "settings": _settings(settings)}
    shards = _shard_files(unfinished)
    start = _first_blend(shards[-1]) + _length(shards[-1]) if shards else 0
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        for remains in unfinished.glob(".*.partial"):
            remains.unlink()
        for group in _groups(iter(batches)):
            shard = unfinished / f"blends-{start:08d}.h5"
            with whole_file(shard) as temporary, h5py.File(temporary, "w") as file:
                file.attrs.update(attributes)
                _write_instrument(file.create_group("instrument"), instrument)
                start += _write_shard(file, group, known=_known_fields(shards))
            shards.append(shard)
        if not start:
            raise ValueError("batches must hold at least one blend, got none")
    except BaseException:
        if not shards:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    put_in_place(unfinished, path)
    return start


def finished_batches(path: str | PathLike[str], settings: Mapping[str, object] | None = None) -> int:
    """Return how many batches an interrupted run left in whole shards.

    Parameters
    ----------
    path
        The set's folder, as given to `write_blends`.
    settings
        As given to `write_blends`; those of the interrupted run must be the same.

    Returns
    -------
    int
        Number of the batch to go on with.

    Raises
    ------
    ValueError
        If there is nothing to go on from, or it was made with other settings.
    """
    shards = _shard_files(_unfinished(Path(path)))
    if not shards:
        raise ValueError(f"{_unfinished(Path(path))}: no unfinished set to go on from")
    with _shard(shards[-1]) as file:
        if (found := file.attrs["settings"]) != _settings(settings):
            raise ValueError(f"{shards[-1].parent}: made with other settings, {found}")
    return BATCHES_PER_SHARD * len(shards)


def read_blends(path: str | PathLike[str], start: int = 0, stop: int | None = None) -> Blend:
    """Read blends from a set that `write_blends` wrote.

    Parameters
    ----------
    path
        The set's folder, or one of its shards.
    start, stop
        The first blend, and the one after the last; None for all that follow.

    Returns
    -------
    Blend
        The blends from `start` up to `stop`.

    Raises
    ------
    FileNotFoundError
        If there is no such set.
    ValueError
        If it is not a set of blends or has another version of the format, or if the range is not in it.
    """
    shards, starts = _index(path)
    total = starts[-1]
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise ValueError(f"start and stop must be from 0 to {total} and in order, got {start} and {stop}")
    spans = zip(shards, starts[:-1], starts[1:], strict=True)
    overlapping = [(shard, low, high) for shard, low, high in spans if low < stop and high > start]
    wanted = [(shard, max(start - low, 0), min(stop, high) - low) for shard, low, high in overlapping]
    parts = []
    for shard, low, high in wanted or [(shards[0], 0, 0)]:
        with _shard(shard) as file:
            if high > len(file["image"]):
                raise ValueError(f"{path}: a shard is missing after {shard.name}")
            parts.append(_load(file, low, high))
    return Blend(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def count_blends(path: str | PathLike[str]) -> int:
    """Return how many blends a set holds.

    Parameters
    ----------
    path
        The set, as for `read_blends`.

    Returns
    -------
    int
        The number of blends.
    """
    return _index(path)[1][-1]


def read_instrument(path: str | PathLike[str]) -> Instrument:
    """Return what the images of a set of blends were taken with.

    Parameters
    ----------
    path
        The set, as for `read_blends`.

    Returns
    -------
    Instrument
        The instrument.
    """
    with _shard(_index(path)[0][0]) as file:
        group = file["instrument"]
        arrays = {name: torch.from_numpy(group[name][()]) for name in group}
        return Instrument(**{name: float(value) for name, value in group.attrs.items()}, **arrays)


def _settings(settings: Mapping[str, object] | None) -> str:
    return json.dumps(dict(settings or {}), sort_keys=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _check_free(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path}: exists already")
    if not path.is_dir():
        raise FileExistsError(f"{path}: is a file, not a set of blends, and is not replaced")
    foreign = sorted({entry.name for entry in path.iterdir()} - {entry.name for entry in _shard_files(path)})
    if foreign:
        raise FileExistsError(f"{path}: is no set of blends and is not replaced, it holds {foreign[0]}")


def _shard_files(path: Path) -> list[Path]:
    return sorted(path.glob("blends-????????.h5"))


def _first_blend(shard: Path) -> int:
    return int(shard.stem.removeprefix("blends-"))


def _length(shard: Path) -> int:
    with _shard(shard) as file:
        return len(file["image"])


def _index(path: str | PathLike[str]) -> tuple[list[Path], list[int]]:
    """Return the shards of a set, and the numbers of their first blends with the total appended."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such set of blends")
    shards = _shard_files(path) if path.is_dir() else [path]
    if not shards:
        raise ValueError(f"{path}: not a set of blends written by probdeblend")
    starts = [_first_blend(shard) for shard in shards] if path.is_dir() else [0]
    return shards, [*starts, starts[-1] + _length(shards[-1])]


def _groups(batches: Iterator[Blend]) -> Iterator[Iterator[Blend]]:
    """Split batches into groups of a shard's size, without holding more than one batch."""

    def group(head: Blend) -> Iterator[Blend]:
        yield head
        for _ in range(BATCHES_PER_SHARD - 1):
            if (batch := next(batches, None)) is None:
                return
            yield batch

    while (head := next(batches, None)) is not None:
        yield group(head)


def _known_fields(shards: list[Path]) -> set[str] | None:
    if not shards:
        return None
    with _shard(shards[-1]) as file:
        return file.keys() - {"instrument"}


def _write_shard(file: h5py.File, batches: Iterable[Blend], *, known: set[str] | None) -> int:
    count = 0
    for batch in batches:
        given = {field.name for field in fields(batch) if getattr(batch, field.name) is not None}
        known = given if known is None else known
        if given != known:
            differing = ", ".join(sorted(given ^ known))
            raise ValueError(f"batches must have the same fields, only some have {differing}")
        for name in sorted(known):
            values = getattr(batch, name).detach().cpu()
            if name in PIXELS:
                unit = PIXEL_UNIT * batch.sky_rms.cpu()
                values = values / unit.reshape(-1, *[1] * (values.ndim - 1))
            _append(file, name, values.numpy())
        count += len(batch)
    return count


def _write_instrument(group: h5py.Group, instrument: Instrument) -> None:
    for field in fields(instrument):
        value = getattr(instrument, field.name)
        if isinstance(value, torch.Tensor):
            group[field.name] = value.detach().cpu().numpy()
        elif value is not None:
            group.attrs[field.name] = value


def _append(file: h5py.File, name: str, values: np.ndarray) -> None:
    width = values.shape[-1]
    packed = values.dtype == bool
    if packed:
        values = np.packbits(values, axis=-1)
    elif name in PIXELS:
        values = _half(name, values)
    if name not in file:
        file.create_dataset(
            name,
            shape=(0, *values.shape[1:]),
            maxshape=(None, *values.shape[1:]),
            dtype=values.dtype,
            chunks=(16 if values.ndim > 3 else 1024, *values.shape[1:]),
            # Light without noise and masks compress well, noise does not.
            compression=None if name == "image" or values.ndim < 4 else "lzf",
            shuffle=name == "isolated",
        )
        if packed:
            file[name].attrs["width"] = width
    dataset = file[name]
    dataset.resize(len(dataset) + len(values), axis=0)
    dataset[len(dataset) - len(values) :] = values


def _half(name: str, values: np.ndarray) -> np.ndarray:
    most = float(np.nanmax(np.abs(values), initial=0.0))
    if most > LARGEST:
        brightest = PIXEL_UNIT * most
        raise ValueError(f"{name} must be below a million times the sky noise to be stored, got {brightest:.3g}")
    return values.astype(np.float16)


def _load(file: h5py.File, start: int, stop: int) -> dict[str, torch.Tensor]:
    loaded = {}
    for name in file.keys() - {"instrument"}:
        values = file[name][start:stop]
        if "width" in file[name].attrs:
            values = np.unpackbits(values, axis=-1, count=int(file[name].attrs["width"])).astype(bool)
        loaded[name] = torch.from_numpy(values)
    unit = PIXEL_UNIT * loaded["sky_rms"]
    for name in loaded.keys() & set(PIXELS):
        loaded[name] = loaded[name].float() * unit.float().reshape(-1, *[1] * (loaded[name].ndim - 1))
    return loaded


@contextlib.contextmanager
def _shard(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a set of blends written by probdeblend, or damaged") from error
    with file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{path}: not a set of blends written by probdeblend")
        if (version := file.attrs.get("version")) != VERSION:
            raise ValueError(f"{path}: a set of version {version}, this probdeblend reads version {VERSION}")
        if not {"image", "sky_rms", "instrument"} <= file.keys():
            raise ValueError(f"{path}: not a set of blends written by probdeblend")
        yield file
