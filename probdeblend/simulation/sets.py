"""Sets of blends with their truth, in HDF5.

A set is a folder of shards, ``blends-00000000.h5`` and so on, numbered by the first blend of each. A shard is an HDF5
file: each known field of a `Blend` is a dataset of that name whose first axis is the blend. The pixels of ``image`` and
``isolated`` are 16-bit floats in units of 16 times the ``sky_rms`` of the blend: rounding adds 0.03 % of a pixel, far
less than its photon noise. Boolean arrays are packed along their last axis (`numpy.packbits`), whose length is the
attribute ``width``. The group ``instrument`` holds the numbers of the `Instrument` as attributes and its arrays as
datasets. Beside the shards, ``settings.json`` tells how the set was made.

While a set is written, its complete shards are in a folder with ``.partial`` appended to the name, from which an
interrupted run can be resumed.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import torch

from .._files import check_header, header, put_in_place, unfinished_folder, whole_file
from ..scene import Blend, Instrument

__all__ = ["count_blends", "read_blends", "read_instrument", "write_blends"]

KIND = "set of blends"
SETTINGS = "settings.json"
BATCHES_PER_SHARD = 16
PIXELS = ("image", "isolated")
PIXEL_UNIT = 16.0  # in units of the sky noise
LARGEST = float(np.finfo(np.float16).max)


def write_blends(
    path: str | PathLike[str],
    batches: Iterable[Blend] | Callable[[int], Iterable[Blend]],
    *,
    instrument: Instrument,
    settings: Mapping[str, object] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a set of blends, 16 batches per shard.

    If writing is interrupted or fails, complete shards stay in ``PATH.partial``, and `resume` continues from them.

    Parameters
    ----------
    path
        The folder.
    batches
        Batches with the same known fields, or a function that is called with the number of the first batch to make,
        which is not zero for a resumed set.
    instrument
        What the images were taken with.
    settings
        How the set is made, as values that JSON can hold.
    resume
        Continue an interrupted set, which must have been made with the same settings.
    overwrite
        Whether a set that exists, or an unfinished one, may be replaced.

    Returns
    -------
    int
        Number of blends in the set.

    Raises
    ------
    FileExistsError
        If the folder exists and `overwrite` is not set, or is not a set; or if there is an unfinished set.
    ValueError
        If there is no batch, or the fields of one differ from those of the first; if there is nothing to resume, or it
        was made with other settings.
    """
    path = Path(path)
    _check_replaceable(path)
    unfinished = unfinished_folder(path, settings or {}, resume=resume, overwrite=overwrite)
    for remains in unfinished.glob(".*.partial"):
        remains.unlink()
    shards = _shard_files(unfinished)
    first, count = BATCHES_PER_SHARD * len(shards), _index(unfinished)[1][-1] if shards else 0
    remaining = _alike(batches(first) if callable(batches) else islice(batches, first, None))
    try:
        while (batch := next(remaining, None)) is not None:
            shard = unfinished / f"blends-{count:08d}.h5"
            with whole_file(shard) as temporary, h5py.File(temporary, "w") as file:
                file.attrs.update(header(KIND))
                _write_instrument(file.create_group("instrument"), instrument)
                for part in chain([batch], islice(remaining, BATCHES_PER_SHARD - 1)):
                    _append(file, part)
                    count += len(part)
            shards.append(shard)
        if not count:
            raise ValueError("batches must hold at least one blend, got none")
    except BaseException:
        if not shards:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    put_in_place(unfinished, path)
    return count


def read_blends(path: str | PathLike[str], start: int = 0, stop: int | None = None) -> Blend:
    """Read blends from a set that `write_blends` wrote.

    Parameters
    ----------
    path
        The folder of the set, or one of its shards.
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
    parts = []
    for shard, low, high in zip(shards, starts[:-1], starts[1:], strict=True):
        if (low < stop and high > start) or (start == stop and not parts):
            with _shard(shard) as file:
                if high - low > len(file["image"]):
                    raise ValueError(f"{path}: a shard is missing after {shard.name}")
                begin = max(start - low, 0)
                parts.append(_load(file, begin, max(min(stop, high) - low, begin)))
    return Blend.join(parts)


def count_blends(path: str | PathLike[str]) -> int:
    """Return the number of blends in a set.

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


