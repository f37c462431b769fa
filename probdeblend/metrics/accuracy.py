"""Accuracy of fluxes.

Fluxes have any shape, the same for estimates and truths. Sources whose true flux is NaN are left out. An estimate of
NaN is a non-detection: it counts as an outlier and is left out of everything else, so that the detected fraction
belongs beside every number. An estimate that is not positive has no magnitude error and counts as a non-detection.
"""

import numpy as np
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray

from .arrays import over_finite, paired_arrays
from .coverage import diagnose

__all__ = ["FLOOR", "flux_accuracy", "magnitude_error", "point_accuracy"]

OUTLIER = 0.75  # magnitudes, about a factor of two in flux
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


def flux_accuracy(
    draws: ArrayLike, truth: ArrayLike, *, cluster: ArrayLike | None = None, seed: int = 0
) -> dict[str, float]:
    """Measure the accuracy of fluxes, and the calibration of their logarithms.

    Parameters
    ----------
    draws
        Draws ``(draw, source, band)``; or of any other quantity that is positive, such as groups' totals.
    truth
        True fluxes ``(source, band)`` of the same kind: Kron fluxes for SEP.
    cluster
        What ties values together ``(source, band)``, as for `diagnose`.
    seed
        Seed of ranks and of the bootstrap over clusters.

    Returns
    -------
    dict
        Over all sources and bands; the point estimate is the median of the draws.

        - ``count``: true fluxes; ``detected``: fraction of them with an estimate;
        - ``mape``: mean absolute percentage error of the flux (as in Boucaud et al. 2020, doi:10.1093/mnras/stz3056);
        - ``bias_mag``, ``nmad_mag``: median of the magnitude errors (positive where too faint), and their normalized
          median absolute deviation;
        - ``outliers``: fraction with an error above 0.75 mag, non-detections included;
        - what `diagnose` finds of ln flux, such as ``coverage_68``, ``width`` and ``interval_score``. Draws below 1 %
          of the true flux are raised to that.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, or a true flux is not positive.
    """
    truth = np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth)
    draws, filled = paired_arrays(draws, np.where(known, truth, 1.0))
    point = point_accuracy(np.median(draws, axis=0), truth)
    logs = np.where(known, np.log(np.maximum(draws, FLOOR * filled)), np.nan)
    return diagnose(logs, np.log(filled), cluster=cluster, seed=seed) | point


def point_accuracy(estimate: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Return what `flux_accuracy` finds without draws, from ``count`` to ``outliers``; NaN without fluxes."""
    magnitude = magnitude_error(estimate, truth)
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth)
    percent, magnitude = 100 * np.abs(estimate - truth)[known] / truth[known], magnitude[known]
    return {
        "count": int(known.sum()),
        "detected": over_finite(np.mean, np.isfinite(percent)),
        "mape": over_finite(np.mean, percent),
        "bias_mag": over_finite(np.median, magnitude),
        "nmad_mag": over_finite(mad_std, magnitude),
        "outliers": over_finite(np.mean, ~(np.abs(magnitude) <= OUTLIER)),
    }
