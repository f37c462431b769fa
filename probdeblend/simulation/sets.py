"""Sets of scenes with their truth, in HDF5.

A set is a folder of shards, ``scenes-00000000.h5`` and so on, numbered by the first scene of each. A shard is a batch
of scenes in an HDF5 file: each known field of a `Scene` is a dataset of that name, whose first axis is the scene or,
for what belongs to a source, the source; ``scene`` counts from the first scene of the shard. The pixels of ``image``
and ``light`` are 16-bit floats in units of 16 times the ``sky_rms`` of the scene and band: rounding adds 0.03 % of a
pixel, far less than its photon noise. Pixel scale and zero points are attributes. Beside the shards, ``settings.json``
tells how the set was made.

While a set is written, its complete shards are in a folder with ``.partial`` appended to the name, from which an
interrupted run can be resumed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import torch

from .._files import header, open_hdf5, put_in_place, unfinished_folder, whole_bytes
from ..scene import SCENE_FIELDS, SOURCE_FIELDS, Scene

__all__ = ["count_scenes", "read_scenes", "write_scenes"]

KIND = "set of scenes"
PIXELS = ("image", "light")
WHOLE = ("scene", "source_type", "identity")  # integers
SURE = ("x", "y", "light")  # what is always known of a scene that has it
PIXEL_UNIT = 16.0  # in units of the sky noise
LARGEST = float(np.finfo(np.float16).max)


def write_scenes(
    path: str | PathLike[str],
    batches: Iterable[Scene] | Callable[[int], Iterable[Scene]],
    *,
    settings: Mapping[str, object] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a set of scenes, one batch per shard.

    If writing is interrupted or fails, complete shards stay in ``PATH.partial``, and `resume` continues from them.

    Parameters
    ----------
    path
        The folder.
    batches
        Batches with the same known fields, or a function that is called with the number of the first batch to make,
        which is not zero for a resumed set.
    settings
        How the set is made, as values that JSON can hold.
    resume
        Continue an interrupted set, which must have been made with the same settings.
    overwrite
        Whether a set that exists, or an unfinished one, may be replaced.

    Returns
    -------
    int
        Number of scenes in the set.

    Raises
    ------
    FileExistsError
        If the folder exists and `overwrite` is not set, or is not a set; or if there is an unfinished set.
    ValueError
        If there is no batch, or the fields of one differ from those of the first; if there is nothing to resume, or it
        was made with other settings.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: is a file, not a set of scenes, and is not replaced")
    with unfinished_folder(path, settings or {}, resume=resume, overwrite=overwrite) as unfinished:
        shards = _shard_files(unfinished)
        count = _index(unfinished)[1][-1] if shards else 0
        for batch in _alike(batches(len(shards)) if callable(batches) else islice(batches, len(shards), None)):
            with whole_bytes(unfinished / f"scenes-{count:08d}.h5") as stored, h5py.File(stored, "w") as file:
                _store(file, batch)
            count += len(batch)
        if not count:
            raise ValueError("batches must hold at least one scene, got none")
        put_in_place(unfinished, path, overwrite=overwrite)
    return count


def read_scenes(path: str | PathLike[str], start: int = 0, stop: int | None = None) -> Scene:
    """Read scenes from a set that `write_scenes` wrote.

    Parameters
    ----------
    path
        The folder of the set, or one of its shards.
    start, stop
        The first scene, and the one after the last; None for all that follow.

    Returns
    -------
    Scene
        The scenes from `start` up to `stop`.

    Raises
    ------
    FileNotFoundError
        If there is no such set.
    ValueError
        If it is not a set of scenes or has another version of the format, or if the range is not in it.
    """
    shards, starts = _index(path)
    total = starts[-1]
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise ValueError(f"start and stop must be from 0 to {total} and in order, got {start} and {stop}")
    parts: list[Scene] = []
    for shard, low, high in zip(shards, starts[:-1], starts[1:], strict=True):
        first, last = np.clip([start, stop], low, high) - low
        if first < last or (start == stop and not parts):
            with open_hdf5(shard, KIND) as file:
                if high - low != len(file["image"]):
                    raise ValueError(f"{shard}: the next shard of the set is missing, or one does not belong there")
                parts.append(_load(file, first, last))
    return Scene.join(parts)


def count_scenes(path: str | PathLike[str]) -> int:
    """Return the number of scenes in a set.

    Parameters
    ----------
    path
        The set, as for `read_scenes`.

    Returns
    -------
    int
        The number of scenes.
    """
    return _index(path)[1][-1]


def _shard_files(path: Path) -> list[Path]:
    return sorted(path.glob(f"scenes-{8 * '[0-9]'}.h5"))


def _index(path: str | PathLike[str]) -> tuple[list[Path], list[int]]:
    """Return the shards of a set, and the numbers of their first scenes with the total appended."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such set of scenes")
    shards = _shard_files(path) if path.is_dir() else [path]
    starts = [int(shard.stem.removeprefix("scenes-")) for shard in shards] if path.is_dir() else [0]
    if not starts or starts[0]:
        raise ValueError(f"{path}: must be a set of scenes written by probdeblend, got a folder without shards")
    with open_hdf5(shards[-1], KIND) as file:
        return shards, [*starts, starts[-1] + len(file["image"])]


