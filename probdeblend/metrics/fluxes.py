"""How accurate, how sharp and how honest fluxes and masks are: pure functions of arrays.

Fluxes have any shape, the same for estimate and truth; draws have one more axis, the first. Galaxies whose
true flux is NaN are left out. NaN in an estimate is an abstention (the galaxy was not found): it counts as an
outlier and as a mask without pixels, and is left out of everything else, so that a detected fraction belongs
beside every number. A magnitude error is ``-2.5 log10(estimate / truth)``; an estimate that is not positive
has none and counts as an abstention there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .pixels import iou

if TYPE_CHECKING:
    from ..posterior.draws import Posterior

__all__ = [
    "absolute_percentage_error",
    "accuracy_table",
    "coverage",
    "crps",
    "interval_width",
    "magnitude_error",
    "nmad",
    "outlier_fraction",
    "pulls",
    "residual_correlation",
]

NORMAL_MAD = 1.482602218505602
FLOOR = 0.01


def _pair(estimate: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate must have the shape of truth {truth.shape}, got {estimate.shape}")
    if (truth <= 0).any():
        raise ValueError(f"truth must be positive, got {truth[truth <= 0][0]}")
    return estimate, truth


def _draws(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if draws.shape[1:] != truth.shape or draws.ndim == 0 or len(draws) < 2:
        raise ValueError(f"draws must have the shape (draw >= 2, *{truth.shape}), got {draws.shape}")
    return draws, truth


def _interval(draws: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)


def absolute_percentage_error(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return ``100 |estimate - truth| / truth``; its mean is the MAPE of Boucaud et al. (2020).

    Parameters
    ----------
    estimate, truth
        Fluxes.

    Returns
    -------
    NDArray
        Percent, NaN for abstentions.

    Raises
    ------
    ValueError
        If shapes differ or a true flux is not positive.
    """
    estimate, truth = _pair(estimate, truth)
    return 100 * np.abs(estimate - truth) / truth


