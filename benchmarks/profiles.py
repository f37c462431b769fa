"""Refine galaxies that violate the model, and count how many of the errors are flagged.

Refinement takes each galaxy for one Sérsic profile. Where it is not, importance weights stay healthy and the intervals
are far too narrow. Galaxies with bulges, with knots, and the worst of both are refined under two models: Sérsic
profiles of any index, and exponential disks alone.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, guide_option, load_with_guide, sized_option
from probdeblend._files import kept_arrays
from probdeblend.cli.options import weights as weights_option
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.refiner import Refiner
from probdeblend.scene import GALAXY_TYPES, seed_of
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import render, widen_psf

__all__ = ["KINDS", "draw_blends", "main", "summarize"]

KINDS = ("one Sérsic profile", "bulges with disks", "irregular, knotty", "de Vaucouleurs with knots")  # the first fits
DE_VAUCOULEURS = 4.0
BATCH = 16
FAR = 3.0  # standard deviations
LEVEL = 0.68


@benchmark("profiles")
@sized_option("--count", 2, 16, help="Blends of each kind.")
@click.option("--draws", type=click.IntRange(1), default=1000, show_default=True, help="Draws of each flux.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Kind of galaxies.  [default: all]")
@weights_option
@guide_option
def main(run: Run, count: int, draws: int, kinds: tuple[str, ...], weights: Path | None, guide: Path | None) -> None:
    """Refine galaxies that violate the model, and count how many of the errors are flagged.

    Columns: the fraction of blends refined; coverage of the 68 % interval by the network, by refinement before its
    checks and by the answer after them; the fraction of blends in which refinement is more than three standard
    deviations off in a flux ("far"), the fraction of these that are flagged ("caught"), and of the others ("false").
    """
    deblender, start = load_with_guide(weights, guide)
    disks = replace(Prior.default(), type_probabilities=(0.0, 1.0, 0.0, 0.0), smooth=True)
    models = {"any index": Refiner(deblender, start), "exponential": Refiner(deblender, start, prior=disks)}
    rows, kinds, batches = [], kinds or KINDS, range(0, count, BATCH)
    bar = tqdm(total=len(models) * len(kinds) * len(batches), desc="blends", unit="batch", leave=False)
    with run.unfinished(deblender=deblender, guide=str(guide), count=count, draws=draws) as kept, bar:
        for (number, name), kind in product(enumerate(models), kinds):
            judged = []
            for first in batches:
                blends = range(first, min(first + BATCH, count))
                judge = partial(_judged, models[name], kind, blends, draws=draws, seed=run.seed)
                judged.append(kept_arrays(kept / f"blends-{number}-{KINDS.index(kind)}-{first:05d}.npz", judge))
                bar.update()
            columns = {column: np.concatenate([part[column] for part in judged]) for column in judged[0]}
            rows.append({"model": name, "galaxies": kind} | summarize(**columns))
        table = Table(rows)
        for column in table.colnames[3:]:
            table[column].info.format = ".2f"
        run.write(table)


def draw_blends(model: BlendModel, kind: str, blends: range, *, seed: int) -> tuple[Observed, NDArray[np.float64]]:
    """Return images over the sky noise, and true fluxes over it ``(blend, galaxy)``."""
    size, key = len(blends), (seed, KINDS.index(kind), blends.start // BATCH)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed_of(*key, 0))
        prior, instrument = _prior(kind), model.instrument
        components = prior.components(prior.sample(size, seed=seed_of(*key, 1)), instrument, seed=seed_of(*key, 2))
        if kind == KINDS[-1]:
            index = components.sersic_index.clone()
            index[..., 0] = DE_VAUCOULEURS
            components = replace(components, sersic_index=index)
        sky_rms, _ = Conditions().sample(size)
        exposure = torch.full((size,), float(instrument.exposure))
        sky_level, growth = torch.randn(2, size) * torch.tensor([[model.sky_level], [model.psf_growth]])
        psf = widen_psf(instrument.psf, growth.exp())
        light = render(components, psf, pixel_scale=instrument.pixel_scale).sum(1) / sky_rms[:, None, None]
        observed = Observed(light, sky_rms, exposure)
        image = model.noisy(light, sky_level, observed).sample()
    return observed._replace(image=image), (components.total_flux / sky_rms[:, None]).double().numpy()


def _prior(kind: str) -> Prior:
    if kind == KINDS[0]:
        return replace(Prior.default(), smooth=True)
    only = "sphd" if kind == KINDS[1] else "irr"
    return replace(Prior.default(), type_probabilities=tuple(float(name == only) for name in GALAXY_TYPES))


def _judged(refiner: Refiner, kind: str, blends: range, *, draws: int, seed: int) -> dict[str, NDArray]:
    """Return which blends are refined, depths of the truth in both posteriors, and errors of all refinements."""
    observed, truth = draw_blends(refiner.model, kind, blends, seed=seed)
    given = {"image": observed.image * observed.sky_rms[:, None, None], "sky_rms": observed.sky_rms.numpy()}
    answer, network = (each(**given, draws=draws, seed=seed + blends.start) for each in (refiner, refiner.deblender))
    flux = truth * observed.sky_rms.double().numpy()[:, None]
    error = (flux - answer.dataset["refined_flux"].values) / answer.dataset["refined_flux_err"].values
    flagged = ((answer.flags.values & int(Flag.NOT_REFINED)) > 0).any(1)
    depths = {"network": _depth(network, flux), "answer": _depth(answer, flux)}
    return {"refined": ~flagged, "error": np.abs(error)} | depths


def _depth(posterior: Posterior, flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of the central interval that just holds the truth."""
    draws = posterior.draws("blend", "galaxy", "band")[:, :, 0]
    return np.abs(2 * (draws < flux[..., None]).mean(-1) - 1)


def summarize(refined: NDArray, network: NDArray, answer: NDArray, error: NDArray) -> dict[str, float]:
    """Return coverage and flags from depths and absolute errors in standard deviations ``(blend, galaxy)``."""
    far = (error > FAR).any(1)
    return {
        "blends": len(refined),
        "refined": float(refined.mean()),
        "network_68": float((network <= LEVEL).mean()),
        "ungated_68": float((error < 1).mean()),
        "answer_68": float((answer <= LEVEL).mean()),
        "far": float(far.mean()),
        "caught": float((~refined)[far].mean()) if far.any() else np.nan,
        "false_flags": float((~refined)[~far].mean()) if (~far).any() else np.nan,
    }


if __name__ == "__main__":
    main()
