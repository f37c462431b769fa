"""The ladder of misfits: what becomes of coverage, width and flags as images move away from the training set.

Each rung changes one thing: the galaxies, the PSF, the noise, the depth. A posterior that is right on its own family is
not thereby right on another; the table says by how much, and whether the flags notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from astropy.table import Table
from tqdm.auto import tqdm

from probdeblend.deblending.deblender import Deblender
from probdeblend.metrics.bins import diagnose
from probdeblend.metrics.fluxes import magnitude_error, nmad
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import GALAXY_TYPES, Blend, Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import reshape_psf
from probdeblend.surveys.blends import PairRules, pair_blends
from probdeblend.surveys.library import Library
from probdeblend.training.scorecard import log_fluxes
from probdeblend.training.trial import Trial, run_trial, simulated_batches

__all__ = ["RUNGS", "climb", "rung_blends"]

FLAGS = (Flag.UNFAMILIAR, Flag.OUTSIDE_PRIOR, Flag.OUTSIDE_CALIBRATION)
FIXED = Conditions((3e-3, 3e-3), (3200.0, 3200.0), (1.0, 1.0), 0.0)
PSF_CHANGE = 0.05


def _only(name: str) -> Prior:
    """Return the published population with one type of galaxy."""
    chosen = tuple(float(kind == name) for kind in GALAXY_TYPES)
    return replace(Prior.published(), type_probabilities=chosen)


def _grown(instrument: Instrument, growth: float) -> Instrument:
    psf = reshape_psf(instrument.psf, torch.tensor([growth]), torch.zeros(1, 2))[0]
    return instrument.replace(psf=psf / psf.sum())


RUNGS: dict[str, Callable[[Instrument], dict[str, object]]] = {
    "all types, as trained on": lambda hst: {},
    "one Sérsic profile each": lambda hst: {"prior": replace(Prior.published(), smooth=True)},
    "bulges with disks": lambda hst: {"prior": _only("sphd")},
    "irregular, knotty": lambda hst: {"prior": _only("irr")},
    "PSF 5 % wider": lambda hst: {"instrument": _grown(hst, 1 + PSF_CHANGE)},
    "PSF 5 % narrower": lambda hst: {"instrument": _grown(hst, 1 - PSF_CHANGE)},
    "white noise": lambda hst: {"instrument": hst.replace(noise_kernel=None)},
    "photon noise of 300 s": lambda hst: {"conditions": replace(FIXED, exposure=(300.0, 300.0))},
    "sky noise twice as high": lambda hst: {"conditions": replace(FIXED, sky_rms=(6e-3, 6e-3))},
    "sky noise beyond the training": lambda hst: {"conditions": replace(FIXED, sky_rms=(2e-2, 2e-2))},
}
"""What each rung changes: keyword arguments for `~probdeblend.training.trial.simulated_batches`, given the instrument."""


def rung_blends(rung: str, count: int, *, seed: int = 0) -> Iterator[Blend]:
    """Simulate the blends of a rung.

    Parameters
    ----------
    rung
        One of `RUNGS`.
    count
        Number of blends.
    seed
        Same seed, same blends.

    Returns
    -------
    iterator of Blend
        Batches with their truth.

    Raises
    ------
    ValueError
        If there is no such rung.
    """
    if rung not in RUNGS:
        raise ValueError(f"rung must be one of {', '.join(RUNGS)}, got {rung!r}")
    changed = RUNGS[rung](Instrument.candels_f160w())
    settings = {"prior": Prior.published(), "conditions": FIXED} | changed
    return simulated_batches(count, seed=seed, progress=False, **settings)


def climb(
    deblender: Deblender,
    *,
    count: int = 1000,
    library: Library | None = None,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Measure coverage, width and flags on every rung, before and after the deblender's calibrator.

    Parameters
    ----------
    deblender
        The network with its calibrator.
    count
        Blends a rung.
    library
        Lone real galaxies for the last rung; None leaves it out.
    draws, passes, seed
        Given to the deblender; the seed draws the blends too.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        A row a rung and ``state`` ("network", and "calibrated" where there is a calibrator): the numbers of
        `~probdeblend.metrics.bins.diagnose` in ln flux, ``bias_mag`` and ``nmad_mag``, and the fraction of blends
        with each flag. Bands of real galaxies are over galaxies.
    """
    rungs: list[tuple[str, Iterator[Blend]]] = [(rung, rung_blends(rung, count, seed=seed)) for rung in RUNGS]
    if library is not None:
        instrument = Instrument.candels_f160w()
        rungs.append(
            ("real galaxies", pair_blends(library, count, instrument=instrument, rules=PairRules(), seed=seed))
        )
    rows = []
    for rung, blends in tqdm(rungs, desc="ladder", unit="rung", disable=not progress, leave=False):
        sampling = {"draws": draws, "passes": passes, "seed": seed}
        trial = run_trial(blends, deblender, calibrator=deblender.calibrator, sep=(), **sampling)
        rows.append({"rung": rung, "state": "network"} | _judged(trial.network, trial))
        if deblender.calibrator is not None:
            rows.append({"rung": rung, "state": "calibrated"} | _judged(trial.calibrated, trial))
    return Table(rows)


def _judged(posterior: Posterior, trial: Trial) -> dict[str, float]:
    draws, truth = log_fluxes(posterior, trial.truth["flux"], trial.truth["sky_rms"])
    median = np.exp(np.median(draws, axis=0))
    error = magnitude_error(median, np.exp(truth))
    flags = posterior.flags.values
    shares = {flag.name.lower(): float(((flags & flag) > 0).any(1).mean()) for flag in FLAGS}
    accuracy = {"bias_mag": float(np.nanmedian(error)), "nmad_mag": nmad(error)}
    return diagnose(draws, truth, galaxies=trial.galaxies) | accuracy | shares
