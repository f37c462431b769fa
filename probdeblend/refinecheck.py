"""Refinement on blends of the model's own kind, against the bound on what can be known of them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from .bound import van_trees_bound
from .calibration import expected_coverage, joint_pit, pit
from .deblender import Deblender
from .latents import LATENTS
from .model import BlendModel, Observed
from .prior import Prior
from .refine import Refined, refine
from .refiner import METHODS
from .seeds import seed_of

__all__ = ["refine_check", "report"]

LEVELS = (0.68, 0.95)
LARGEST_K_HAT = 0.7
CHUNK = 16
FLUXES = [0, len(LATENTS)]


def refine_check(
    deblender: Deblender,
    start: Callable[[Tensor], Tensor],
    *,
    count: int = 200,
    draws: int = 400,
    passes: int = 32,
    method: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Refine blends that the model drew, and compare with the bound, and with the network.

    Parameters
    ----------
    deblender
        Trained weights, which answer beside.
    start
        From images over the sky noise ``(blend, 1, y, x)`` to a guess of all unknowns, such as the mean of a guide.
    count
        Number of blends.
    draws, passes
        Draws of each proposal, and of the network; dropout passes of the network.
    method
        How blends are refined, as for `~probdeblend.refiner.Refiner`.
    seed
        Same seed, same table.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        A row a method ("refined" and "network"): ``nmad_over_bound``, the normalized median absolute deviation of
        errors of ln flux in units of the bound; ``coverage_68`` and ``coverage_95`` of each flux, and ``joint_68`` and
        ``joint_95`` of both; where the weights are no use, refinement abstains, and the blend is left out of
        both rows; and the ``seconds`` a
        blend, in batches, one after the other. In the metadata the
        number of ``blends``, the median ``effective`` fraction of the draws, the fraction with a ``k_hat`` below 0.7,
        the fraction ``usable``, below the limit for so few draws, and the median ``chi_square``.

    Raises
    ------
    ValueError
        If there are no blends, or there is no such method.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    model = BlendModel(Prior.default(), deblender.instrument)
    parts, quality, seconds = [], [], np.zeros(2)
    for number in tqdm(range(0, count, CHUNK), disable=not progress, desc="blends", unit="batch", leave=False):
        observed, unknown = model.simulate(min(CHUNK, count - number), seed=seed_of(seed, number))
        began = perf_counter()
        settings = {"draws": draws, "seed": seed + number}
        found = refine(model, observed, start(observed.image[:, None]), fits=METHODS[method], **settings)
        refined = perf_counter()
        posterior = deblender(observed.image, sky_rms=np.ones(len(unknown)), passes=passes, **settings)
        seconds += [refined - began, perf_counter() - refined]
        answers = {
            "refined": _usable(found, draws, seed=seed),
            "network": np.log(posterior.draws("blend", "galaxy", "band")[:, :, 0]).transpose(2, 0, 1)[:draws],
        }
        answers["network"][:, ~found.usable] = np.nan  # both are judged on the same blends
        parts.append((answers, unknown[:, FLUXES].double().numpy(), _bound(model, observed, unknown)))
        quality.append(_quality(found, draws))
    table = Table([_row(name, parts) for name in ("refined", "network")])
    table["seconds"] = seconds / count
    effective, k_hat, usable, chi_square = (np.concatenate(values) for values in zip(*quality, strict=True))
    table.meta = {
        "blends": count,
        "effective": float(np.median(effective)),
        "k_hat": float((k_hat < LARGEST_K_HAT).mean()),
        "usable": float(usable.mean()),
        "chi_square": float(np.nanmedian(chi_square)),
    }
    return table


def _bound(model: BlendModel, observed: Observed, unknown: Tensor) -> NDArray[np.float64]:
    """Return the least standard deviations of both ln fluxes ``(blend, galaxy)``."""
    with torch.no_grad():
        covariance = van_trees_bound(model, observed, unknown)
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)[:, FLUXES])


def _usable(found: Refined, draws: int, *, seed: int) -> NDArray[np.float64]:
    """Return draws of ln fluxes ``(draw, blend, galaxy)``; NaN, an abstention, where the weights are no use."""
    log_flux = found.resampled(draws, seed=seed)[..., FLUXES].copy()
    log_flux[:, ~found.usable] = np.nan
    return log_flux


def _quality(found: Refined, draws: int) -> tuple[NDArray, ...]:
    return found.effective / draws, found.k_hat, found.usable, found.chi_square.ravel()


def _row(name: str, parts: list[tuple[dict[str, NDArray], NDArray, NDArray]]) -> dict[str, object]:
    draws = np.concatenate([answers[name] for answers, _, _ in parts], 1)
    truth, bound = (np.concatenate([part[place] for part in parts]) for place in (1, 2))
    error = (np.median(draws, 0) - truth) / bound
    scatter = stats.median_abs_deviation(error, axis=None, scale="normal", nan_policy="omit")
    row: dict[str, object] = {"method": name, "nmad_over_bound": float(scatter)}
    for kind, values in (("coverage", pit(draws, truth)), ("joint", joint_pit(draws, truth))):
        if kind == "joint":
            found = [float((values[np.isfinite(values)] <= level).mean()) for level in LEVELS]
        else:
            found = expected_coverage(values, levels=list(LEVELS))[:, 1].tolist()
        row |= {f"{kind}_{100 * level:.0f}": part for level, part in zip(LEVELS, found, strict=True)}
    return row


def report(table: Table) -> str:
    """Say how close to the bound refinement comes, and how far its weights can be trusted.

    Parameters
    ----------
    table
        What `refine_check` returns.

    Returns
    -------
    str
        A few lines.
    """
    meta = table.meta
    lines = [
        f"{meta['blends']} blends of the model: {meta['effective']:.0%} of the draws effective (median), k-hat below "
        f"{LARGEST_K_HAT} for {meta['k_hat']:.1%}, usable {meta['usable']:.1%}; chi-square {meta['chi_square']:.3f}"
    ]
    for row in table:
        lines.append(
            f"{row['method']}: errors {row['nmad_over_bound']:.2f} times the bound; 68 % and 95 % intervals cover "
            f"{row['coverage_68']:.1%} and {row['coverage_95']:.1%}, jointly {row['joint_68']:.1%} and "
            f"{row['joint_95']:.1%}; {row['seconds']:.3g} s a blend"
        )
    return "\n".join(lines)
