"""The calibration of a posterior of pairs in a table: each flux, the total flux, and both jointly.

Numbers are those of ln flux, with fluxes below the sky noise of a pixel raised to it, as SEP's draws may be negative.
"""

from __future__ import annotations

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from ..metrics.arrays import draw_covariance
from ..metrics.bands import rank_p_value
from ..metrics.bins import coverage_row, diagnose
from ..metrics.ranks import joint_pit, whitened
from ..metrics.scores import energy_score, log_score
from ..posterior.draws import Posterior

__all__ = ["log_fluxes", "scorecard"]


def log_fluxes(
    posterior: Posterior, truth: ArrayLike, floor: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws and truths of ln flux in the first band.

    Parameters
    ----------
    posterior
        The posterior.
    truth
        True fluxes ``(blend, galaxy, band)``.
    floor
        Least flux ``(blend,)``, such as the sky noise of a pixel.

    Returns
    -------
    draws, truth
        ``(draw, blend, galaxy)`` and ``(blend, galaxy)``.

    Raises
    ------
    ValueError
        If shapes disagree.
    """
    draws = posterior.draws("blend", "galaxy", "band")[:, :, 0].transpose(2, 0, 1)
    truth, floor = np.asarray(truth, dtype=np.float64), np.asarray(floor, dtype=np.float64)
    if truth.shape[:2] != draws.shape[1:] or truth.ndim != 3:
        raise ValueError(f"truth must have the shape (blend, galaxy, band) of {draws.shape[1:]}, got {truth.shape}")
    if floor.shape != truth.shape[:1]:
        raise ValueError(f"floor must have a number a blend, got shape {floor.shape}")
    return np.log(np.maximum(draws, floor[:, None])), np.log(np.maximum(truth[..., 0], floor[:, None]))


def scorecard(
    posterior: Posterior,
    truth: ArrayLike,
    *,
    floor: ArrayLike,
    galaxies: ArrayLike | None = None,
    band: float = 0.95,
    seed: int = 0,
) -> Table:
    """Judge a posterior of pairs.

    Parameters
    ----------
    posterior
        The posterior; blends of which a galaxy was not found are left out of the last two rows.
    truth
        True fluxes ``(blend, galaxy, band)`` of the posterior's kind; the first band is judged.
    floor
        Least flux ``(blend,)``.
    galaxies
        Which galaxy each is ``(blend, galaxy)``, where they repeat; pairs are resampled by their central one.
    band
        Probability of the bands.
    seed
        Seed of ranks and bootstrap.

    Returns
    -------
    Table
        The rows "each flux", "total flux" and "both jointly", with the columns of
        `~probdeblend.metrics.bins.diagnose`. Of the last one, coverage is that of regions by Mahalanobis distance,
        ``pull_sd`` the scatter of the whitened errors, ``correlation`` theirs, and ``energy_score`` and
        ``log_score`` are means.

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than ten pairs with draws.
    """
    draws, true = log_fluxes(posterior, truth, floor)
    owner = None if galaxies is None else np.asarray(galaxies)
    rows = [{"quantity": "each flux"} | diagnose(draws, true, galaxies=owner, band=band, seed=seed)]
    total = np.log(np.exp(draws).sum(-1)), np.log(np.exp(true).sum(-1))
    first = None if owner is None else owner[:, 0]
    rows.append({"quantity": "total flux"} | diagnose(*total, galaxies=first, band=band, seed=seed))
    rows.append({"quantity": "both jointly"} | _joint(draws, true, first, band=band, seed=seed))
    return Table(rows)


def _joint(draws: NDArray, truth: NDArray, owner: NDArray | None, *, band: float, seed: int) -> dict[str, float]:
    known = np.isfinite(draws).all((0, 2)) & (draws.std(0) > 0).all(-1)
    draws, truth = draws[:, known], truth[known]
    ranks = joint_pit(draws, truth, seed=seed)
    owner = None if owner is None else owner[known]
    galaxies = 2 * len(ranks) if owner is None else len(np.unique(owner))
    row: dict[str, float] = {"count": len(ranks), "galaxies": galaxies}
    row |= coverage_row(ranks, owner, central=False, band=band, seed=seed)
    error = whitened(draws.mean(0), draw_covariance(draws), truth)
    row |= {"pull_mean": error.mean(), "pull_sd": error.std(), "correlation": np.corrcoef(error.T)[0, 1]}
    row |= {"energy_score": energy_score(draws[:200], truth).mean(), "log_score": log_score(draws, truth).mean()}
    return row | {"rank_p": rank_p_value(ranks) if owner is None else np.nan}