def _check_replaceable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: is a file, not a set of blends, and is not replaced")
    foreign = {entry.name for entry in path.glob("*")} - {entry.name for entry in _shard_files(path)} - {SETTINGS}
    if foreign:
        raise FileExistsError(f"{path}: is not a set of blends and is not replaced, it holds {min(foreign)}")


def _shard_files(path: Path) -> list[Path]:
    return sorted(path.glob("blends-????????.h5"))


def _index(path: str | PathLike[str]) -> tuple[list[Path], list[int]]:
    """Return the shards of a set, and the numbers of their first blends with the total appended."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such set of blends")
    shards = _shard_files(path) if path.is_dir() else [path]
    if not shards:
        raise ValueError(f"{path}: must be a set of blends written by probdeblend, got a folder without shards")
    starts = [int(shard.stem.removeprefix("blends-")) for shard in shards] if path.is_dir() else [0]
    with _shard(shards[-1]) as file:
        return shards, [*starts, starts[-1] + len(file["image"])]


def _alike(batches: Iterable[Blend]) -> Iterator[Blend]:
    """Yield batches as long as they have the same known fields."""
    known = None
    for batch in batches:
        given = {name for name, value in vars(batch).items() if value is not None}
        known = known or given
        if given != known:
            differing = ", ".join(sorted(given ^ known))
            raise ValueError(f"batches must have the same fields, only some have {differing}")
        yield batch


def _write_instrument(group: h5py.Group, instrument: Instrument) -> None:
    for name, value in vars(instrument).items():
        if isinstance(value, torch.Tensor):
            group[name] = value.detach().cpu().numpy()
        elif value is not None:
            group.attrs[name] = value


def _append(file: h5py.File, batch: Blend) -> None:
    """Append a batch to the datasets of its known fields, which are made with the first one."""
    for name, tensor in sorted(vars(batch).items()):
        if tensor is None:
            continue
        values, attributes = _packed(name, tensor.detach().cpu(), batch.sky_rms.cpu())
        if name not in file:
            shape, chunk = values.shape[1:], 16 if values.ndim > 3 else 1024
            # Light without noise and masks compress well, noise does not.
            compression = None if name == "image" or values.ndim < 4 else "lzf"
            storage = {"shape": (0, *shape), "maxshape": (None, *shape), "chunks": (chunk, *shape)}
            storage |= {"compression": compression, "shuffle": name == "isolated"}
            file.create_dataset(name, dtype=values.dtype, **storage).attrs.update(attributes)
        dataset = file[name]
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[len(dataset) - len(values) :] = values


def _packed(name: str, values: torch.Tensor, sky_rms: torch.Tensor) -> tuple[np.ndarray, dict[str, int]]:
    """Return what is stored of a field, and the attributes that are needed to read it."""
    if values.dtype == torch.bool:
        return np.packbits(values.numpy(), axis=-1), {"width": values.shape[-1]}
    if name not in PIXELS:
        return values.numpy(), {}
    values = (values / (PIXEL_UNIT * sky_rms).reshape(-1, *[1] * (values.ndim - 1))).numpy()
    if (most := float(np.nanmax(np.abs(values), initial=0.0))) > LARGEST:
        brightest = PIXEL_UNIT * most
        raise ValueError(f"{name} must be below a million times the sky noise to be stored, got {brightest:.3g}")
    return values.astype(np.float16), {}


def _load(file: h5py.File, start: int, stop: int) -> Blend:
    loaded = {}
    for name in file.keys() - {"instrument"}:
        values = file[name][start:stop]
        if "width" in file[name].attrs:
            values = np.unpackbits(values, axis=-1, count=int(file[name].attrs["width"])).astype(bool)
        loaded[name] = torch.from_numpy(values)
    unit = PIXEL_UNIT * loaded["sky_rms"]
    for name in loaded.keys() & set(PIXELS):
        loaded[name] = loaded[name].float() * unit.float().reshape(-1, *[1] * (loaded[name].ndim - 1))
    return Blend(**loaded)


@contextlib.contextmanager
def _shard(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path}: must be a {KIND} written by probdeblend, got another file or a damaged one"
        ) from error
    with file:
        check_header(file.attrs, KIND, path)
        if not {"image", "sky_rms", "instrument"} <= file.keys():
            raise ValueError(f"{path}: must hold image, sky_rms and instrument, got {', '.join(file.keys())}")
        yield file
