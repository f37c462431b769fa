"""Accuracy of fluxes of pairs, in bins and by category, as in the figures of Boucaud et al. (2020).

Figures 7 to 9 of that paper (doi:10.1093/mnras/stz3056) show the error of each galaxy against `magnitude_difference`,
in the six bins of `MAGNITUDE_DIFFERENCE_EDGES`, for all galaxies and for each morphological type. Figure 2 divides
pairs by their separation in pixels of 0.06 arcsec, close to its quartiles (`SEPARATION_EDGES`; its last bin ends at 60
pixels and here at 64, the largest separation).

Fluxes are those of `probdeblend.metrics.accuracy`: a true flux that is NaN is left out, an estimate that is NaN is a
non-detection.
"""

from __future__ import annotations

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from probdeblend.metrics.accuracy import flux_accuracy, magnitude_error, over_finite, residual_correlation
from probdeblend.metrics.coverage import in_bins
from probdeblend.scene import LN_FLUX_UNIT

__all__ = [
    "MAGNITUDE_DIFFERENCE_EDGES",
    "SEPARATION_EDGES",
    "accuracy_by",
    "binned_accuracy",
    "blending_excess",
    "magnitude_difference",
    "pair_accuracy",
]

MAGNITUDE_DIFFERENCE_EDGES = (-2.0, -4 / 3, -2 / 3, 0.0, 2 / 3, 4 / 3, 2.0)
SEPARATION_EDGES = (2.0, 8.0, 13.0, 18.0, 64.0)


def pair_accuracy(estimate: ArrayLike, truth: ArrayLike) -> Table:
    """Return the accuracy of fluxes ``(blend, galaxy, band)``: of each, of centrals, of companions, and of the total.

    Flux assigned to the wrong galaxy makes errors of opposite sign, which cancel in the total. The rank correlation of
    the relative errors of the two galaxies is in the row of the total, NaN in the others.
    """
    correlation = residual_correlation(estimate, truth)
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    parts = {
        "each flux": flux_accuracy(estimate, truth),
        "central": flux_accuracy(estimate[:, 0], truth[:, 0]),
        "companion": flux_accuracy(estimate[:, 1:], truth[:, 1:]),
        "total flux": flux_accuracy(estimate.sum(1), truth.sum(1)),
    }
    table = Table([{"quantity": name} | numbers for name, numbers in parts.items()])
    table["residual_correlation"] = [np.nan, np.nan, np.nan, correlation]
    return table


def binned_accuracy(estimate: ArrayLike, truth: ArrayLike, feature: ArrayLike, edges: ArrayLike) -> Table:
    """Return the accuracy of fluxes in bins of a feature, of the shape of `truth` or of its first axes."""
    bins = in_bins(_spread(feature, np.shape(truth), "feature"), edges)
    return Table([{"low": low, "high": high} | _where(estimate, truth, inside) for low, high, inside in bins])


def accuracy_by(estimate: ArrayLike, truth: ArrayLike, category: ArrayLike) -> Table:
    """Return the accuracy of fluxes by category, such as type, of the shape of `truth` or of its first axes."""
    category = _spread(category, np.shape(truth), "category")
    return Table([{"category": name} | _where(estimate, truth, category == name) for name in np.unique(category)])


def blending_excess(estimate_blend: ArrayLike, estimate_alone: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Return how much blending adds to the errors that an estimator makes for the same galaxies alone.

    Noise, pixels and the estimator itself scatter the fluxes of isolated galaxies, too. The excess in quadrature is due
    to blending: exactly so for normal errors, if blending adds an independent error. Numbers are of ln flux, over
    galaxies with both estimates: their ``count``; ``detected``, the fraction of galaxies measured alone that were
    measured in the blend; the scatters ``scatter_blend`` and ``scatter_alone``; ``excess``, the root of the difference
    of their squares, negative where the blend scatters less; ``shift``, the median of blend over alone, positive where
    the light of the neighbor adds to the flux.
    """
    blend, alone = (-magnitude_error(flux, truth) / LN_FLUX_UNIT for flux in (estimate_blend, estimate_alone))
    measured = np.isfinite(alone)
    both = measured & np.isfinite(blend)
    scatter_blend, scatter_alone = over_finite(mad_std, blend[both]), over_finite(mad_std, alone[both])
    beyond = scatter_blend**2 - scatter_alone**2
    return {
        "count": int(both.sum()),
        "detected": over_finite(np.mean, both[measured]),
        "scatter_blend": scatter_blend,
        "scatter_alone": scatter_alone,
        "excess": float(np.copysign(np.sqrt(np.abs(beyond)), beyond)),
        "shift": over_finite(np.median, blend[both] - alone[both]),
    }


def magnitude_difference(flux: ArrayLike) -> NDArray[np.float64]:
    """Return the magnitude of each galaxy of a pair minus that of the other one ``(blend, galaxy, band)``."""
    flux = np.asarray(flux, dtype=np.float64)
    if flux.ndim != 3 or flux.shape[1] != 2:
        raise ValueError(f"flux must have the shape (blend, 2, band), got {flux.shape}")
    magnitude = -2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    return magnitude - magnitude[:, ::-1]


def _where(estimate: ArrayLike, truth: ArrayLike, chosen: NDArray[np.bool_]) -> dict[str, float]:
    return flux_accuracy(estimate, np.where(chosen, truth, np.nan))


def _spread(values: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray:
    values = np.asarray(values)
    if values.ndim == 0 or values.shape != shape[: values.ndim]:
        raise ValueError(f"{name} must have the shape of truth {shape} or of its first axes, got {values.shape}")
    return np.broadcast_to(values.reshape(values.shape + (1,) * (len(shape) - values.ndim)), shape)
