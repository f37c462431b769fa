"""Libraries on disk: one HDF5 file with the galaxies, and a list that the user edits of those to keep.

``library.h5`` has the attributes ``format`` ("probdeblend library") and ``version``, and a dataset a field of
`Library`; segmentations are packed along their last axis. ``keep.csv`` has a row a galaxy: its name and origin,
magnitude and radius, the reasons that speak against it, and ``keep``, yes or no, which is what counts.
"""

from __future__ import annotations

from dataclasses import fields, replace
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
from astropy.table import Table

from ..scene import GALAXY_TYPES
from .library import Library, describe_quality

__all__ = ["KEEP_FILE", "LIBRARY_FILE", "keep_table", "read_library", "write_library"]

FORMAT = "probdeblend library"
VERSION = 1
LIBRARY_FILE = "library.h5"
KEEP_FILE = "keep.csv"


def keep_table(library: Library) -> Table:
    """Return the list that the user edits.

    Parameters
    ----------
    library
        The galaxies.

    Returns
    -------
    Table
        A row a galaxy: ``number`` (from 1, as on the contact sheet), ``keep``, ``identity``, ``origin``,
        ``type``, ``magnitude``, ``half_light_radius``, ``reasons``.
    """
    kinds = [GALAXY_TYPES[kind] if kind >= 0 else "" for kind in library.galaxy_type]
    return Table(
        {
            "number": np.arange(1, len(library) + 1),
            "keep": np.where(library.keep, "yes", "no"),
            "identity": library.identity,
            "origin": library.origin,
            "type": np.array(kinds, dtype=str),
            "magnitude": np.round(library.magnitude, 3),
            "half_light_radius": np.round(library.half_light_radius, 4),
            "reasons": np.array([describe_quality(quality) for quality in library.quality], dtype=str),
        }
    )


def write_library(folder: Path, library: Library) -> list[str]:
    """Write a library and its list into a folder.

    Parameters
    ----------
    folder
        An existing folder.
    library
        The galaxies.

    Returns
    -------
    list of str
        Names of the files.
    """
    with h5py.File(folder / LIBRARY_FILE, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION)
        for field in fields(library):
            values = getattr(library, field.name)
            if values.dtype.kind == "U":
                file.create_dataset(field.name, data=values.tolist(), dtype=h5py.string_dtype(), shape=values.shape)
            elif field.name == "segmentation":
                file.create_dataset(field.name, data=np.packbits(values, axis=-1), compression="lzf")
            else:
                file[field.name] = values
    keep_table(library).write(folder / KEEP_FILE, format="ascii.csv")
    return [LIBRARY_FILE, KEEP_FILE]


def read_library(path: str | PathLike[str]) -> Library:
    """Read a library, with the choice of galaxies in its list.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    Library
        The galaxies; `Library.keep` is what the list says.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If it is no library, of another version, or its list does not fit.
    """
    path = Path(path)
    for name in (LIBRARY_FILE, KEEP_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path}: not a library of galaxies, it has no {name}")
    try:
        file = h5py.File(path / LIBRARY_FILE, "r")
    except OSError as error:
        raise ValueError(f"{path / LIBRARY_FILE}: not a library written by probdeblend, or damaged") from error
    with file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{path / LIBRARY_FILE}: not a library written by probdeblend")
        if (version := file.attrs.get("version")) != VERSION:
            raise ValueError(f"{path}: a library of version {version}, this probdeblend reads version {VERSION}")
        library = Library(**{field.name: _load(file[field.name]) for field in fields(Library)})
    return replace(library, keep=_kept(path / KEEP_FILE, library))


def _load(dataset: h5py.Dataset) -> np.ndarray:
    if dataset.name == "/segmentation":
        return np.unpackbits(dataset[()], axis=-1).astype(bool)
    if h5py.check_string_dtype(dataset.dtype):
        return np.array(dataset.asstr()[()], dtype=str)
    return dataset[()]


def _kept(path: Path, library: Library) -> np.ndarray:
    try:
        table = Table.read(path, format="ascii.csv", converters={"*": [str]})
    except Exception as error:  # astropy raises many kinds
        raise ValueError(f"{path}: not a table in CSV ({' '.join(str(error).split())[:80]})") from error
    if missing := {"identity", "keep"} - set(table.colnames):
        raise ValueError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
    if list(table["identity"]) != library.identity.tolist():
        raise ValueError(f"{path}: must have a row for each of the library's {len(library)} galaxies, in its order")
    answers = np.char.lower(np.char.strip(np.ma.filled(table["keep"].astype(str), "").astype(str)))
    if wrong := sorted(set(answers.tolist()) - {"yes", "no"}):
        raise ValueError(f"{path}: keep must be yes or no, got {wrong[0]!r}")
    return answers == "yes"
