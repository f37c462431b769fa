"""The catalog of a posterior: one row per source, whatever the size of its group.

Columns are quantiles of the draws, since posteriors of blended fluxes have heavy tails: ``flux``
is the median, ``mag`` its magnitude, and ``mag_err`` half of the magnitude's central 68 % interval. Only
``flux_err`` and the correlation are moments of the draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from astropy import units as u
from astropy.table import MaskedColumn, QTable
from astropy.utils.masked import Masked
from numpy.typing import NDArray

from ..metrics.arrays import ONE_SIGMA
from ..scene import SOURCE_TYPES
from .moments import FLUX_OF

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["tabulate"]

FLUX = "image"  # the unit of the image


def _flux_columns(flux: str, mag: str, of: str) -> dict[str, tuple[str, object, str]]:
    return {
        flux: (".5g", FLUX, f"median {of} flux"),
        f"{flux}_err": (".3g", FLUX, f"standard deviation of the {of} flux"),
        f"{flux}_16": (".5g", FLUX, f"16 % quantile of the {of} flux"),
        f"{flux}_50": (".5g", FLUX, f"median {of} flux"),
        f"{flux}_84": (".5g", FLUX, f"84 % quantile of the {of} flux"),
        mag: (".3f", u.mag, f"AB magnitude of the median {of} flux"),
        f"{mag}_err": (".3f", u.mag, f"half of the central 68 % interval of the {of} magnitude"),
    }


COLUMNS = {  # in the order of the table: format, unit and description
    "label": ("", None, "number of the source"),
    "scene": ("", None, "number of the image"),
    "group": ("", None, "number of the group of overlapping sources"),
    "group_size": ("", None, "number of sources in the group"),
    "x": (".2f", None, "position in pixels; 0 is the center of the first pixel"),
    "x_err": (".2f", None, "standard deviation of x"),
    "y": (".2f", None, "position in pixels; 0 is the center of the first pixel"),
    "y_err": (".2f", None, "standard deviation of y"),
    "ra": (".7f", u.deg, "right ascension (ICRS)"),
    "dec": (".7f", u.deg, "declination (ICRS)"),
    "existence": (".3f", None, "probability that there is a source"),
    "star": (".3f", None, "probability that it is a star"),
    "kind": ("", None, "most probable type"),
    **_flux_columns("flux", "mag", "total"),
    **_flux_columns("flux_auto", "mag_auto", "Kron"),
    "correlation": (".2f", None, "correlation of the flux with that of the neighbor"),
    "neighbor": (".0f", None, "label of the source of the group whose flux is correlated most with this one"),
    "half_light_radius": (".3f", u.arcsec, "circularized half-light radius"),
    "half_light_radius_err": (".3f", u.arcsec, "standard deviation of half_light_radius"),
    "axis_ratio": (".2f", None, "minor over major axis"),
    "axis_ratio_err": (".2f", None, "standard deviation of axis_ratio"),
    "angle": (".2f", u.rad, "angle of the major axis from +x to +y"),
    "angle_err": (".2f", u.rad, "standard deviation of angle"),
    "sersic_index": (".2f", None, "Sérsic index"),
    "sersic_index_err": (".2f", None, "standard deviation of sersic_index"),
    "contested": (".2f", None, "fraction of the light in its mask that belongs to others"),
    "sky_rms": (".3g", FLUX, "sky noise of a pixel"),
    "anomaly": (".2f", None, "anomaly score; above 1 raises a flag"),
    "flags": ("", None, "sum of probdeblend.Flag bits"),
    "flux_sep": (".5g", FLUX, "Kron flux as SEP measures it"),
}
MASKED = ("mag", "mag_err", "mag_auto", "mag_auto_err", "correlation", "neighbor")


def tabulate(posterior: Posterior) -> QTable:
    """Return the table that `Posterior.catalog` describes."""
    dataset, values = posterior.dataset, _values(posterior)
    bands = dataset["band"].values.tolist()
    suffixes = [f"_{band}" for band in bands] if len(bands) > 1 else [""]
    flux_unit = _unit(dataset.attrs["unit"])
    table = QTable(meta={name: dataset.attrs[name] for name in ("method", "unit", "pixel_scale")})
    for name, (form, unit, description) in COLUMNS.items():
        if name not in values:
            continue
        array = np.asarray(values[name])
        for suffix, column in zip(suffixes, array.T, strict=True) if array.ndim == 2 else [("", array)]:
            table[name + suffix] = _column(column, flux_unit if unit == FLUX else unit, masked=name in MASKED)
            table[name + suffix].info.format = form or None
            table[name + suffix].info.description = description
    return table


def _values(posterior: Posterior) -> dict[str, NDArray]:
    """Return arrays ``(source,)`` or ``(source, band)`` by the names of `COLUMNS`."""
    dataset = posterior.dataset
    values = {name: dataset[name].values for name in COLUMNS if name in dataset and name not in FLUX_OF.values()}
    if dataset.attrs["scenes"] < 2:
        del values["scene"]
    _, group, size = np.unique(values["group"], return_inverse=True, return_counts=True)
    values["group_size"] = size[group]
    if "kind_probability" in dataset:
        kind = dataset["kind_probability"]
        values["kind"] = kind["source_type"].values[kind.values.argmax(1)].astype(str)
        values.setdefault("star", kind.values[:, SOURCE_TYPES.index("star")])
    for kind in reversed([kind for kind in FLUX_OF if FLUX_OF[kind] in dataset]):
        flux = posterior.draws(kind).transpose("source", "band", "chain", "draw").values
        flux = flux.reshape(*flux.shape[:2], flux.shape[2] * flux.shape[3]).astype(np.float64)
        values |= _of_draws(flux, dataset["zero_point"].values, kind)
        values |= _neighbors(flux, group, values["label"])  # of the total flux where it is known
    return values


def _of_draws(flux: NDArray, zero_point: NDArray, kind: str) -> dict[str, NDArray]:
    name, mag = FLUX_OF[kind], FLUX_OF[kind].replace("flux", "mag")
    low, middle, high = np.quantile(flux, ONE_SIGMA, axis=-1)
    std = flux.std(-1, ddof=1) if flux.shape[-1] > 1 else np.full_like(middle, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitude = zero_point - 2.5 * np.log10(middle)
        error = 1.25 * np.log10(high / low) + 0 * magnitude
    found = {"": middle, "_err": std, "_16": low, "_50": middle, "_84": high}
    return {name + end: value for end, value in found.items()} | {mag: magnitude, f"{mag}_err": error}


def _neighbors(flux: NDArray, group: NDArray, label: NDArray) -> dict[str, NDArray]:
    """Return the correlation with the most correlated source of the group, and its label; NaN without one."""
    correlation, neighbor = np.full(flux.shape[:2], np.nan), np.full(len(flux), np.nan)
    for number in np.flatnonzero(np.bincount(group) > 1):
        members = np.flatnonzero(group == number)
        error = flux[members] - flux[members].mean(-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            error /= np.sqrt((error**2).sum(-1, keepdims=True))
        found = np.nan_to_num(np.einsum("ibn,jbn->ijb", error, error))
        strength = np.abs(found).max(-1) - 2 * np.eye(len(members))
        most = strength.argmax(1)
        known = strength.max(1) > 0
        neighbor[members] = np.where(known, label[members[most]], np.nan)
        correlation[members] = np.where(known[:, None], found[np.arange(len(members)), most], np.nan)
    return {"correlation": correlation, "neighbor": neighbor}


def _unit(text: str) -> u.UnitBase | None:
    unit = u.Unit(text, parse_strict="silent")
    return None if not text or isinstance(unit, u.UnrecognizedUnit) else unit


def _column(values: NDArray, unit: u.UnitBase | None, *, masked: bool) -> object:
    if not masked:
        return values if unit is None else values * unit
    hidden = ~np.isfinite(values)
    if unit is not None:
        return Masked(values, mask=hidden) * unit
    return MaskedColumn(np.where(hidden, 0, values), mask=hidden)
