"""The catalog of a posterior: one row per galaxy.

Columns are quantiles of the draws, since posteriors of blended fluxes have heavy tails: ``flux``
is the median, ``mag`` its magnitude, and ``mag_err`` half of the magnitude's central 68 % interval. Only
``flux_err`` and the correlation are moments of the draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from astropy import units as u
from astropy.table import QTable
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from numpy.typing import ArrayLike

from ..metrics.arrays import ONE_SIGMA

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["tabulate"]

COLUMNS = {  # in the order of the table: format and description
    "id": ("", "number of the galaxy, from 1"),
    "blend": ("", "number of the blend"),
    "galaxy": ("", "0 for the central galaxy"),
    "band": ("", "number of the band"),
    "x": (".2f", "position in pixels; 0 is the center of the first pixel"),
    "y": (".2f", "position in pixels; 0 is the center of the first pixel"),
    "ra": (".7f", "right ascension (ICRS)"),
    "dec": (".7f", "declination (ICRS)"),
    "flux": (".5g", "median of the posterior"),
    "flux_err": (".3g", "standard deviation of the posterior"),
    "flux_16": (".5g", "16 % quantile of the posterior"),
    "flux_50": (".5g", "median of the posterior"),
    "flux_84": (".5g", "84 % quantile of the posterior"),
    "flux_kind": ("", "total, auto (Kron) or isophotal"),
    "mag": (".3f", "AB magnitude of the median flux"),
    "mag_err": (".3f", "half of the central 68 % interval of the magnitude"),
    "correlation": (".2f", "correlation of the two fluxes of the pair"),
    "variance_within": (".3g", "mean over the dropout passes of the variance within a pass"),
    "variance_between": (".3g", "variance of the means of the dropout passes"),
    "method": ("", "what measured the flux"),
    "anomaly": (".2f", "anomaly score of the blend; above 1 raises a flag"),
    "flags": ("", "sum of probdeblend.Flag bits"),
}


def tabulate(posterior: Posterior, wcs: WCS | None = None) -> QTable:
    """Return the table that `Posterior.summary` describes."""
    columns = _label_columns(posterior) | _flux_columns(posterior)
    if wcs is not None:
        sky = wcs.celestial.pixel_to_world(columns["x"], columns["y"]).icrs
        columns |= {"ra": u.Quantity(sky.ra), "dec": u.Quantity(sky.dec)}
    table = QTable(meta={name: posterior.dataset.attrs[name] for name in ("flux_kind", "flux_unit")})
    for name, (form, description) in COLUMNS.items():
        if name in columns:
            table[name] = columns[name].reshape(-1)
            table[name].info.format = form or None
            table[name].info.description = description
    return table


def _label_columns(posterior: Posterior) -> dict[str, np.ndarray]:
    numbers = [posterior.flux[name].values for name in ("blend", "galaxy", "band")]
    blend, galaxy, band = np.meshgrid(*numbers, indexing="ij")
    columns = {"id": blend * posterior.flux.sizes["galaxy"] + galaxy + 1, "blend": blend, "galaxy": galaxy}
    if len(numbers[2]) > 1:
        columns["band"] = band
    for name in ("flux_kind", "method"):
        columns[name] = np.full(blend.shape, posterior.dataset.attrs[name])
    for name in ("x", "y"):
        position = np.nan if name not in posterior.dataset else posterior.dataset[name].values[..., None]
        columns[name] = np.broadcast_to(position, blend.shape)
    columns["anomaly"] = _masked(np.broadcast_to(posterior.anomaly.values[:, None, None], blend.shape))
    return columns | {"flags": np.broadcast_to(posterior.flags.values[..., None], blend.shape)}


def _flux_columns(posterior: Posterior) -> dict[str, np.ndarray]:
    low, middle, high = np.quantile(posterior.draws("blend", "galaxy", "band"), ONE_SIGMA, axis=-1)
    covariance = posterior.flux_covariance.values.transpose(0, 2, 3, 1)
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2).swapaxes(1, 2))
    unit = _unit(posterior.dataset.attrs["flux_unit"])
    columns = {"flux": middle, "flux_err": sd, "flux_16": low, "flux_50": middle, "flux_84": high}
    columns = {name: value if unit is None else value * unit for name, value in columns.items()}
    for name in ("variance_within", "variance_between"):
        variance = posterior.dataset.get(f"flux_{name}", np.full(sd.shape, np.nan))
        columns[name] = _masked(variance, None if unit is None else unit**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitude = posterior.dataset.attrs.get("zero_point", np.nan) - 2.5 * np.log10(middle)
        columns["mag"] = _masked(magnitude, u.mag)
        columns["mag_err"] = _masked(1.25 * np.log10(high / low) + 0 * magnitude, u.mag)
        pair = covariance[:, :1, -1:, :][:, 0] / np.prod(sd, axis=1, keepdims=True)
    pair = pair if sd.shape[1] == 2 else np.full_like(pair, np.nan)
    return columns | {"correlation": _masked(np.broadcast_to(pair, sd.shape))}


def _unit(text: str) -> u.UnitBase | None:
    unit = u.Unit(text, parse_strict="silent")
    return None if not text or isinstance(unit, u.UnrecognizedUnit) else unit


def _masked(values: ArrayLike, unit: u.UnitBase | None = None) -> np.ndarray:
    masked = np.ma.masked_invalid(values)
    return masked if unit is None else Masked(masked.data, mask=np.ma.getmaskarray(masked)) * unit
