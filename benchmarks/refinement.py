"""Refinement on blends of the model's own kind, against the bound on what can be known of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.bound import van_trees_bound
from probdeblend._files import kept_arrays
from probdeblend.deblending.deblender import Deblender
from probdeblend.metrics.bands import expected_coverage
from probdeblend.metrics.ranks import joint_pit, pit
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement.latents import LATENTS
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.refine import Refined, refine
from probdeblend.refinement.refiner import METHODS
from probdeblend.scene import seed_of
from probdeblend.simulation.prior import Prior

__all__ = ["refine_check", "report"]

LEVELS = (0.68, 0.95)
LARGEST_K_HAT = 0.7
CHUNK = 16
FLUXES = [0, len(LATENTS)]
AXES = {"refined": 1, "network": 1, "seconds": 1}  # of the blends; else the first


def refine_check(
    deblender: Deblender,
    start: Callable[[Tensor], Tensor],
    *,
    count: int = 200,
    draws: int = 400,
    passes: int = 32,
    method: str = "auto",
    seed: int = 0,
    kept: Path | None = None,
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
        How blends are refined, as for `~probdeblend.refinement.refiner.Refiner`.
    seed
        Same seed, same table.
    kept
        A folder for what is found, batch by batch: what is there of an earlier run with the same arguments is used.

    Returns
    -------
    Table
        A row a method ("refined" and "network"): ``nmad_over_bound``, the normalized median absolute deviation of
        errors of ln flux in units of the bound; ``coverage_68`` and ``coverage_95`` of each flux, and ``joint_68`` and
        ``joint_95`` of both; where the weights are no use, refinement abstains, and the blend is left out of both rows;
        and the ``seconds`` a blend, in batches, one after the other. In the metadata the number of ``blends``, the
        median ``effective`` fraction of the draws, the fraction with a ``k_hat`` below 0.7, the fraction ``usable``,
        below the limit for so few draws, and the median ``chi_square``.

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
    parts = []
    settings = {"draws": draws, "passes": passes, "method": method, "seed": seed}
    for number in tqdm(range(0, count, CHUNK), desc="blends", unit="batch", leave=False):
        path = None if kept is None else kept / f"blends-{number:05d}.npz"
        blends = range(number, min(number + CHUNK, count))
        parts.append(kept_arrays(path, partial(_part, model, deblender, start, blends=blends, **settings)))
    whole = {name: np.concatenate([part[name] for part in parts], AXES.get(name, 0)) for name in parts[0]}
    table = Table([_row(name, whole) for name in ("refined", "network")])
    table["seconds"] = whole["seconds"].mean(1)
    table.meta = {
        "blends": count,
        "effective": float(np.median(whole["effective"])),
        "k_hat": float((whole["k_hat"] < LARGEST_K_HAT).mean()),
        "usable": float(whole["usable"].mean()),
        "chi_square": float(np.nanmedian(whole["chi_square"])),
    }
    return table


def _part(
    model: BlendModel,
    deblender: Deblender,
    start: Callable[[Tensor], Tensor],
    *,
    blends: range,
    draws: int,
    passes: int,
    method: str,
    seed: int,
) -> dict[str, NDArray]:
    """Draw some blends, refine them and ask the network."""
    observed, unknown = model.simulate(len(blends), seed=seed_of(seed, blends.start))
    settings = {"draws": draws, "seed": seed + blends.start}
    began = perf_counter()
    found = refine(model, observed, start(observed.image[:, None]), fits=METHODS[method], **settings)
    refined = perf_counter()
    posterior = deblender(observed.image, sky_rms=np.ones(len(blends)), passes=passes, **settings)
    seconds = np.array([refined - began, perf_counter() - refined])[:, None] / len(blends)
    truth = {"truth": unknown[:, FLUXES].double().numpy(), "bound": _bound(model, observed, unknown)}
    return _compared(found, posterior, seed=seed) | truth | {"seconds": seconds}


def _bound(model: BlendModel, observed: Observed, unknown: Tensor) -> NDArray[np.float64]:
    """Return the least standard deviations of both ln fluxes ``(blend, galaxy)``."""
    with torch.no_grad():
        covariance = van_trees_bound(model, observed, unknown)
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)[:, FLUXES])


def _compared(found: Refined, posterior: Posterior, *, seed: int) -> dict[str, NDArray]:
    """Return draws of ln fluxes by both, and how good weights are; NaN, an abstention, where these are no use."""
    draws = len(found.unknown)
    refined = found.resampled(draws, seed=seed)[..., FLUXES].copy()
    network = np.log(posterior.draws("blend", "galaxy", "band")[:, :, 0]).transpose(2, 0, 1)
    refined[:, ~found.usable] = network[:, ~found.usable] = np.nan  # both are judged on the same blends
    quality = {name: getattr(found, name) for name in ("k_hat", "usable", "chi_square")}
    return {"refined": refined, "network": network, "effective": found.effective / draws} | quality


def _row(name: str, whole: dict[str, NDArray]) -> dict[str, object]:
    draws, truth = whole[name], whole["truth"]
    error = (np.median(draws, 0) - truth) / whole["bound"]
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
