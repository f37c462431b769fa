"""How accurate fluxes are by galaxy, for the pair's total, in bins and by category: pure functions of arrays.

Fluxes are those of `~probdeblend.metrics.fluxes`: a galaxy whose true flux is NaN is left out, and an estimate that is NaN is
an abstention, which counts as an outlier and nowhere else. An estimate that is not positive has no magnitude error and
counts as an abstention there.

The figures 7 to 9 of Boucaud et al. (2020, doi:10.1093/mnras/stz3056) show the error of each galaxy against
`magnitude_difference`, in the six bins of `MAGNITUDE_DIFFERENCE_EDGES`, for all galaxies and for each morphological
type, with the separation in units of the galaxy's half-light radius as color (`SEPARATION_IN_RADII_EDGES`). Figure 2
divides pairs by their separation in pixels of 0.06 arcsec (`SEPARATION_EDGES`; its last bin ends at 60 pixels and here
at 64, beyond which no pair was made): nearly its quartiles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .bins import in_bins
from .fluxes import absolute_percentage_error, magnitude_error, nmad, outlier_fraction, residual_correlation

__all__ = [
    "MAGNITUDE_DIFFERENCE_EDGES",
    "SEPARATION_EDGES",
    "SEPARATION_IN_RADII_EDGES",
    "accuracy_by",
    "binned_accuracy",
    "blending_excess",
    "flux_accuracy",
    "in_bins",
    "magnitude_difference",
    "pair_accuracy",
]

MAGNITUDE_DIFFERENCE_EDGES = (-2.0, -4 / 3, -2 / 3, 0.0, 2 / 3, 4 / 3, 2.0)
SEPARATION_EDGES = (2.0, 8.0, 13.0, 18.0, 64.0)
SEPARATION_IN_RADII_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0)

LN_FLUX_PER_MAGNITUDE = -np.log(10) / 2.5


def flux_accuracy(estimate: ArrayLike, truth: ArrayLike, *, where: ArrayLike | None = None) -> dict[str, float]:
    """Say in a row of numbers how accurate fluxes are.

    Parameters
    ----------
    estimate, truth
        Fluxes.
    where
        Which of them count, of the shape of `truth` or of its first axes; all if None.

    Returns
    -------
    dict
        The columns of `~probdeblend.metrics.fluxes.accuracy_table` that need no draws: ``count`` of true fluxes;
        ``detected``, the fraction of them with an estimate; ``mape`` and ``median_ape`` in percent of the flux;
        ``bias_mag`` (median, positive where too faint), ``nmad_mag`` and ``sd_mag``; ``outliers``, the fraction
        beyond 0.75 mag, abstentions included. NaN without any flux.

    Raises
    ------
    ValueError
        If shapes disagree or a true flux is not positive.
    """
    percent, magnitude = absolute_percentage_error(estimate, truth), magnitude_error(estimate, truth)
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    chosen = np.isfinite(truth)
    if where is not None:
        chosen = chosen & _spread(where, truth.shape, "where").astype(bool)
    percent, magnitude = percent[chosen], magnitude[chosen]
    return {
        "count": int(chosen.sum()),
        "detected": _over(np.mean, np.isfinite(percent)),
        "mape": _over(np.mean, percent),
        "median_ape": _over(np.median, percent),
        "bias_mag": _over(np.median, magnitude),
        "nmad_mag": nmad(magnitude),
        "sd_mag": _over(np.std, magnitude),
        "outliers": outlier_fraction(estimate[chosen], truth[chosen]),
    }


def pair_accuracy(estimate: ArrayLike, truth: ArrayLike, *, total: ArrayLike | None = None) -> Table:
    """Measure each flux, those of centrals and of companions, and the total flux of the pair.

    Light that is given to the wrong galaxy makes errors of opposite sign, which cancel in the total.

    Parameters
    ----------
    estimate, truth
        Fluxes ``(blend, galaxy, band)``; galaxy 0 is the central one.
    total
        Estimates of the total flux ``(blend, band)``, such as medians of the draws' sums; the sums of the estimates
        if None. A sum with an abstention is one.

    Returns
    -------
    Table
        The rows "each flux", "central", "companion" (of more than two galaxies, all but the central one) and "total
        flux" with the columns ``quantity`` and those of `flux_accuracy`, and ``residual_correlation``, the rank
        correlation of the two galaxies' relative errors, in the last row and NaN in the others.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two galaxies, or a true flux is not positive.
    """
    correlation = residual_correlation(estimate, truth)
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    total = estimate.sum(1) if total is None else np.asarray(total, dtype=np.float64)
    if total.shape != truth.sum(1).shape:
        raise ValueError(f"total must have the shape (blend, band) {truth.sum(1).shape}, got {total.shape}")
    parts = {
        "each flux": flux_accuracy(estimate, truth),
        "central": flux_accuracy(estimate[:, 0], truth[:, 0]),
        "companion": flux_accuracy(estimate[:, 1:], truth[:, 1:]),
        "total flux": flux_accuracy(total, truth.sum(1)),
    }
    table = Table([{"quantity": name} | numbers for name, numbers in parts.items()])
    table["residual_correlation"] = [np.nan, np.nan, np.nan, correlation]
    return table


def binned_accuracy(estimate: ArrayLike, truth: ArrayLike, feature: ArrayLike, edges: ArrayLike) -> Table:
    """Measure fluxes in bins of what galaxies or blends are like.

    Parameters
    ----------
    estimate, truth
        Fluxes; of the central galaxies ``estimate[:, 0]``, for example.
    feature
        What bins are made of, of the shape of `truth` or of its first axes: a separation ``(blend,)``, a blendedness
        ``(blend, galaxy)``. NaN is in no bin.
    edges
        Ascending edges, as for `in_bins`.

    Returns
    -------
    Table
        A row a bin: ``low``, ``high`` and the columns of `flux_accuracy`.

    Raises
    ------
    ValueError
        If shapes disagree, a true flux is not positive, or edges do not ascend.
    """
    bins = in_bins(_spread(feature, np.shape(truth), "feature"), edges)
    rows = [{"low": low, "high": high} | flux_accuracy(estimate, truth, where=inside) for low, high, inside in bins]
    return Table(rows)


def accuracy_by(estimate: ArrayLike, truth: ArrayLike, category: ArrayLike) -> Table:
    """Measure fluxes category by category, such as morphological types.

    Parameters
    ----------
    estimate, truth
        Fluxes.
    category
        Names or numbers, of the shape of `truth` or of its first axes: types ``(blend, galaxy)``.

    Returns
    -------
    Table
        A row a category, in ascending order: ``category`` and the columns of `flux_accuracy`.

    Raises
    ------
    ValueError
        If shapes disagree or a true flux is not positive.
    """
    category = _spread(category, np.shape(truth), "category")
    names = np.unique(category)
    return Table([{"category": name} | flux_accuracy(estimate, truth, where=category == name) for name in names])


def blending_excess(estimate_blend: ArrayLike, estimate_alone: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Say how much blending adds to the errors that an estimator makes of the same galaxies alone.

    Noise, pixels and the estimator's own faults scatter the fluxes of lone galaxies too. What is beyond that, in
    quadrature, is due to blending. It is exact for normal errors where blending adds an error that is independent of
    the one that the lone galaxy has.

    Parameters
    ----------
    estimate_blend
        Fluxes measured in the blend.
    estimate_alone
        Fluxes of the same galaxies measured alone, by the same estimator.
    truth
        True fluxes.

    Returns
    -------
    dict
        Numbers of ln flux over galaxies with both estimates: their ``count``; ``detected``, the fraction of galaxies
        measured alone that were measured in the blend too; the normalized median absolute deviations
        ``scatter_blend`` and ``scatter_alone`` of the errors; ``excess``, the root of the difference of their
        squares, negative where the blend scatters less; ``shift``, the median of blend over alone, positive where the
        neighbor's light adds to the flux. NaN without any galaxy.

    Raises
    ------
    ValueError
        If shapes differ or a true flux is not positive.
    """
    blend, alone = (LN_FLUX_PER_MAGNITUDE * magnitude_error(flux, truth) for flux in (estimate_blend, estimate_alone))
    measured = np.isfinite(alone)
    both = measured & np.isfinite(blend)
    scatter_blend, scatter_alone = nmad(blend[both]), nmad(alone[both])
    beyond = scatter_blend**2 - scatter_alone**2
    return {
        "count": int(both.sum()),
        "detected": _over(np.mean, both[measured]),
        "scatter_blend": scatter_blend,
        "scatter_alone": scatter_alone,
        "excess": float(np.copysign(np.sqrt(np.abs(beyond)), beyond)),
        "shift": _over(np.median, blend[both] - alone[both]),
    }


