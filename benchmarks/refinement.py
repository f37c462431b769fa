"""Compare refinement with the bound on what can be known of a blend, and with the network.

The blends are drawn from the generative model that refinement assumes. Where its importance weights are unreliable,
refinement abstains, and the blend counts for neither method.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from scipy import stats
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, guide_option, load_with_guide, sized_option, weights_option
from benchmarks.bound import van_trees_bound
from probdeblend._files import kept_arrays
from probdeblend.deblending.deblender import Deblender
from probdeblend.metrics.coverage import expected_coverage
from probdeblend.metrics.ranks import joint_pit, pit
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.importance import refine
from probdeblend.refinement.latents import LATENTS
from probdeblend.refinement.model import BlendModel
from probdeblend.scene import seed_of
from probdeblend.simulation.prior import Prior

__all__ = ["main", "summarize"]

LEVELS = (0.68, 0.95)
LARGEST_K_HAT = 0.7
CHUNK = 16
FLUXES = [0, len(LATENTS)]
DRAWN = {"refined", "network", "seconds"}  # arrays whose second axis is that of the blends


@benchmark("refinement")
@sized_option("--count", 16, 2000, help="Blends to draw and refine.")
@click.option("--draws", type=click.IntRange(1), default=400, show_default=True, help="Draws of each proposal.")
@weights_option
@guide_option
def main(run: Run, count: int, draws: int, weights: Path | None, guide: Path | None) -> None:
    """Refine blends drawn from the generative model, and compare with the bound and with the network.

    Columns: scatter of the errors of ln flux over the bound, coverage of the 68 % and 95 % intervals of each flux and
    of both jointly, and seconds per blend.
    """
    deblender, start = load_with_guide(weights, guide)
    model = BlendModel(Prior.default(), deblender.instrument)
    parts, answer = [], partial(_answers, model, deblender, start, draws=draws, seed=run.seed)
    with run.unfinished(deblender=deblender, guide=str(guide), count=count, draws=draws) as kept:
        for first in tqdm(range(0, count, CHUNK), desc="blends", unit="batch", leave=False):
            blends = range(first, min(first + CHUNK, count))
            parts.append(kept_arrays(kept / f"blends-{first:05d}.npz", partial(answer, blends)))
        run.write(
            _table({name: np.concatenate([part[name] for part in parts], int(name in DRAWN)) for name in parts[0]})
        )


def _answers(
    model: BlendModel, deblender: Deblender, guide: JointGuide, blends: range, *, draws: int, seed: int
) -> dict[str, NDArray]:
    """Return draws of ln flux by both methods, the truth and the bound, and how good the weights are."""
    observed, unknown = model.simulate(len(blends), seed=seed_of(seed, blends.start))
    settings = {"draws": draws, "seed": seed + blends.start}
    began = perf_counter()
    with torch.no_grad():
        start = guide(observed.image[:, None]).mean
    found = refine(model, observed, start, **settings)
    middle = perf_counter()
    posterior = deblender(observed.image, sky_rms=np.ones(len(blends)), **settings)
    seconds = np.array([middle - began, perf_counter() - middle])[:, None] / np.ones(len(blends)) / len(blends)
    refined = found.resampled(len(found.unknown), seed=seed)[..., FLUXES].copy()
    network = np.log(posterior.draws("blend", "galaxy", "band")[:, :, 0]).transpose(2, 0, 1)
    refined[:, ~found.usable] = network[:, ~found.usable] = np.nan  # both are judged on the same blends
    bound = np.sqrt(np.diagonal(van_trees_bound(model, observed, unknown), axis1=1, axis2=2)[:, FLUXES])
    quality = {name: getattr(found, name) for name in ("k_hat", "usable", "chi_square")}
    answers = {"refined": refined, "network": network, "truth": unknown[:, FLUXES].double().numpy(), "bound": bound}
    return answers | {"effective": found.effective / len(found.unknown), "seconds": seconds} | quality


def _table(found: dict[str, NDArray]) -> Table:
    rows = [
        {"method": name} | summarize(found[name], found["truth"], found["bound"]) for name in ("refined", "network")
    ]
    table = Table(rows)
    table["seconds"] = found["seconds"].mean(1)
    for name in table.colnames[1:]:
        table[name].info.format = {"nmad_over_bound": ".2f", "seconds": ".3g"}.get(name, ".3f")
    table.meta = {
        "blends": len(found["truth"]),
        "effective": float(np.median(found["effective"])),
        f"k_hat_below_{LARGEST_K_HAT}": float((found["k_hat"] < LARGEST_K_HAT).mean()),
        "usable": float(found["usable"].mean()),
        "chi_square": float(np.nanmedian(found["chi_square"])),
    }
    return table


def summarize(draws: NDArray[np.float64], truth: NDArray[np.float64], bound: NDArray[np.float64]) -> dict[str, float]:
    """Return scatter over the bound and coverage of ``(draw, blend, galaxy)``; blends that are NaN are left out."""
    error = (np.median(draws, 0) - truth) / bound
    scatter = stats.median_abs_deviation(error, axis=None, scale="normal", nan_policy="omit")
    depth = joint_pit(draws, truth)
    coverage = expected_coverage(pit(draws, truth), levels=list(LEVELS))[:, 1].tolist()
    joint = [float((depth[np.isfinite(depth)] <= level).mean()) for level in LEVELS]
    named = {"coverage": coverage, "joint": joint}
    columns = {
        f"{kind}_{100 * level:.0f}": named[kind][number] for kind in named for number, level in enumerate(LEVELS)
    }
    return {"nmad_over_bound": float(scatter)} | columns


if __name__ == "__main__":
    main()
