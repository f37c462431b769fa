"""Sets of blends with their truth, in HDF5.

A set is a file with the attributes ``format`` ("probdeblend blends") and ``version``. Each known field of a
`Blend` is a dataset of that name whose first axis counts blends; pixels are 32-bit floats, and boolean
arrays are packed along their last axis (`numpy.packbits`), the attribute ``width`` giving its length. The
group ``instrument`` holds the numbers of the `Instrument` as attributes and its arrays as datasets.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import torch

from ..scene import Blend, Instrument
from .outputs import whole_file

__all__ = ["count_blends", "read_blends", "read_instrument", "write_blends"]

FORMAT = "probdeblend blends"
VERSION = 1


def write_blends(
    path: str | PathLike[str], batches: Iterable[Blend], *, instrument: Instrument, overwrite: bool = False
) -> int:
    """Write a set of blends, batch by batch, as one HDF5 file.

    Parameters
    ----------
    path
        The file.
    batches
        Batches with the same known fields; one is in memory at a time.
    instrument
        What the images were taken with.
    overwrite
        Whether a file that exists may be replaced.

    Returns
    -------
    int
        How many blends were written.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is not set.
    ValueError
        If there is no batch, or the fields of one differ from those of the first.
    """
    with whole_file(path, overwrite=overwrite) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION)
        _write_instrument(file.create_group("instrument"), instrument)
        count = 0
        for batch in batches:
            known = {field.name for field in fields(batch) if getattr(batch, field.name) is not None}
            if count and known != file.keys() - {"instrument"}:
                differing = ", ".join(sorted(known ^ (file.keys() - {"instrument"})))
                raise ValueError(f"batches must have the same fields, only some have {differing}")
            for name in sorted(known):
                _append(file, name, getattr(batch, name).detach().cpu().numpy())
            count += len(batch)
        if not count:
            raise ValueError("batches must hold at least one blend, got none")
    return count


def read_blends(path: str | PathLike[str], start: int = 0, stop: int | None = None) -> Blend:
    """Read blends from a set that `write_blends` wrote.

    Parameters
    ----------
    path
        The file.
    start, stop
        The first blend, and the one after the last; None for all that follow.

    Returns
    -------
    Blend
        The blends from `start` up to `stop`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a set of blends or has another version of the format, or if the range is not in it.
    """
    with _blend_file(path) as file:
        count = len(file["image"])
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise ValueError(f"start and stop must be from 0 to {count} and in order, got {start} and {stop}")
        return Blend(**{name: _load(file[name], start, stop) for name in file.keys() - {"instrument"}})


def count_blends(path: str | PathLike[str]) -> int:
    """Return how many blends a set holds.

    Parameters
    ----------
    path
        The file, as for `read_blends`.

    Returns
    -------
    int
        The number of blends.
    """
    with _blend_file(path) as file:
        return len(file["image"])


def read_instrument(path: str | PathLike[str]) -> Instrument:
    """Return what the images of a set of blends were taken with.

    Parameters
    ----------
    path
        The file, as for `read_blends`.

    Returns
    -------
    Instrument
        The instrument.
    """
    with _blend_file(path) as file:
        group = file["instrument"]
        arrays = {name: torch.from_numpy(group[name][()]) for name in group}
        return Instrument(**{name: float(value) for name, value in group.attrs.items()}, **arrays)


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
    elif name in ("image", "isolated"):
        values = values.astype(np.float32)
    if name not in file:
        length = 16 if values.ndim > 3 else 1024
        file.create_dataset(
            name,
            shape=(0, *values.shape[1:]),
            maxshape=(None, *values.shape[1:]),
            dtype=values.dtype,
            chunks=(length, *values.shape[1:]),
            compression="lzf" if packed else None,
        )
        if packed:
            file[name].attrs["width"] = width
    dataset = file[name]
    dataset.resize(len(dataset) + len(values), axis=0)
    dataset[len(dataset) - len(values) :] = values


def _load(dataset: h5py.Dataset, start: int, stop: int) -> torch.Tensor:
    values = dataset[start:stop]
    if "width" in dataset.attrs:
        values = np.unpackbits(values, axis=-1, count=int(dataset.attrs["width"])).astype(bool)
    return torch.from_numpy(values)


@contextlib.contextmanager
def _blend_file(path: str | PathLike[str]) -> Iterator[h5py.File]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a set of blends written by probdeblend, or damaged") from error
    with file:
        if file.attrs.get("format") != FORMAT or not {"image", "sky_rms", "instrument"} <= file.keys():
            raise ValueError(f"{path}: not a set of blends written by probdeblend")
        if (version := file.attrs.get("version")) != VERSION:
            raise ValueError(f"{path}: a set of version {version}, this probdeblend reads version {VERSION}")
        yield file
