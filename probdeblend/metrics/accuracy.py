"""Accuracy of fluxes.

Fluxes have any shape, the same for estimates and truths. Sources whose true flux is NaN are left out. An estimate of
NaN is a non-detection: it counts as an outlier and is left out of everything else, so that the detected fraction
belongs beside every number. An estimate that is not positive has no magnitude error and counts as a non-detection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .arrays import ONE_SIGMA
from .scores import crps

__all__ = ["FLOOR", "accuracy_table", "flux_accuracy", "magnitude_error", "over_finite"]

OUTLIER = 0.75  # magnitudes, about a factor of two in flux
LEVELS = (50, 68, 95)  # percent
FLOOR = 0.01  # of the true flux: fainter draws are raised to it before taking logarithms


def magnitude_error(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the magnitude error ``-2.5 log10(estimate / truth)``, positive where the estimate is too faint.

    Parameters
    ----------
    estimate, truth
        Fluxes.

    Returns
    -------
    NDArray
        Magnitudes; NaN for non-detections and for estimates that are not positive.

    Raises
    ------
    ValueError
        If shapes differ or a true flux is not positive.
    """
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate must have the shape of truth {truth.shape}, got {estimate.shape}")
    if (truth <= 0).any():
        raise ValueError(f"truth must be positive, got {truth[truth <= 0][0]}")
    return -2.5 * np.log10(np.where(estimate > 0, estimate, np.nan) / truth)


def accuracy_table(draws: Mapping[str, ArrayLike], flux: ArrayLike | Mapping[str, ArrayLike]) -> Table:
    """Compare the fluxes of several methods for the same sources.

    Parameters
    ----------
    draws
        Draws ``(chain, draw, source, band)`` of each method by its name, such as ``Posterior.flux``; or of any other
        quantity that is positive, such as groups' totals.
    flux
        True fluxes ``(source, band)``, or those of each method by its name: AUTO fluxes for SEP.

    Returns
    -------
    Table
        One row per method. The point estimate is the median of the draws. Columns, over all sources and bands:

        - ``count``: true fluxes; ``detected``: fraction of them with an estimate;
        - ``mape``, ``median_ape``: mean and median absolute percentage error of the flux (MAPE as in Boucaud et al.
          2020, doi:10.1093/mnras/stz3056);
        - ``bias_mag``, ``nmad_mag``, ``sd_mag``: median of the magnitude errors (positive where too faint), their
          normalized median absolute deviation and their standard deviation;
        - ``outliers``: fraction with an error above 0.75 mag, non-detections included;
        - ``coverage_50``, ``coverage_68``, ``coverage_95``: fraction of the truths inside the central intervals;
        - ``width``: median half-width of the 68 % interval in ln flux;
        - ``crps_ln``: mean continuous ranked probability score in ln flux;
        - ``pull_mean``, ``pull_sd``: of (mean - truth) / standard deviation of the draws.

        For ``width`` and ``crps_ln``, draws below 1 % of the true flux are raised to that.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, a true flux is not positive, or a method has no true flux.
    """
    rows = []
    for method, drawn in draws.items():
        if isinstance(flux, Mapping) and method not in flux:
            raise ValueError(f"flux must hold every method, got none for {method!r}")
        truth = np.asarray(flux[method] if isinstance(flux, Mapping) else flux, dtype=np.float64)
        rows.append({"method": method} | _draws_accuracy(np.asarray(drawn, dtype=np.float64), truth))
    return Table(rows)


def flux_accuracy(estimate: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Return the columns of `accuracy_table` that need no draws, from ``count`` to ``outliers``; NaN without fluxes."""
    magnitude = magnitude_error(estimate, truth)
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth)
    percent, magnitude = 100 * np.abs(estimate - truth)[known] / truth[known], magnitude[known]
    return {
        "count": int(known.sum()),
        "detected": over_finite(np.mean, np.isfinite(percent)),
        "mape": over_finite(np.mean, percent),
        "median_ape": over_finite(np.median, percent),
        "bias_mag": over_finite(np.median, magnitude),
        "nmad_mag": over_finite(mad_std, magnitude),
        "sd_mag": over_finite(np.std, magnitude),
        "outliers": float(np.mean(~(np.abs(magnitude) <= OUTLIER))) if magnitude.size else float("nan"),
    }


def over_finite(statistic: Callable[[NDArray], float], values: NDArray) -> float:
    """Return a statistic of the finite values; NaN without any."""
    values = values[np.isfinite(values)]
    return float(statistic(values)) if values.size else float("nan")


def _draws_accuracy(draws: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    draws = draws.reshape(-1, *draws.shape[2:])
    if draws.shape[1:] != truth.shape or len(draws) < 2:
        raise ValueError(f"draws must have the shape (chain, draw, *{truth.shape}), got {draws.shape}")
    estimate, known = np.median(draws, axis=0), np.isfinite(draws).all(0) & np.isfinite(truth)
    row, drawn, true = flux_accuracy(estimate, truth), draws[:, known], truth[known]
    for level in LEVELS:
        low, high = np.quantile(drawn, [0.5 - level / 200, 0.5 + level / 200], axis=0)
        row[f"coverage_{level}"] = over_finite(np.mean, (low <= true) & (true <= high))
    log_draws, log_truth = np.log(np.maximum(drawn, FLOOR * true)), np.log(true)
    low, _, high = np.quantile(log_draws, ONE_SIGMA, axis=0)
    pull = (drawn.mean(0) - true) / drawn.std(0, ddof=1)
    return row | {
        "width": over_finite(np.median, (high - low) / 2),
        "crps_ln": over_finite(np.mean, crps(log_draws, log_truth)),
        "pull_mean": over_finite(np.mean, pull),
        "pull_sd": over_finite(np.std, pull),
    }
