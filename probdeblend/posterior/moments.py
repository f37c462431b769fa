"""What follows from the draws: fluxes of groups, covariances, colors, and the parts of the variance.

`Posterior` has the functions of a posterior as methods.
"""

from __future__ import annotations

import os
import warnings
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ..metrics.arrays import group_total
from ..scene import ALONE

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["FLUX_OF", "color", "covariance", "draws", "group_flux", "import_arviz", "magnitude", "to_arviz"]
__all__ += ["variance_parts"]

FLUX_OF = {"total": "flux", "auto": "flux_auto"}


def draws(posterior: Posterior, kind: str = "total") -> xr.DataArray:
    """Return the draws of one kind of flux.

    Parameters
    ----------
    posterior
        The posterior.
    kind
        "total" (the integral of the profile) or "auto" (Kron).

    Returns
    -------
    xarray.DataArray
        Fluxes ``(chain, draw, source, band)`` in image units.

    Raises
    ------
    ValueError
        If the kind is unknown.
    AttributeError
        If it was not measured.
    """
    if kind not in FLUX_OF:
        raise ValueError(f"kind must be total or auto, got {kind!r}")
    if FLUX_OF[kind] not in posterior.dataset:
        raise AttributeError(f"this posterior of method {posterior.dataset.attrs['method']!r} has no {FLUX_OF[kind]}")
    return posterior.dataset[FLUX_OF[kind]]


def group_flux(posterior: Posterior, kind: str = "total") -> xr.DataArray:
    """Return the draws of the flux of each group: the sum over its sources.

    Parameters
    ----------
    posterior
        The posterior.
    kind
        "total" or "auto".

    Returns
    -------
    xarray.DataArray
        ``(chain, draw, group, band)`` in image units, ordered by the number of the group; NaN where one of its fluxes
        is NaN.
    """
    flux = draws(posterior, kind)
    number, first = np.unique(flux["group"].values, return_index=True)
    coordinates = {name: flux[name].values for name in ("chain", "draw", "band")}
    coordinates |= {"group": number, "scene": ("group", flux["scene"].values[first])}
    total = group_total(flux.values, flux["group"].values)
    return xr.DataArray(total, coordinates, ("chain", "draw", "group", "band"), "total_flux", flux.attrs)


def covariance(posterior: Posterior, label: int, *, kind: str = "total") -> xr.DataArray:
    """Return the covariance of all fluxes of a group.

    Parameters
    ----------
    posterior
        The posterior.
    label
        A source of the group.
    kind
        "total" or "auto".

    Returns
    -------
    xarray.DataArray
        ``(source, band, source_2, band_2)`` in image units squared; the sources are named by their labels. NaN for a
        single draw, and where a draw is NaN.
    """
    group = posterior.dataset["group"].values
    flux = draws(posterior, kind).isel(source=group == group[posterior.index(label)])
    values = flux.transpose("source", "band", "chain", "draw").values.astype(np.float64)
    shape = values.shape[:2]
    values = values.reshape(shape[0] * shape[1], -1)
    error, degrees = values - values.mean(1, keepdims=True), values.shape[1] - 1
    found = (error @ error.T / degrees if degrees else np.full((len(values),) * 2, np.nan)).reshape(shape + shape)
    names = {"source": flux["label"].values, "band": flux["band"].values}
    coordinates = names | {f"{name}_2": values for name, values in names.items()}
    unit = flux.attrs["unit"]
    attributes = flux.attrs | {"unit": f"({unit})**2" if unit else ""}
    return xr.DataArray(found, coordinates, tuple(coordinates), "covariance", attributes)


def magnitude(posterior: Posterior, kind: str = "total") -> xr.DataArray:
    """Return the draws of AB magnitudes ``(chain, draw, source, band)``; NaN where the flux is not positive."""
    flux = draws(posterior, kind)
    found = flux["zero_point"] - 2.5 * np.log10(flux.where(flux > 0))
    return found.transpose(*flux.dims).rename("magnitude")


def color(posterior: Posterior, band_1: str, band_2: str, *, kind: str = "total") -> xr.DataArray:
    """Return the draws of a color: the magnitude in one band minus that in another.

    Parameters
    ----------
    posterior
        The posterior.
    band_1, band_2
        Names of the bands.
    kind
        "total" or "auto".

    Returns
    -------
    xarray.DataArray
        ``(chain, draw, source)`` in AB magnitudes; NaN without zero points, and where a flux is not positive.

    Raises
    ------
    ValueError
        If there is no such band.
    """
    names = posterior.dataset["band"].values.tolist()
    for band in (band_1, band_2):
        if band not in names:
            raise ValueError(f"band must be one of {', '.join(names)}, got {band!r}")
    first, second = (magnitude(posterior, kind).isel(band=names.index(b), drop=True) for b in (band_1, band_2))
    return (first - second).rename("color")


def to_arviz(posterior: Posterior) -> object:
    """Convert to ArviZ: `arviz.InferenceData` in its versions 0.x, `xarray.DataTree` in 1.x.

    Parameters
    ----------
    posterior
        The posterior.

    Returns
    -------
    object
        The group ``posterior`` holds the draws of the fluxes, with the sources named by their labels, and of the
        fluxes of the groups.
    """
    arviz = import_arviz()
    group = xr.Dataset(coords={"source": posterior.dataset["label"].values})
    for kind, name in FLUX_OF.items():
        if name in posterior.dataset:
            group[name] = draws(posterior, kind).reset_coords(drop=True)
            group[f"group_{name}"] = group_flux(posterior, kind).reset_coords(drop=True)
    if hasattr(arviz, "InferenceData"):
        return arviz.InferenceData(posterior=group)
    return xr.DataTree.from_dict({"posterior": group})


def import_arviz() -> ModuleType:
    """Import ArviZ, which takes seconds and announces its next major version once per day."""
    with ALONE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        try:
            import arviz
        except OSError:  # it notes the day in the user's cache, which cannot be written
            with TemporaryDirectory() as cache, patch.dict(os.environ, XDG_CACHE_HOME=cache):
                import arviz
    return arviz


def variance_parts(flux: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split the variance of draws into that within chains and that between them.

    Chains are dropout passes: the part between them is what the network does not know for lack of training, the part
    within is what the image does not tell.

    Parameters
    ----------
    flux
        Draws ``(chain, draw, ...)`` of fluxes, totals, or anything else.

    Returns
    -------
    tuple
        Mean of the variances of the chains, and variance of their means minus what the finite number of draws
        contributes to it, at least 0 ``(...)``.
    """
    flux = np.asarray(flux, dtype=float)
    chains, each = flux.shape[:2]
    within = flux.var(1, ddof=min(1, each - 1)).mean(0)
    between = flux.mean(1).var(0) - within / each * (1 - 1 / chains)
    return within, np.maximum(between, 0)
