"""Is an uncertainty right? Diagnostics of anybody's posterior draws, or means and covariances.

Draws have the shape ``(draw, ...)``, truths ``(...)``; of joint quantities the last axis holds the parts. An abstention
(NaN) is left out. A diagnostic that passes does not prove a posterior right; each sees what it looks at:

- `pit` and `expected_coverage` look at one quantity at a time: its location and width;
- `joint_pit` looks at distances from the mean in units of the covariance, so that a missing correlation shows;
- `whitened` errors of an exact posterior are uncorrelated, with unit scatter;
- `tarp` looks at the whole distribution, from random reference points.

Ranks of an exact posterior are uniform (Talts et al. 2018, arXiv:1804.06788). `ecdf_band` says how far their empirical
distribution may stray, everywhere at once (Säilynoja et al. 2022, doi:10.1007/s11222-022-10090-6). TARP is from Lemos
et al. (2023, arXiv:2302.03026).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "LEVELS",
    "covariance_pit",
    "ecdf_band",
    "energy_score",
    "expected_coverage",
    "interval_score",
    "joint_pit",
    "log_score",
    "normal_pit",
    "pit",
    "rank_p_value",
    "tarp",
    "whitened",
]

LEVELS = (0.5, 0.68, 0.9, 0.95)
_SIMULATIONS = 4000


def _checked(draws: ArrayLike, truth: ArrayLike, *, least: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if draws.ndim == 0 or draws.shape[1:] != truth.shape:
        raise ValueError(f"draws must have the shape (draw, *{truth.shape}), got {draws.shape}")
    if len(draws) < least:
        raise ValueError(f"draws must be at least {least}, got {len(draws)}")
    if not np.isfinite(truth).all():
        raise ValueError(f"truth must be finite, got {int((~np.isfinite(truth)).sum())} values that are not")
    return draws, truth


def _joint(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    draws, truth = _checked(draws, truth)
    if truth.ndim != 2:
        raise ValueError(f"truth must have the axes (blend, part), got shape {truth.shape}")
    if len(draws) <= truth.shape[1]:
        raise ValueError(f"draws must be more than the {truth.shape[1]} parts, got {len(draws)}")
    known = np.isfinite(draws).all((0, 2))
    return draws[:, known], truth[known]


def pit(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the probability integral transform by ranks: uniform between 0 and 1 for an exact posterior.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    seed
        Seed of the place within a rank, which makes the values continuous.

    Returns
    -------
    NDArray
        Flat; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree, there are fewer than two draws, or a truth is not finite.
    """
    draws, truth = _checked(draws, truth)
    flat, true = draws.reshape(len(draws), -1), truth.ravel()
    known = np.isfinite(flat).all(0)
    below, equal = (flat < true).sum(0)[known], (flat == true).sum(0)[known]
    place = np.random.default_rng(seed).random(len(below))
    return (below + place * (equal + 1)) / (len(draws) + 1)