def magnitude_error(estimate: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return ``-2.5 log10(estimate / truth)``: positive where the estimate is too faint.

    Parameters
    ----------
    estimate, truth
        Fluxes.

    Returns
    -------
    NDArray
        Magnitudes, NaN for abstentions and for estimates that are not positive.

    Raises
    ------
    ValueError
        If shapes differ or a true flux is not positive.
    """
    estimate, truth = _pair(estimate, truth)
    return -2.5 * np.log10(np.where(estimate > 0, estimate, np.nan) / truth)


def nmad(error: ArrayLike) -> float:
    """Return ``1.4826 median |error - median(error)|``, the scatter of a normal distribution's core.

    Parameters
    ----------
    error
        Errors, with NaN for abstentions.

    Returns
    -------
    float
        Scatter in the unit of `error`; NaN without any error.
    """
    error = np.asarray(error, dtype=np.float64)
    return NORMAL_MAD * _over(np.median, np.abs(error - _over(np.median, error)))


def outlier_fraction(estimate: ArrayLike, truth: ArrayLike, *, limit: float = 0.75) -> float:
    """Fraction of galaxies whose magnitude is off by more than a limit, abstentions included.

    Parameters
    ----------
    estimate, truth
        Fluxes.
    limit
        Largest error that is no outlier in magnitudes.

    Returns
    -------
    float
        Fraction of all galaxies.

    Raises
    ------
    ValueError
        If shapes differ or a true flux is not positive.
    """
    inside = np.abs(magnitude_error(estimate, truth)) <= limit
    inside = inside[np.isfinite(np.asarray(truth, dtype=np.float64))]
    return float(np.mean(~inside)) if inside.size else float("nan")


def coverage(draws: ArrayLike, truth: ArrayLike, *, level: float = 0.68) -> tuple[float, float]:
    """How often the central interval of the draws holds the truth; a calibrated posterior gives `level`.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``; all NaN for an abstention.
    truth
        True values ``(...)``.
    level
        Probability of the interval.

    Returns
    -------
    fraction, standard_error
        Fraction of the values with draws that are covered, and its binomial error.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws or `level` is not between 0 and 1.
    """
    draws, truth = _draws(draws, truth)
    known = np.isfinite(draws).all(0) & np.isfinite(truth)
    if not known.any():
        return float("nan"), float("nan")
    low, high = _interval(draws[:, known], level)
    inside = (low <= truth[known]) & (truth[known] <= high)
    fraction = float(inside.mean())
    return fraction, float(np.sqrt(fraction * (1 - fraction) / inside.size))


def interval_width(draws: ArrayLike, *, level: float = 0.68) -> NDArray[np.float64]:
    """Half the width of the central interval of the draws.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    level
        Probability of the interval.

    Returns
    -------
    NDArray
        Half widths ``(...)`` in the unit of the draws: one standard deviation for a normal and 0.68.

    Raises
    ------
    ValueError
        If `level` is not between 0 and 1.
    """
    low, high = _interval(np.asarray(draws, dtype=np.float64), level)
    return (high - low) / 2


def crps(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the continuous ranked probability score, unbiased in the number of draws: lower is better.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.

    Returns
    -------
    NDArray
        ``E|X - truth| - E|X - X'| / 2`` in the unit of the draws ``(...)``, NaN for abstentions.

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than two draws.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437; Ferro (2014), doi:10.1002/qj.2270.
    """
    draws, truth = _draws(draws, truth)
    number = len(draws)
    weight = (2 * np.arange(1, number + 1) - number - 1) / (number * (number - 1))
    return np.abs(draws - truth).mean(0) - np.tensordot(weight, np.sort(draws, axis=0), axes=1)


def pulls(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return ``(mean - truth) / standard deviation`` of the draws: mean 0 and scatter 1 if they are honest.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.

    Returns
    -------
    NDArray
        Pulls ``(...)``, NaN for abstentions.

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than two draws.
    """
    draws, truth = _draws(draws, truth)
    return (draws.mean(0) - truth) / draws.std(0, ddof=1)


def residual_correlation(estimate: ArrayLike, truth: ArrayLike) -> float:
    """Correlate the errors of the central galaxy and of its companion, by ranks: their tails are heavy.

    Parameters
    ----------
    estimate, truth
        Fluxes ``(blend, galaxy, band)``; the first two galaxies are compared.

    Returns
    -------
    float
        Spearman's correlation of the relative errors; NaN with fewer than three pairs.

    Raises
    ------
    ValueError
        If shapes differ, there are fewer than two galaxies, or a true flux is not positive.
    """
    estimate, truth = _pair(estimate, truth)
    if estimate.ndim != 3 or estimate.shape[1] < 2:
        raise ValueError(f"estimate must have the shape (blend, galaxy >= 2, band), got {estimate.shape}")
    error = np.moveaxis((estimate - truth) / truth, 1, 0)[:2].reshape(2, -1)
    error = error[:, np.isfinite(error).all(0)]
    if error.shape[1] < 3:
        return float("nan")
    return float(np.corrcoef(error.argsort(1).argsort(1))[0, 1])


def accuracy_table(
    posteriors: Mapping[str, Posterior],
    flux: ArrayLike | Mapping[str, ArrayLike],
    *,
    mask: ArrayLike | None = None,
) -> Table:
    """Compare methods on the same blends, a row a method.

    The point estimate is the median of the draws. Columns, all over galaxies and bands:

    - ``count``: galaxies times bands with a true flux; ``detected``: fraction of them with an estimate;
    - ``mape``, ``median_ape``: mean and median absolute percentage error of the flux, in percent;
    - ``bias_mag``, ``nmad_mag``, ``sd_mag``: median of the magnitude errors (positive where too faint), their
      normalized median absolute deviation and their standard deviation;
    - ``outliers``: fraction beyond 0.75 mag, abstentions included;
    - ``coverage_68``, ``coverage_90``: fraction of the truths inside the central intervals, with its binomial
      standard error as ``coverage_68_error``, ``coverage_90_error``;
    - ``width``: median half width of the 68 % interval in ln flux;
    - ``crps_ln``: mean continuous ranked probability score in ln flux;
    - ``pull_mean``, ``pull_sd``: of (mean - truth) / sd of the draws;
    - ``residual_correlation``: rank correlation of the two galaxies' relative errors;
    - ``iou``: mean intersection over union of the masks at probability 0.5, an abstention counts 0.

    For `width` and `crps_ln`, draws below 1 % of the true flux are raised to that.

    Parameters
    ----------
    posteriors
        The posteriors by the name of their method.
    flux
        True fluxes ``(blend, galaxy, band)``, or those of each method by its name: AUTO fluxes for SEP, total
        ones for the network.
    mask
        True masks ``(blend, galaxy, y, x)``; without them `iou` is NaN.

    Returns
    -------
    Table
        A row a method.

    Raises
    ------
    ValueError
        If shapes disagree, a true flux is not positive, or a method has no true flux.
    """
    rows = []
    for method, posterior in posteriors.items():
        if isinstance(flux, Mapping) and method not in flux:
            raise ValueError(f"flux must hold every method, got none for {method!r}")
        truth = np.asarray(flux[method] if isinstance(flux, Mapping) else flux, dtype=np.float64)
        draws = np.asarray(posterior.flux, dtype=np.float64)
        row = {"method": method} | _accuracy(draws.reshape(-1, *draws.shape[2:]), truth)
        estimate = None if mask is None else getattr(posterior, "mask", None)
        rows.append(row | {"iou": float("nan") if estimate is None else float(iou(estimate, mask).mean())})
    return Table(rows)


def _accuracy(draws: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    draws, truth = _draws(draws, truth)
    estimate = np.median(draws, axis=0)
    measured = np.isfinite(truth)
    known = np.isfinite(draws).all(0) & measured
    magnitude = magnitude_error(estimate, truth)
    covered = {level: coverage(draws, truth, level=level / 100) for level in (68, 90)}
    log_draws, log_truth = np.log(np.maximum(draws, FLOOR * truth))[:, known], np.log(truth[known])
    return {
        "count": int(measured.sum()),
        "detected": float(known.sum() / max(measured.sum(), 1)),
        "mape": _over(np.mean, absolute_percentage_error(estimate, truth)),
        "median_ape": _over(np.median, absolute_percentage_error(estimate, truth)),
        "bias_mag": _over(np.median, magnitude),
        "nmad_mag": nmad(magnitude),
        "sd_mag": _over(np.std, magnitude),
        "outliers": outlier_fraction(estimate, truth),
        **{f"coverage_{level}": fraction for level, (fraction, _) in covered.items()},
        **{f"coverage_{level}_error": error for level, (_, error) in covered.items()},
        "width": _over(np.median, interval_width(log_draws)),
        "crps_ln": _over(np.mean, crps(log_draws, log_truth)),
        "pull_mean": _over(np.mean, pulls(draws, truth)),
        "pull_sd": _over(np.std, pulls(draws, truth)),
        "residual_correlation": residual_correlation(estimate, truth),
    }


def _over(statistic: Callable[[NDArray[np.float64]], float], values: NDArray[np.float64]) -> float:
    values = values[np.isfinite(values)]
    return float(statistic(values)) if values.size else float("nan")
