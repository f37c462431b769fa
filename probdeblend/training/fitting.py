"""A calibrator fitted to a trial, and what it does to galaxies that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import ArrayLike, NDArray

from .._files import output_folder
from ..deblending.deblender import Deblender
from ..deblending.weights import save
from ..metrics.reliability import Reliability
from ..plots.calibration import plot_coverage
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..posterior.groups import LEAST_GALAXIES
from ..posterior.maps import Method
from ..scene import Blend, Instrument
from ..surveys.blends import pair_blends
from ..surveys.library import Library, identity_number
from .scorecard import scorecard
from .trial import Trial

__all__ = ["FOLDS", "Fit", "fit_calibrator", "folds_of", "pairs_in_folds", "report", "write_fit"]

FILES = ("calibrator.json", "weights.safetensors", "report.txt", "tested.ecsv", "calibration.png")
FOLDS = 5
SHOWN = ("coverage_50", "coverage_68", "coverage_90", "coverage_95", "pull_sd", "interval_score", "width")


@dataclass(frozen=True, eq=False)
class Fit:
    """A calibrator and its test.

    Parameters
    ----------
    calibrator
        Fitted on all galaxies.
    tested
        Rows of `~probdeblend.training.scorecard.scorecard` "before" and "after" the repair, which is the column ``state``.
        Each galaxy is repaired by a calibrator that was fitted on others.
    """

    calibrator: Calibrator
    tested: Table


def folds_of(galaxies: ArrayLike, *, folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """Divide galaxies into parts of nearly the same number.

    Parameters
    ----------
    galaxies
        Which galaxy each is ``(blend, galaxy)``.
    folds
        Number of parts.
    seed
        Same seed, same parts.

    Returns
    -------
    NDArray
        Number of the part of each ``(blend, galaxy)``.

    Raises
    ------
    ValueError
        If there are fewer galaxies than parts.
    """
    names, owner = np.unique(np.asarray(galaxies), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many galaxies, got {len(names)}")
    part = np.random.default_rng(seed).permutation(len(names)) % folds
    return part[owner].reshape(np.shape(galaxies))


def pairs_in_folds(
    library: Library, count: int, *, instrument: Instrument, seed: int = 0
) -> tuple[Iterator[Blend], Callable[[NDArray[np.int64]], NDArray[np.int64]]]:
    """Blend lone galaxies with others of their fold, so that every blend can be tested.

    Parameters
    ----------
    library
        Lone galaxies.
    count
        Number of blends, rounded up to a multiple of the folds.
    instrument
        Pixel scale, zero point and noise correlation of the blends.
    seed
        Same seed, same folds and blends.

    Returns
    -------
    blends, folds
        Batches, and a function from the identities of galaxies in them to the numbers of their folds.

    Raises
    ------
    ValueError
        If there are not two galaxies for each fold.
    """
    names = np.unique(library.identity)
    if len(names) < 2 * FOLDS:
        raise ValueError(f"library must hold at least {2 * FOLDS} galaxies for {FOLDS} folds, got {len(names)}")
    fold = folds_of(names[:, None], seed=seed)[:, 0]
    numbers = np.array([identity_number(name) for name in names])
    order = np.argsort(numbers)

    def blends() -> Iterator[Blend]:
        for part in range(FOLDS):
            some = library.select(np.isin(library.identity, names[fold == part]))
            yield from pair_blends(some, -(-count // FOLDS), instrument=instrument, seed=seed + part)

    def folds(identity: NDArray[np.int64]) -> NDArray[np.int64]:
        return fold[order][np.searchsorted(numbers[order], identity)]

    return blends(), folds


def fit_calibrator(
    posterior: Posterior,
    trial: Trial,
    *,
    truth: ArrayLike | None = None,
    masks: Reliability | None = None,
    least: int = LEAST_GALAXIES,
    repair: Method = "conformal",
    fitted_on: str = "",
    folds: ArrayLike | None = None,
) -> Fit:
    """Fit a calibrator, and test it in five folds: each galaxy once, by a calibrator fitted on blends without it.

    Parameters
    ----------
    posterior
        Of a method in the trial, such as ``trial.network``.
    trial
        The trial.
    truth
        True fluxes of the posterior's kind ``(blend, galaxy, band)``; total ones if None.
    masks
        Sums to fit the repair of masks to.
    least
        Effective number of galaxies that a group holds at least.
    repair
        How each flux is repaired, as for `~probdeblend.posterior.calibrator.Calibrator`.
    fitted_on
        What the blends are, in words.
    folds
        Number of the fold of each galaxy ``(blend, galaxy)``; `folds_of` draws them if None. Blends of galaxies of
        two folds are not tested.

    Returns
    -------
    Fit
        Calibrator and test.

    Raises
    ------
    ValueError
        If there are too few galaxies or pixels.
    """
    truth = trial.truth["flux"] if truth is None else np.asarray(truth)
    settings = {"repair": repair, "fitted_on": fitted_on}
    calibrator = Calibrator.fit(posterior, truth, galaxies=trial.galaxies, least=least, **settings)
    if masks is not None:
        calibrator = calibrator.with_masks(masks)
    owner = np.arange(truth[..., 0].size).reshape(truth.shape[:2]) if trial.galaxies is None else trial.galaxies
    # Distinct galaxies meet only in their blend, which stays whole.
    if folds is None:
        folds = folds_of(owner if trial.galaxies is not None else np.repeat(owner[:, :1], 2, axis=1))
    fold = np.asarray(folds)
    parts = []
    for number in range(FOLDS):
        train, test = (fold != number).all(1), (fold == number).all(1)
        if not test.any():
            continue
        fitted = Calibrator.fit(
            posterior.select(train), truth[train], galaxies=owner[train], least=least * 3 // 4, repair=repair
        )
        parts.append((np.flatnonzero(test), fitted(posterior.select(test))))
    rows = np.concatenate([number for number, _ in parts])
    after = _joined([repaired for _, repaired in parts])
    settings = {"floor": trial.truth["sky_rms"][rows]}
    settings["galaxies"] = None if trial.galaxies is None else trial.galaxies[rows]
    tables = []
    for state, answer in (("before", posterior.select(rows)), ("after", after)):
        table = scorecard(answer, truth[rows], **settings)
        table.add_column([state] * len(table), name="state", index=0)
        tables.append(table)
    return Fit(calibrator, vstack(tables))


def _joined(parts: list[Posterior]) -> Posterior:
    return Posterior.concatenate([Posterior(part.dataset.assign_attrs(calibrated="")) for part in parts])


def report(fit: Fit) -> str:
    """Say what a calibrator was fitted on, what it guarantees, and what it did in the test.

    Parameters
    ----------
    fit
        What `fit_calibrator` returns.

    Returns
    -------
    str
        Some lines.
    """
    table = fit.tested[["state", "quantity", *SHOWN]]
    for name in SHOWN:
        table[name].info.format = ".3f"
    lines = [fit.calibrator.report(), "", "each galaxy repaired by a calibrator that was fitted on others:"]
    flux = fit.tested[(fit.tested["quantity"] == "each flux") & (fit.tested["state"] == "after")][0]
    band = f"{flux['coverage_68_low']:.3f} to {flux['coverage_68_high']:.3f}"
    lines += table.pformat(max_width=-1, max_lines=-1)
    return "\n".join([*lines, f"95 % band of coverage_68 of each flux: {band} ({flux['galaxies']} galaxies)"])


def write_fit(path: Path, fit: Fit, deblender: Deblender, *, overwrite: bool = False) -> list[str]:
    """Write a calibrator, the weights with it inside, and its test.

    Parameters
    ----------
    path
        The folder.
    fit
        What `fit_calibrator` returns.
    deblender
        Whose answers the calibrator was fitted to; it uses the calibrator from now on.
    overwrite
        Whether an earlier output may be replaced.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the folder exists and is not to be, or must not be, replaced.
    """
    with output_folder(path, overwrite=overwrite, files=FILES) as folder:
        deblender.use(fit.calibrator)
        fit.calibrator.save(folder / FILES[0])
        save(deblender, folder / FILES[1])
        (folder / FILES[2]).write_text(report(fit) + "\n", encoding="utf-8")
        fit.tested.write(folder / FILES[3], format="ascii.ecsv")
        plot_coverage(fit.tested).savefig(folder / FILES[4], dpi=100)
    return list(FILES)
