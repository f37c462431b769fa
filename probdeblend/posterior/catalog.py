"""The catalog of a posterior: one row per source, whatever the size of its group.

Columns are quantiles of the draws, since posteriors of blended fluxes have heavy tails: ``flux`` is the median, ``mag``
its magnitude, and ``flux_err`` and ``mag_err`` are half of central 68 % intervals. Only the correlation is a moment of
the draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from astropy import units as u
from astropy.table import Column, MaskedColumn, QTable
from numpy.typing import NDArray

from ..metrics.arrays import ONE_SIGMA
from ..scene import SOURCE_TYPES

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["tabulate"]

META = ("method", "unit", "pixel_scale", "notes")
FLUX = "flux"  # the unit of the fluxes
ENDS = {
    "": "median",
    "_err": "half of the central 68 % interval",
    "_16": "16 % quantile",
    "_50": "median",
    "_84": "84 % quantile",
}
KINDS = {"flux": ("mag", "total"), "flux_auto": ("mag_auto", "Kron")}
COLUMNS = {  # in the order of the table: format, unit, description
    "label": ("", None, "number of the source"),
    "id": ("", None, "identifier of the source in the list of positions"),
    "scene": ("", None, "number of the image"),
    "group": ("", None, "number of the group of overlapping sources"),
    "group_size": ("", None, "number of sources in the group"),
    "x": (".2f", None, "position in pixels; 0 is the center of the first pixel"),
    "y": (".2f", None, "position in pixels; 0 is the center of the first pixel"),
    "ra": (".7f", u.deg, "right ascension (ICRS)"),
    "dec": (".7f", u.deg, "declination (ICRS)"),
    "existence": (".3f", None, "probability that there is a source"),
    "star": (".3f", None, "probability that it is a star"),
    "kind": ("", None, "most probable type"),
}
for flux, (mag, of) in KINDS.items():
    COLUMNS |= {flux + end: (".5g", FLUX, f"{text} of the {of} flux") for end, text in ENDS.items()}
    COLUMNS[mag] = (".3f", u.mag, f"AB magnitude of the median {of} flux")
    COLUMNS[f"{mag}_err"] = (".3f", u.mag, f"half of the central 68 % interval of the {of} magnitude")
COLUMNS |= {
    "correlation": (".2f", None, "correlation of the flux with that of the neighbor"),
    "neighbor": (".0f", None, "label of the source of the group whose flux is correlated most with this one"),
    "half_light_radius": (".3f", u.arcsec, "circularized half-light radius"),
    "axis_ratio": (".2f", None, "minor over major axis"),
    "angle": (".2f", u.rad, "angle of the major axis from +x to +y"),
    "sersic_index": (".2f", None, "Sérsic index"),
    "contested": (".2f", None, "fraction of the light in its mask that belongs to others"),
    "sky_rms": (".3g", FLUX, "sky noise of a pixel"),
    "anomaly": (".2f", None, "anomaly score; above 1 raises a flag"),
    "flags": ("", None, "sum of probdeblend.Flag bits"),
}
MASKED = ("mag", "mag_err", "mag_auto", "mag_auto_err", "correlation", "neighbor")


def tabulate(posterior: Posterior) -> QTable:
    """Return the table that `Posterior.catalog` describes."""
    dataset, values = posterior.dataset, _values(posterior)
    bands = dataset["band"].values.tolist()
    suffixes = [f"_{band}" for band in bands] if len(bands) > 1 else [""]
    flux_unit = u.Unit(dataset.attrs["unit"] or "bad unit", parse_strict="silent")
    flux_unit = None if isinstance(flux_unit, u.UnrecognizedUnit) else flux_unit
    units = {FLUX: flux_unit, u.arcsec: u.pix if dataset.attrs["pixel_scale"] == 1 else u.arcsec}
    table = QTable(meta={name: dataset.attrs[name] for name in META if name in dataset.attrs})
    for name in filter(values.__contains__, dict.fromkeys(name + end for name in COLUMNS for end in ("", "_err"))):
        of = name.removesuffix("_err")
        form, unit, description = COLUMNS.get(name) or (*COLUMNS[of][:2], f"standard deviation of {of}")
        array = np.asarray(values[name])
        for suffix, column in zip(suffixes, array.T, strict=True) if array.ndim == 2 else [("", array)]:
            look = {"unit": units.get(unit, unit), "format": form or None, "description": description}
            values_of, kind = (np.ma.masked_invalid, MaskedColumn) if name in MASKED else (np.asarray, Column)
            table[name + suffix] = kind(values_of(column), **look)
    return table


def _values(posterior: Posterior) -> dict[str, NDArray]:
    """Return arrays ``(source,)`` or ``(source, band)`` by the names of columns."""
    dataset = posterior.dataset
    values = {name: value.values for name, value in dataset.variables.items() if value.dims[:1] == ("source",)}
    values |= {name: value.astype(str) for name, value in values.items() if value.dtype.kind == "O"}
    if dataset.attrs["scenes"] < 2:
        del values["scene"]
    _, group, size = np.unique(values["group"], return_inverse=True, return_counts=True)
    values["group_size"] = size[group]
    if "kind_probability" in values:
        probability = values.pop("kind_probability")
        values["kind"] = np.array(SOURCE_TYPES)[probability.argmax(1)]
        values.setdefault("star", probability[:, SOURCE_TYPES.index("star")])
    for name in ("flux_auto", "flux"):  # the correlation is of the total flux where it is known
        if name in dataset:
            draws = dataset[name].transpose("source", "band", "chain", "draw").values.astype(np.float64)
            draws = draws.reshape(*draws.shape[:2], draws.shape[2] * draws.shape[3])
            values |= _of_draws(draws, dataset["zero_point"].values, name) | _neighbors(draws, group, values["label"])
    return values


def _of_draws(draws: NDArray, zero_point: NDArray, name: str) -> dict[str, NDArray]:
    low, middle, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    half = (high - low) / 2 if draws.shape[-1] > 1 else np.full_like(middle, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitude = zero_point - 2.5 * np.log10(middle)
        error = 1.25 * np.log10(high / low) + 0 * magnitude
    found = {name + end: value for end, value in zip(ENDS, (middle, half, low, middle, high), strict=True)}
    return found | {KINDS[name][0]: magnitude, f"{KINDS[name][0]}_err": error}


def _neighbors(draws: NDArray, group: NDArray, label: NDArray) -> dict[str, NDArray]:
    """Return the correlation with the most correlated source of the group, and its label; NaN without one."""
    correlation, neighbor = np.full(draws.shape[:2], np.nan), np.full(len(draws), np.nan)
    for number in np.flatnonzero(np.bincount(group) > 1):
        members = np.flatnonzero(group == number)
        error = draws[members] - draws[members].mean(-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            error /= np.sqrt((error**2).sum(-1, keepdims=True))
        found = np.nan_to_num(np.einsum("ibn,jbn->ijb", error, error))
        strength = np.abs(found).max(-1) * (1 - np.eye(len(members)))
        most, known = strength.argmax(1), strength.max(1) > 0
        neighbor[members] = np.where(known, label[members[most]], np.nan)
        correlation[members] = np.where(known[:, None], found[np.arange(len(members)), most], np.nan)
    return {"correlation": correlation, "neighbor": neighbor}
