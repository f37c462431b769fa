"""Posteriors in netCDF files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from .._files import check_header, whole_bytes
from .cutouts import Cutouts

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["open_posterior", "save"]


def save(posterior: Posterior, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a netCDF file.

    Parameters
    ----------
    posterior
        The posterior.
    path
        The file.
    overwrite
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is not set.
    """
    dataset = posterior.dataset
    if posterior.cutouts is not None:
        dataset = dataset.assign(posterior.cutouts.to_dataset().data_vars)
    encoding = {name: {"zlib": True, "complevel": 1} for name in dataset.data_vars if "pixel" in dataset[name].dims}
    with whole_bytes(path, overwrite=overwrite) as stored:
        dataset.to_netcdf(stored, engine="h5netcdf", encoding=encoding)


def open_posterior(cls: type[Posterior], path: str | os.PathLike[str]) -> Posterior:
    """Read a posterior that `save` wrote.

    Parameters
    ----------
    cls
        The class.
    path
        The file.

    Returns
    -------
    Posterior
        The posterior, in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a posterior, is damaged, or has another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a posterior written by probdeblend, or damaged") from error
    check_header(dataset.attrs, "posterior", path)
    cutouts = Cutouts.from_dataset(dataset) if "cutout_corner" in dataset else None
    return cls(dataset.drop_vars([name for name in dataset.data_vars if name.startswith("cutout")]), cutouts)
