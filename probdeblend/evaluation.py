"""Accuracy and coverage on any set of blends with truth, for the network and for SEP side by side."""

from __future__ import annotations

from pathlib import Path

from astropy.table import Table

from .deblender import Deblender
from .metrics import accuracy_table
from .trial import run_trial, set_batches

__all__ = ["evaluate", "report"]

COLUMNS = [
    "method",
    "detected",
    "mape",
    "nmad_mag",
    "bias_mag",
    "outliers",
    "coverage_68",
    "coverage_90",
    "width",
    "crps_ln",
    "residual_correlation",
    "iou",
]


def evaluate(
    path: Path,
    deblender: Deblender,
    *,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """Measure a network, before and after its calibrator, and SEP on a stored set of blends with truth.

    The network is scored against the total fluxes. SEP is given the true positions to match its detections with, and
    is scored against the AUTO fluxes of the isolated galaxies, which are what it measures.

    Parameters
    ----------
    path
        A set that ``probdeblend simulate`` or ``probdeblend pair`` wrote.
    deblender
        The network.
    draws, passes, seed
        Given to the deblender, and draws and seed to SEP.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        The columns of `~probdeblend.metrics.accuracy_table`, a row a method; "network" is what the deblender
        answers, "uncalibrated" what it answers without its calibrator, where it has one.

    Raises
    ------
    ValueError
        If the set is empty or has no truth.
    """
    sampling = {"draws": draws, "passes": passes, "seed": seed}
    trial = run_trial(set_batches(path, progress=progress), deblender, calibrator=deblender.calibrator, **sampling)
    if "auto_flux" not in trial.truth:
        raise ValueError(f"{path}: the set must have truth, got one without auto_flux")
    posteriors = {"network": trial.calibrated}
    if deblender.calibrator is not None:
        posteriors["uncalibrated"] = trial.network
    posteriors["sep"] = trial.sep["auto"]
    truths = {name: trial.truth["auto_flux" if name == "sep" else "flux"] for name in posteriors}
    table = accuracy_table(posteriors, truths)
    table["iou"] = [trial.iou["sep" if name == "sep" else "network"].mean() for name in table["method"]]
    return table


def report(table: Table) -> str:
    """Return the table as text, a row a method, with the columns that matter most.

    Parameters
    ----------
    table
        What `evaluate` returns.

    Returns
    -------
    str
        The text.
    """
    short = table[COLUMNS]
    for name in COLUMNS[1:]:
        short[name].info.format = ".3f"
    short["mape"].info.format = ".2f"
    return "\n".join(short.pformat(max_width=-1, max_lines=-1))
