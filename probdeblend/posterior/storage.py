"""Posteriors in netCDF files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import xarray as xr

from .._files import open_hdf5, whole_bytes
from .cutouts import Cutouts

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["open_posterior", "save"]

FLUXES = ("flux", "flux_auto")


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
    with open_hdf5(path, "posterior"):
        dataset = xr.load_dataset(path, engine="h5netcdf")
        cutouts = Cutouts.from_dataset(dataset) if "cutout_corner" in dataset else None
        dataset = dataset.drop_vars([name for name in dataset.data_vars if name.startswith("cutout")])
        known = {name: values.values for name, values in dataset.variables.items()}
        if not all(isinstance(dataset.attrs[name], str) for name in ("unit", "method")):
            raise ValueError("unit and method must be words")
        same = cls.from_draws(
            **{name: known[name] for name in FLUXES if name in known},
            **{name: known[name] for name in ("scene", "group", "x", "y", "label", "zero_point")},
            **{name: dataset.attrs[name] for name in ("unit", "pixel_scale", "method", "scenes")},
            bands=known["band"].tolist(),
            columns={name: known[name] for name in dataset.data_vars if name not in FLUXES},
            cutouts=cutouts,
        ).dataset
        like = dict(same.variables) | {name: same["x"].variable for name in ("ra", "dec") if name in known}
        for name, values in like.items():
            if (values.dims, values.dtype.kind) != (dataset[name].dims, dataset[name].dtype.kind):
                raise ValueError(f"{name} is not as it was written")
        found = cls(dataset, cutouts)
        _ = found.wcs  # its header must be one
        return found