def magnitude_difference(flux: ArrayLike) -> NDArray[np.float64]:
    """Return how much fainter each galaxy of a pair is than the other one.

    Parameters
    ----------
    flux
        Fluxes ``(blend, galaxy, band)`` of pairs.

    Returns
    -------
    NDArray
        Magnitude of the galaxy minus that of the other ``(blend, galaxy, band)``: companion minus central for the
        companion, the opposite for the central galaxy. NaN where a flux is not positive.

    Raises
    ------
    ValueError
        If the fluxes are not of pairs.
    """
    flux = np.asarray(flux, dtype=np.float64)
    if flux.ndim != 3 or flux.shape[1] != 2:
        raise ValueError(f"flux must have the shape (blend, 2, band), got {flux.shape}")
    magnitude = -2.5 * np.log10(np.where(flux > 0, flux, np.nan))
    return magnitude - magnitude[:, ::-1]


def _spread(values: ArrayLike, shape: tuple[int, ...], name: str) -> NDArray:
    values = np.asarray(values)
    if values.ndim == 0 or values.shape != shape[: values.ndim]:
        raise ValueError(f"{name} must have the shape of truth {shape} or of its first axes, got {values.shape}")
    return np.broadcast_to(values.reshape(values.shape + (1,) * (len(shape) - values.ndim)), shape)


def _over(statistic: Callable[[NDArray], float], values: NDArray) -> float:
    values = values[np.isfinite(values)]
    return float(statistic(values)) if values.size else float("nan")