def normal_pit(mean: ArrayLike, sd: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the probability integral transform of normal errors, such as those that a catalog quotes.

    Parameters
    ----------
    mean, sd
        Estimates and their errors ``(...)``.
    truth
        True values ``(...)``.

    Returns
    -------
    NDArray
        Flat; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree, an error is not positive, or a truth is not finite.
    """
    mean, truth = _checked(np.asarray(mean)[None], truth, least=1)
    mean, sd = mean[0], np.asarray(sd, dtype=np.float64)
    if sd.shape != truth.shape:
        raise ValueError(f"sd must have the shape of truth {truth.shape}, got {sd.shape}")
    known = np.isfinite(mean) & np.isfinite(sd)
    if (sd[known] <= 0).any():
        raise ValueError(f"sd must be positive, got {sd[known].min()}")
    return stats.norm.cdf((truth[known] - mean[known]) / sd[known])


def joint_pit(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the rank of the truth's Mahalanobis distance among those of the draws: uniform if all is right.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.
    seed
        Seed of the place within a rank.

    Returns
    -------
    NDArray
        A value a blend; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.
    """
    draws, truth = _joint(draws, truth)
    mean = draws.mean(0)
    factor = np.linalg.cholesky(_covariance(draws))
    distance = [
        np.square(np.linalg.solve(factor, error[..., None])).sum((-2, -1)) for error in (draws - mean, truth - mean)
    ]
    return pit(*distance, seed=seed)


def covariance_pit(mean: ArrayLike, covariance: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the chi-square probability of the Mahalanobis distance for means with covariances.

    Parameters
    ----------
    mean
        Estimates ``(blend, part)``.
    covariance
        Their covariances ``(blend, part, part)``, positive definite.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        A value a blend, uniform if all is right; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree or a covariance is not positive definite.
    """
    error = whitened(mean, covariance, truth)
    return stats.chi2.cdf(np.square(error).sum(-1), error.shape[-1])


def whitened(mean: ArrayLike, covariance: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return errors in units of each posterior's own covariance: uncorrelated, of unit scatter, if it is right.

    Parameters
    ----------
    mean
        Posterior means ``(blend, part)``.
    covariance
        Posterior covariances ``(blend, part, part)``.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        ``L^-1 (truth - mean)`` with the Cholesky factor L of the covariance ``(blend, part)``; abstentions are left
        out.

    Raises
    ------
    ValueError
        If shapes disagree or a covariance is not positive definite.
    """
    mean, truth = _checked(np.asarray(mean)[None], truth, least=1)
    mean, covariance = mean[0], np.asarray(covariance, dtype=np.float64)
    if truth.ndim != 2 or covariance.shape != (*truth.shape, truth.shape[1]):
        expected = (*truth.shape, truth.shape[-1])
        raise ValueError(f"covariance must have the shape {expected}, got {covariance.shape}")
    known = np.isfinite(mean).all(-1) & np.isfinite(covariance).all((-2, -1))
    try:
        factor = np.linalg.cholesky(covariance[known])
    except np.linalg.LinAlgError as error:
        raise ValueError("covariance must be positive definite for every blend") from error
    return np.linalg.solve(factor, (truth - mean)[known][..., None])[..., 0]


def _covariance(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    error = draws - draws.mean(0)
    return np.einsum("dbi,dbj->bij", error, error) / (len(draws) - 1)


def expected_coverage(
    values: ArrayLike, *, levels: Sequence[float] = LEVELS, central: bool = True, band: float = 0.95
) -> NDArray[np.float64]:
    """How often intervals hold the truth, at several levels, with binomial bands.

    Parameters
    ----------
    values
        What `pit` returns, for central intervals; or, with `central` unset, what `joint_pit` or `tarp` do.
    levels
        Probabilities of the intervals.
    central
        Whether intervals lie around the median; else they reach from 0 up.
    band
        Probability of each band.

    Returns
    -------
    NDArray
        A row a level: the level, the fraction covered, and the ends of the band in which the fraction of an exact
        posterior lies ``(level, 4)``.

    Raises
    ------
    ValueError
        If there are no values or a level is not between 0 and 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("values must hold at least one, got none")
    wanted = np.asarray(levels, dtype=np.float64)
    if ((wanted <= 0) | (wanted >= 1)).any():
        raise ValueError(f"levels must be between 0 and 1, got {tuple(levels)}")
    depth = np.abs(2 * values - 1) if central else values
    covered = (depth[:, None] <= wanted).mean(0)
    low, high = stats.binom.interval(band, values.size, wanted)
    return np.column_stack([wanted, covered, low / values.size, high / values.size])


@lru_cache(maxsize=64)
def _simultaneous(count: int, level: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Points, lower and upper ends of the band, and sorted least pointwise p-values of simulated uniform samples."""
    points = np.arange(1, min(count, 200) + 1) / (min(count, 200) + 1)
    rng = np.random.default_rng(20220101)
    least = np.empty(_SIMULATIONS)
    for i in range(_SIMULATIONS):
        least[i] = _least_p_value(rng.random(count), points)
    gamma = np.quantile(least, 1 - level)
    low, high = (stats.binom.ppf(probability, count, points) / count for probability in (gamma / 2, 1 - gamma / 2))
    return points, low, high, np.sort(least)


def _least_p_value(values: NDArray[np.float64], points: NDArray[np.float64]) -> float:
    below = np.searchsorted(np.sort(values), points, side="right")
    lower = stats.binom.cdf(below, len(values), points)
    upper = stats.binom.sf(below - 1, len(values), points)
    return float(2 * np.minimum(lower, upper).min())


def ecdf_band(count: int, *, level: float = 0.95) -> tuple[NDArray[np.float64], ...]:
    """Return the band in which the whole empirical distribution of uniform values lies with a given probability.

    Parameters
    ----------
    count
        Number of values.
    level
        Probability of the band, at all points together; it is found by simulation.

    Returns
    -------
    points, low, high
        Where the distribution is looked at, and the ends of the band there.

    Raises
    ------
    ValueError
        If there are fewer than ten values or the level is not between 0 and 1.

    References
    ----------
    Säilynoja et al. (2022), doi:10.1007/s11222-022-10090-6.
    """
    if count < 10:
        raise ValueError(f"at least 10 values are needed, got {count}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return _simultaneous(count, level)[:3]


def rank_p_value(values: ArrayLike) -> float:
    """Return the probability that ranks of an exact posterior stray from uniform as far as these do.

    Parameters
    ----------
    values
        What `pit`, `joint_pit`, `covariance_pit` or `tarp` return.

    Returns
    -------
    float
        The p-value of the simultaneous test that `ecdf_band` draws; values below 1/4000 are returned as that.

    Raises
    ------
    ValueError
        If there are fewer than ten values.
    """
    values = np.ravel(np.asarray(values, dtype=np.float64))
    if len(values) < 10:
        raise ValueError(f"at least 10 values are needed, got {len(values)}")
    points, _, _, least = _simultaneous(len(values), 0.95)
    rank = np.searchsorted(least, _least_p_value(values, points), side="right")
    return float(max(rank, 1) / _SIMULATIONS)


def tarp(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Return, for a random reference point a blend, the share of draws nearer to it than the truth.

    Parts are scaled to the spread of the truths, over whose range the references lie.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.
    seed
        Seed of the references.

    Returns
    -------
    NDArray
        Uniform between 0 and 1 for an exact posterior; a value a blend, abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Lemos et al. (2023), arXiv:2302.03026.
    """
    draws, truth = _joint(draws, truth)
    low, high = truth.min(0), truth.max(0)
    width = np.where(high > low, high - low, 1.0)
    rng = np.random.default_rng(seed)
    reference = rng.random(truth.shape)
    drawn = np.square((draws - low) / width - reference).sum(-1)
    true = np.square((truth - low) / width - reference).sum(-1)
    return pit(drawn, true, seed=seed + 1)


def energy_score(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return the energy score of joint draws, unbiased in their number: lower is better.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        ``E|X - truth| - E|X - X'| / 2`` a blend; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437.
    """
    draws, truth = _joint(draws, truth)
    error = np.linalg.norm(draws - truth, axis=-1).mean(0)
    number = len(draws)
    spread = np.zeros(truth.shape[0])
    for shift in range(1, number):
        spread += np.linalg.norm(draws[shift:] - draws[:-shift], axis=-1).sum(0)
    return error - spread / (number * (number - 1))


def interval_score(draws: ArrayLike, truth: ArrayLike, *, level: float = 0.68) -> NDArray[np.float64]:
    """Return the score of the central interval: its width, plus a fine for missing the truth; lower is better.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, ...)``.
    truth
        True values ``(...)``.
    level
        Probability of the interval.

    Returns
    -------
    NDArray
        ``width + 2 / (1 - level) * distance of the truth from the interval`` ``(...)``, NaN for abstentions.

    Raises
    ------
    ValueError
        If shapes disagree or the level is not between 0 and 1.

    References
    ----------
    Gneiting & Raftery (2007), doi:10.1198/016214506000001437, section 6.2.
    """
    draws, truth = _checked(draws, truth)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    miss = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return high - low + 2 / (1 - level) * miss


def log_score(draws: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Return minus the log density at the truth of the normal with the draws' mean and covariance.

    Parameters
    ----------
    draws
        Posterior draws ``(draw, blend, part)``, of log-fluxes rather than fluxes, which are nearer to normal.
    truth
        True values ``(blend, part)``.

    Returns
    -------
    NDArray
        A value a blend, in nats: lower is better; abstentions are left out.

    Raises
    ------
    ValueError
        If shapes disagree or there are not more draws than parts.

    References
    ----------
    Dawid & Sebastiani (1999), doi:10.1214/aos/1018031101.
    """
    draws, truth = _joint(draws, truth)
    covariance = _covariance(draws)
    error = whitened(draws.mean(0), covariance, truth)
    volume = np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.square(error).sum(-1) + volume + truth.shape[1] * np.log(2 * np.pi))
