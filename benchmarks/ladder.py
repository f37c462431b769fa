"""Coverage, width and flags as images depart, step by step, from the training set: galaxies, PSF, noise, depth.

Each rung changes one thing. A posterior that is calibrated on its own family need not be on another; the table says by
how much it is not, and whether the flags notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from astropy.stats import mad_std
from astropy.table import Table
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option
from probdeblend._files import kept_arrays
from probdeblend.cli.options import FILE
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.accuracy import magnitude_error
from probdeblend.metrics.coverage import diagnose
from probdeblend.plots.images import EXACT_COLOR, PALETTE
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import GALAXY_TYPES, Blend, Instrument
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.profiles import reshape_psf
from probdeblend.surveys import Library, read_library
from probdeblend.surveys.blends import PairRules, pair_blends
from probdeblend.training.evaluation import Comparison, compare, log_fluxes
from probdeblend.training.streams import Mixture

__all__ = ["RUNGS", "ladder_table", "main", "plot_ladder", "rung_mixture"]

FLAGS = (Flag.UNFAMILIAR, Flag.OUTSIDE_PRIOR, Flag.OUTSIDE_CALIBRATION)
FIXED = Conditions((3e-3, 3e-3), (3200.0, 3200.0), (1.0, 1.0), 0.0)  # the depth and PSF of CANDELS
PSF_CHANGE = 0.05


def _only(name: str) -> Prior:
    """Return the published population with one type of galaxy."""
    return replace(Prior.published(), type_probabilities=tuple(float(kind == name) for kind in GALAXY_TYPES))


def _grown(instrument: Instrument, growth: float) -> Instrument:
    psf = reshape_psf(instrument.psf, torch.tensor([growth]), torch.zeros(1, 2))[0]
    return instrument.replace(psf=psf / psf.sum())


# What each rung changes among the arguments of a `Mixture`, given the instrument.
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


def rung_mixture(rung: str) -> Mixture:
    """Return the population of blends of one of `RUNGS`."""
    settings = {"prior": Prior.published(), "conditions": FIXED} | RUNGS[rung](Instrument.candels_f160w())
    return Mixture(**settings)


def ladder_table(
    deblender: Deblender, *, count: int, library: Library | None = None, kept: Path | None = None, **sampling: int
) -> Table:
    """Measure coverage, width and flags on every rung, before and after the deblender's calibrator.

    One row per rung and ``state`` ("network", and "calibrated" where there is a calibrator): what
    `~probdeblend.metrics.diagnose` measures in ln flux, ``bias_mag`` and ``nmad_mag``, and the fraction of blends with
    each flag. Real galaxies, from a library, are the last rung; its bands are over galaxies.
    """
    seed = sampling["seed"]
    rungs: dict[str, Iterable[Blend]] = {
        rung: rung_mixture(rung).blends(count, seed=seed, progress=False) for rung in RUNGS
    }
    if library is not None:
        settings = {"instrument": Instrument.candels_f160w(), "rules": PairRules(), "seed": seed}
        rungs["real galaxies"] = pair_blends(library, count, **settings)
    calibrator, rows = deblender.calibrator, []

    def measured(blends: Iterable[Blend]) -> dict[str, np.ndarray]:
        trial = compare(blends, deblender, calibrator=calibrator, sep=(), **sampling)
        answers = [trial.network] if calibrator is None else [trial.network, trial.calibrated]
        found = [_measured(answer, trial) for answer in answers]
        return {name: np.array([numbers[name] for numbers in found]) for name in found[0]}

    for i, (rung, blends) in enumerate(tqdm(rungs.items(), desc="ladder", unit="rung", leave=False)):
        numbers = kept_arrays(kept and kept / f"rung-{i:02d}.npz", lambda blends=blends: measured(blends))
        states = zip(("network", "calibrated"), zip(*numbers.values(), strict=True), strict=False)
        rows += [{"rung": rung, "state": name} | dict(zip(numbers, row, strict=True)) for name, row in states]
    table = Table(rows)
    for name in table.colnames[2:]:
        table[name].info.format = ".3f" if table[name].dtype.kind == "f" else ""
    return table


def _measured(posterior: Posterior, trial: Comparison) -> dict[str, float]:
    draws, truth = log_fluxes(posterior, trial.truth["flux"], trial.truth["sky_rms"])
    error = magnitude_error(np.exp(np.median(draws, axis=0)), np.exp(truth))
    flags = posterior.flags.values
    shares = {flag.name.lower(): float(((flags & flag) > 0).any(1).mean()) for flag in FLAGS}
    accuracy = {"bias_mag": float(np.nanmedian(error)), "nmad_mag": mad_std(error, ignore_nan=True)}
    return diagnose(draws, truth, galaxies=trial.galaxies) | accuracy | shares


def plot_ladder(table: Table) -> Figure:
    """Show coverage, width and flags on every rung: three panels with one line per rung."""
    rungs, states = list(dict.fromkeys(table["rung"])), list(dict.fromkeys(table["state"]))
    figure = Figure(figsize=(11, 1.2 + 0.36 * len(rungs)), layout="constrained")
    coverage, width, flags = figure.subplots(1, 3, sharey=True)
    coverage.axvline(0.68, color=EXACT_COLOR, lw=1)
    y = np.arange(len(rungs))[::-1]
    for number, (state, color) in enumerate(zip(states, PALETTE, strict=False)):
        rows = table[table["state"] == state]
        shifted = y - 0.16 * (number - (len(states) - 1) / 2)
        half = np.asarray(rows["coverage_68_high"] - rows["coverage_68_low"]) / 2
        coverage.errorbar(rows["coverage_68"], shifted, xerr=half, fmt="o", ms=4, color=color, label=state)
        width.plot(rows["width"], shifted, "o", ms=4, color=color)
    last = table[table["state"] == states[-1]]
    for flag, marker in zip(FLAGS, "os^", strict=True):
        name = flag.name.lower()
        flags.plot(last[name], y, marker, ms=5, alpha=0.8, label=name.replace("_", " "))
    coverage.set_yticks(y, rungs)
    coverage.set(xlabel="coverage of the 68 % interval", xlim=(0, 1))
    width.set(xlabel="half-width in ln flux", xscale="log")
    flags.set(xlabel="fraction of blends flagged", xlim=(-0.02, 1.02))
    coverage.legend(frameon=False, fontsize=8)
    flags.legend(frameon=False, fontsize=8)
    return figure


@benchmark("ladder")
@sized_option("--count", 60, 1000, help="Blends on each rung.")
@sized_option("--draws", 400, 1000, help="Posterior draws.")
@sized_option("--passes", 16, 32, least=0, help="Monte Carlo dropout passes; 0: none.")
@click.option("--library", type=FILE, multiple=True, help="Isolated real galaxies, for a rung of their blends.")
@weights_option
def main(run: Run, library: tuple[Path, ...], weights: Path | None, count: int, **sampling: int) -> None:
    """Measure coverage, width and flags as blends depart, one step at a time, from the training set."""
    galaxies, deblender = read_library(*library) if library else None, load(weights)
    settings = {"count": count, "library": galaxies and galaxies.digest()} | sampling
    with run.unfinished(deblender=deblender, **settings) as kept:
        table = ladder_table(deblender, count=count, library=galaxies, kept=kept, seed=run.seed, **sampling)
        run.write(table, figure=plot_ladder(table))


if __name__ == "__main__":
    main()
