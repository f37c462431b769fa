"""Galaxies that are not as the generative model has them: what refinement does, and whether its gates notice.

Refinement takes each galaxy for one Sérsic profile. Where it is not, importance weights stay healthy and the intervals
are far too narrow. The table tells how often that happens on galaxies with bulges, with knots, and on the worst of
both, and how many of the errors the gates of `~probdeblend.refinement.refiner.Refiner` let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from probdeblend._files import kept_arrays
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.refiner import Refiner
from probdeblend.scene import GALAXY_TYPES, seed_of
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import render, widen_psf

__all__ = ["KINDS", "profile_check", "report"]

KINDS = ("one Sérsic profile", "bulges with disks", "irregular, knotty", "de Vaucouleurs with knots")
"""Kinds of galaxies; the first is what the model has."""
DE_VAUCOULEURS = 4.0
BATCH = 16
FAR = 3.0  # standard deviations
LEVEL = 0.68


def profile_check(
    refiners: Mapping[str, Refiner],
    *,
    count: int = 64,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    kept: Path | None = None,
) -> Table:
    """Refine galaxies of every kind.

    Parameters
    ----------
    refiners
        What refines by the name of the model; each is given every kind.
    count
        Blends of each kind.
    draws, passes
        Draws of each flux, and dropout passes of the network.
    seed
        Same seed, same table.
    kept
        A folder for what is found, batch by batch: what is there of an earlier run with the same arguments is used.

    Returns
    -------
    Table
        A row a ``model`` and a kind of ``galaxies``: the fraction of blends ``refined``; how many of the true fluxes
        lie in the 68 % interval of the network (``network_68``) and of the answer (``answer_68``), and within one
        standard deviation of refinement without gates (``ungated_68``); the fraction of blends in which refinement
        without gates is ``far``, more than three standard deviations off in a flux, the fraction of these that flags
        ``caught`` (NaN of none), and the fraction of the others that have a flag nevertheless (``false_flags``).

    Raises
    ------
    ValueError
        If there are no blends.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    rows, settings = [], {"draws": draws, "passes": passes, "seed": seed}
    with tqdm(total=len(refiners) * len(KINDS) * count, desc="blends", unit="blend", leave=False) as bar:
        for number, (name, refiner) in enumerate(refiners.items()):
            for kind in KINDS:
                judged = []
                for first in range(0, count, BATCH):
                    blends = range(first, min(first + BATCH, count))
                    path = None if kept is None else kept / f"blends-{number}-{KINDS.index(kind)}-{first:05d}.npz"
                    judged.append(kept_arrays(path, partial(_judged, refiner, kind, blends, **settings)))
                    bar.update(len(blends))
                columns = {column: np.concatenate([part[column] for part in judged]) for column in judged[0]}
                rows.append({"model": name, "galaxies": kind} | _row(**columns))
    return Table(rows)


def _prior(kind: str) -> Prior:
    if kind == KINDS[0]:
        return replace(Prior.default(), smooth=True)
    only = "sphd" if kind == KINDS[1] else "irr"
    return replace(Prior.default(), type_probabilities=tuple(float(name == only) for name in GALAXY_TYPES))


def _blends(model: BlendModel, kind: str, blends: range, *, seed: int) -> tuple[Observed, NDArray[np.float64]]:
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


def _judged(refiner: Refiner, kind: str, blends: range, *, seed: int, **sampling: int) -> dict[str, NDArray]:
    """Return whether blends are refined, depths of the truth in both posteriors, and errors without gates."""
    observed, truth = _blends(refiner.model, kind, blends, seed=seed)
    given = {"image": observed.image * observed.sky_rms[:, None, None], "sky_rms": observed.sky_rms.numpy()}
    given |= {"seed": seed + blends.start}
    answer, network = (each(**given, **sampling) for each in (refiner, refiner.deblender))
    flux = truth * observed.sky_rms.double().numpy()[:, None]
    error = (flux - answer.dataset["refined_flux"].values) / answer.dataset["refined_flux_sd"].values
    flagged = ((answer.flags.values & int(Flag.NOT_REFINED)) > 0).any(1)
    depths = {"network": _depth(network, flux), "answer": _depth(answer, flux)}
    return {"refined": ~flagged, "error": np.abs(error)} | depths


def _depth(posterior: Posterior, flux: NDArray[np.float64]) -> NDArray[np.float64]:
    draws = posterior.draws("blend", "galaxy", "band")[:, :, 0]
    ranks = (draws < flux[..., None]).mean(-1)
    return np.abs(2 * ranks - 1)


def _row(refined: NDArray, network: NDArray, answer: NDArray, error: NDArray) -> dict[str, float]:
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


def report(table: Table) -> str:
    """Return the table as text.

    Parameters
    ----------
    table
        What `profile_check` returns.

    Returns
    -------
    str
        A line a row.
    """
    shown = table.copy()
    for name in shown.colnames[3:]:
        shown[name].info.format = ".2f"
    return "\n".join(shown.pformat(max_width=-1, max_lines=-1))