def _alike(batches: Iterable[Scene]) -> Iterator[Scene]:
    """Yield batches as long as the same is known of them, in arrays of the same shapes, and pixels are of one size."""
    first: dict[str, object] = {}
    for batch in batches:
        own = {name: tuple(value.shape[1:]) if torch.is_tensor(value) else value for name, value in vars(batch).items()}
        first = first or own
        for name in (name for name, form in own.items() if form != first[name]):
            raise ValueError(f"batches must be alike, got {name} {own[name]} after {first[name]}")
        yield batch


def _store(file: h5py.File, batch: Scene) -> None:
    """Store the known fields of a batch as datasets."""
    file.attrs.update(header(KIND), pixel_scale=batch.pixel_scale, zero_point=np.array(batch.zero_point, float))
    for name in SCENE_FIELDS + SOURCE_FIELDS:
        tensor = getattr(batch, name)
        if tensor is None:
            continue
        values, storage = tensor.detach().cpu().numpy(), {}
        if name in PIXELS:
            values = values / _unit(batch, name)
            if (most := float(np.nanmax(np.abs(values), initial=0.0))) > LARGEST:
                most *= PIXEL_UNIT
                raise ValueError(f"{name} must be below a million times the sky noise to be stored, got {most:.3g}")
            values = values.astype(np.float16)
        if len(values) and values.ndim > 3 and name != "image":  # light and PSFs compress well, noise does not
            storage = {"chunks": (1, *values.shape[1:]), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        file.create_dataset(name, data=values, **storage)


def _unit(scenes: Scene, name: str) -> np.ndarray:
    """Return the unit of stored pixels, for each scene or source, and band."""
    rms = scenes.sky_rms if name == "image" else scenes.sky_rms[scenes.scene]
    return PIXEL_UNIT * rms.detach().cpu().float().numpy()[..., None, None]


def _load(file: h5py.File, start: int, stop: int) -> Scene:
    """Read a shard, check it, and return some of its scenes."""
    loaded, names = {}, SCENE_FIELDS + (SOURCE_FIELDS if "scene" in file else ())
    for name in filter(file.__contains__, names):
        if (kind := file[name].dtype).kind != ("i" if name in WHOLE else "f"):
            raise ValueError(f"{name} must be {'integers' if name in WHOLE else 'floats'}, got {kind}")
        loaded[name] = torch.from_numpy(file[name][()])
    if wrong := [name for name in SURE if name in loaded and not bool(loaded[name].isfinite().all())]:
        raise ValueError(f"{wrong[0]} must be finite")
    for kernel in (loaded[name] for name in ("psf", "noise_kernel") if name in loaded):
        power = kernel.square().sum((-2, -1))
        if not bool(((power > 0) & power.isfinite() & (kernel.sum((-2, -1)) > 0)).all()):
            raise ValueError("psf and noise_kernel must be finite, with positive sums")
    numbers = {"pixel_scale": float(file.attrs["pixel_scale"]), "zero_point": tuple(file.attrs["zero_point"].tolist())}
    scenes = Scene(**loaded, **numbers).select(slice(start, stop))
    if fluxes := [flux for flux in (scenes.flux, scenes.auto_flux) if flux is not None]:
        both = torch.stack(fluxes)
        if bool(both.isinf().any() | both.isnan().all(0).any()):
            raise ValueError("flux must be finite, or NaN where auto_flux is known")
    stored = {name: getattr(scenes, name).float() for name in PIXELS if name in loaded}
    return replace(scenes, **{name: torch.from_numpy(_unit(scenes, name)) * own for name, own in stored.items()})
