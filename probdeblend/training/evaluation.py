"""Accuracy and coverage on any set of blends with truth, for the network and for SEP side by side.

And how errors grow with the network's doubt: what is odd is answered worse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike

from ..deblending.counts import count_stamps, flag_counts
from ..deblending.deblender import Deblender
from ..metrics.arrays import ONE_SIGMA
from ..metrics.bins import in_bins
from ..metrics.fluxes import accuracy_table, magnitude_error, nmad
from ..networks.count import CountNetwork
from ..posterior.draws import Posterior
from .trial import run_trial, set_batches

__all__ = ["doubt_table", "evaluate", "report"]

DOUBTS = (0.0, 0.125, 0.25, 0.5, 1.0, np.inf)
FAR = 3.0  # half-widths of the 68 % interval

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
    counter: CountNetwork | None = None,
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
    counter
        Counts galaxies, for the doubt alone; None leaves that out.
    draws, passes, seed
        Given to the deblender, and draws and seed to SEP.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        The columns of `~probdeblend.metrics.fluxes.accuracy_table`, a row a method; "network" is what the deblender
        answers, "uncalibrated" what it answers without its calibrator, where it has one. In the metadata, as
        ``doubt``, the columns of `doubt_table` for the network.

    Raises
    ------
    ValueError
        If the set is empty or has no truth.
    """
    sampling = {"draws": draws, "passes": passes, "seed": seed}

    def asked(image: ArrayLike, *, sky_rms: ArrayLike, **options: object) -> Posterior:
        answer = deblender(image, sky_rms=sky_rms, **options)
        return answer if counter is None else flag_counts(answer, count_stamps(image, counter, sky_rms=sky_rms))

    trial = run_trial(set_batches(path, progress=progress), asked, calibrator=deblender.calibrator, **sampling)
    if "auto_flux" not in trial.truth:
        raise ValueError(f"{path}: the set must have truth, got one without auto_flux")
    posteriors = {"network": trial.calibrated}
    if deblender.calibrator is not None:
        posteriors["uncalibrated"] = trial.network
    posteriors["sep"] = trial.sep["auto"]
    truths = {name: trial.truth["auto_flux" if name == "sep" else "flux"] for name in posteriors}
    table = accuracy_table(posteriors, truths)
    table["iou"] = [trial.iou["sep" if name == "sep" else "network"].mean() for name in table["method"]]
    by_doubt = doubt_table(trial.calibrated, trial.truth["flux"])
    table.meta["doubt"] = {name: by_doubt[name].tolist() for name in by_doubt.colnames}
    return table


def doubt_table(posterior: Posterior, truth: ArrayLike) -> Table:
    """Measure errors in bins of doubt.

    Parameters
    ----------
    posterior
        Of pairs.
    truth
        True fluxes ``(blend, galaxy, band)``; the first band is judged.

    Returns
    -------
    Table
        A row a bin with blends in it, none where nobody looked for what is odd: ``low`` and ``high`` doubt, flags
        beginning at 1; the number of ``blends``; ``nmad_mag``, the scatter of the magnitudes' errors; ``coverage_68``,
        how many of the true fluxes are within the 68 % interval; and ``far``, the fraction of blends with a flux more
        than three half-widths of it off.
    """
    draws, truth = posterior.draws("blend", "galaxy", "band")[:, :, 0], np.asarray(truth, dtype=np.float64)[..., 0]
    low, median, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    inside, far = (low <= truth) & (truth <= high), np.abs(truth - median) > FAR * (high - low) / 2
    error, rows = magnitude_error(median, truth), []
    for least, most, there in in_bins(posterior.doubt.values, DOUBTS):
        if there.any():
            row = {"low": least, "high": most, "blends": int(there.sum()), "nmad_mag": nmad(error[there])}
            rows.append(row | {"coverage_68": inside[there].mean(), "far": far[there].any(1).mean()})
    return Table(rows)


def report(table: Table) -> str:
    """Return the table as text, a row a method, with the columns that matter most; and errors in bins of doubt.

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
    lines = short.pformat(max_width=-1, max_lines=-1)
    if not table.meta["doubt"]:
        return "\n".join(lines)
    by_doubt = Table(table.meta["doubt"])
    for name in by_doubt.colnames[3:]:
        by_doubt[name].info.format = ".3f"
    return "\n".join([*lines, "", "The network by its doubt:", *by_doubt.pformat(max_width=-1, max_lines=-1)])
