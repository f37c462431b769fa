"""Fit a calibrator to blends of known truth, among them blends made of a survey's own images, and test it.

Blends are made from a survey in one of two ways: its isolated galaxies are cut out and blended, keeping the sky of the
central galaxy; or simulated galaxies, convolved with the survey's PSF and with their photon noise, are added to patches
of its sky, from which sources were removed. Magnitudes are distributed as those of the survey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from .._files import output_folder
from ..deblending.deblender import Deblender, Deblends
from ..deblending.weights import save
from ..metrics.masks import Reliability
from ..photometry.images import open_mosaic
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..posterior.groups import LEAST_GALAXIES
from ..posterior.maps import Method
from ..scene import Blend, Instrument
from ..simulation.prior import Prior
from ..surveys.blends import pair_blends
from ..surveys.library import Library, identity_number
from ..surveys.selection import Selection, check_mosaic, find_sources, in_units_of, isolate_galaxies, read_columns
from ..surveys.sky_patches import magnitude_weights, simulated_in_sky, sky_patches
from .evaluation import Comparison, compare, scorecard
from .features import training_population
from .streams import stored_blends

__all__ = [
    "FOLDS",
    "CalibratorFit",
    "Survey",
    "calibrate_blends",
    "calibrate_survey",
    "compare_as_trained",
    "fit_calibrator",
    "pairs_in_folds",
    "write_fit",
]

FOLDS = 5
MASK_BLENDS = 10_000  # hold millions of pixels with light


@dataclass(frozen=True, eq=False)
class CalibratorFit:
    """A calibrator fitted to all galaxies, and its test.

    `tested` holds the rows of a scorecard with ``state`` "before" and "after" the repair, where each galaxy is repaired
    by a calibrator that was fitted to others.
    """

    calibrator: Calibrator
    tested: Table


def folds_of(galaxies: ArrayLike, *, seed: int = 0) -> NDArray[np.int64]:
    """Divide galaxies ``(blend, galaxy)`` into five folds of nearly equal numbers, and return the fold of each."""
    names, owner = np.unique(np.asarray(galaxies), return_inverse=True)
    if len(names) < FOLDS:
        raise ValueError(f"galaxies must be at least {FOLDS} for as many folds, got {len(names)}")
    part = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return part[owner].reshape(np.shape(galaxies))


def pairs_in_folds(
    library: Library, count: int, *, instrument: Instrument, seed: int = 0
) -> tuple[Iterator[Blend], Callable[[NDArray[np.int64]], NDArray[np.int64]]]:
    """Blend isolated galaxies with others of their fold, so that every blend can be tested.

    Returns batches of blends, at least `count` in all, and a function from identities of galaxies to their folds.
    """
    names = np.unique(library.identity)
    if len(names) < 2 * FOLDS:
        raise ValueError(f"library must hold at least {2 * FOLDS} galaxies for {FOLDS} folds, got {len(names)}")
    fold = folds_of(names[:, None], seed=seed)[:, 0]
    parts = [library.select(np.isin(library.identity, names[fold == part])) for part in range(FOLDS)]
    number = dict(zip(map(identity_number, names), fold, strict=True))
    settings = {"count": -(-count // FOLDS), "instrument": instrument}
    blends = (pair_blends(some, **settings, seed=seed + part) for part, some in enumerate(parts))
    return chain.from_iterable(blends), np.vectorize(number.__getitem__)


def fit_calibrator(
    posterior: Posterior,
    comparison: Comparison,
    *,
    truth: ArrayLike | None = None,
    masks: Reliability | None = None,
    least: int = LEAST_GALAXIES,
    repair: Method = "conformal",
    fitted_on: str = "",
    folds: ArrayLike | None = None,
) -> CalibratorFit:
    """Fit a calibrator, and test it in five folds: each galaxy once, by a calibrator fitted to blends without it.

    Parameters
    ----------
    posterior
        Of a method in the comparison, such as ``comparison.network``.
    comparison
        What `~probdeblend.training.compare` returns.
    truth
        True fluxes of the posterior's kind ``(blend, galaxy, band)``; total ones if None.
    masks
        Sums over pixels to fit the repair of masks to, such as ``comparison.sums``.
    least
        Smallest effective number of galaxies in a group.
    repair
        How each flux is repaired, as for `~probdeblend.posterior.calibrator.Calibrator`.
    fitted_on
        What the blends are, in words.
    folds
        Fold of each galaxy ``(blend, galaxy)``; drawn at random if None. Blends of galaxies of two folds are not
        tested.

    Returns
    -------
    CalibratorFit
        The ``calibrator``, fitted to all galaxies; and ``tested``, rows of a `~probdeblend.training.scorecard` with the
        column ``state``, "before" and "after" the repair.

    Raises
    ------
    ValueError
        If there are too few galaxies or pixels.
    """
    truth = comparison.truth["flux"] if truth is None else np.asarray(truth)
    owner = comparison.galaxies
    settings = {"galaxies": owner, "least": least, "repair": repair, "fitted_on": fitted_on}
    calibrator = Calibrator.fit(posterior, truth, **settings)
    if masks is not None:
        calibrator = calibrator.with_masks(masks)
    repeated = owner is not None
    owner = owner if repeated else np.arange(truth[..., 0].size).reshape(truth.shape[:2])
    # If all galaxies are distinct, folds divide blends.
    fold = np.asarray(folds_of(owner if repeated else np.repeat(owner[:, :1], 2, axis=1)) if folds is None else folds)
    rows, repaired = [], []
    for number in range(FOLDS):
        train, test = (fold != number).all(1), (fold == number).all(1)
        if test.any():
            settings = {"galaxies": owner[train], "least": least * 3 // 4, "repair": repair}
            fitted = Calibrator.fit(posterior.select(train), truth[train], **settings)
            rows.extend(np.flatnonzero(test))
            repaired.append(fitted(posterior.select(test)))
    settings = {"floor": comparison.truth["sky_rms"][rows], "galaxies": owner[rows] if repeated else None}
    tables = []
    for state, answer in (("before", posterior.select(rows)), ("after", Posterior.concatenate(repaired))):
        table = scorecard(answer, truth[rows], **settings)
        table.add_column([state] * len(table), name="state", index=0)
        tables.append(table)
    return CalibratorFit(calibrator, vstack(tables))


def write_fit(path: Path, fit: CalibratorFit, deblender: Deblender, *, overwrite: bool = False) -> list[str]:
    """Write a folder with a calibrator, the weights with it inside, and its test; the deblender uses it from now on."""
    from ..plots.calibration import plot_coverage

    files = ["calibrator.json", "weights.safetensors", "tested.ecsv", "calibration.png"]
    with output_folder(path, overwrite=overwrite, files=files) as folder:
        deblender.use(fit.calibrator)
        fit.calibrator.save(folder / files[0])
        save(deblender, folder / files[1])
        fit.tested.write(folder / files[2], format="ascii.ecsv")
        plot_coverage(fit.tested)[0].figure.savefig(folder / files[3], dpi=100)
    return files


def compare_as_trained(
    deblender: Deblender, blends: int, masks: int, *, seed: int, fresh: int = 0, **sampling: int
) -> Comparison:
    """Compare fluxes on simulated blends of the training population, and masks on those that the encoder learned from.

    Masks come from the encoder: close pairs that only the flux readout has seen would spoil their calibration. The
    blends have the seeds ``seed + fresh`` and the next one.
    """

    def found(close_fraction: float, count: int, seed_of_blends: int) -> Comparison:
        made = training_population(deblender, close_fraction=close_fraction).blends(count, seed=seed_of_blends)
        return compare(made, deblender, calibrator=deblender.calibrator, sep=(), seed=seed, **sampling)

    description = deblender.description
    fluxes = found(description.close_fraction, blends, seed + fresh)
    if description.encoder_close_fraction == description.close_fraction:
        return fluxes
    others = found(description.encoder_close_fraction, masks, seed + fresh + 1)
    return replace(fluxes, masks=others.masks, sums=others.sums)


def calibrate_blends(
    deblender: Deblender, path: Path | None, *, count: int, least: int, repair: Method, **sampling: int
) -> CalibratorFit:
    """Fit a calibrator of a network to a stored set or, without one, to `count` blends of its training population."""
    if path is None:
        words = "simulated blends of the training population"
        found = compare_as_trained(deblender, count, min(count, MASK_BLENDS), **sampling)
    else:
        words, found = f"blends of {path.name}", compare(stored_blends(path), deblender, sep=(), **sampling)
    words = f"{len(found.network)} {words}"
    return fit_calibrator(found.network, found, masks=found.sums, least=least, repair=repair, fitted_on=words)


@dataclass(frozen=True)
class Survey:
    """A survey's images, and how to make blends of them.

    `images` are FITS files with pixels of the instrument's size; the `instrument` has PSF, noise correlation, exposure,
    and a zero point for images whose header has none. `catalog` is a table of the galaxies of a single image, with its
    column names, by the names used here, in `columns`; SEP's if None. `galaxies` to blend are the survey's "own",
    "simulated" ones from the default prior, or "auto": its own where enough are isolated. `magnitude` is the faintest
    of its own.
    """

    images: tuple[Path, ...]
    instrument: Instrument
    hdu: str | None = None
    catalog: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    galaxies: Literal["auto", "own", "simulated"] = "auto"
    magnitude: float = 24.5
    count: int = 4000


def calibrate_survey(
    survey: Survey, deblender: Deblends, *, least: int, repair: Method = "conformal", seed: int = 0, **sampling: int
) -> CalibratorFit:
    """Fit a calibrator of a network to blends made of a survey's images."""
    library = _own_galaxies(survey, seed=seed) if survey.galaxies != "simulated" else None
    distinct = 0 if library is None else len(set(library.identity))
    own = survey.galaxies == "own" or (survey.galaxies == "auto" and distinct >= least)
    if own and distinct < (needed := max(least, 2 * FOLDS)):
        remedy = "lower least, add images, or simulate the galaxies"
        raise ValueError(f"images must have at least {needed} isolated galaxies, got {distinct}: {remedy}")
    target = survey_magnitudes(survey)
    if own:
        blends, folds = pairs_in_folds(library, survey.count, instrument=survey.instrument, seed=seed)
        words = f"{distinct} isolated galaxies"
    else:
        with ExitStack() as stack:
            mosaics = [stack.enter_context(open_mosaic(path, hdu=survey.hdu)) for path in survey.images]
            for mosaic in mosaics:
                check_mosaic(mosaic, None, survey.instrument)
            sky = sky_patches(mosaics, survey.instrument, seed=seed)
        blends = simulated_in_sky(sky, survey.count, prior=Prior.default(), magnitudes=target, seed=seed)
        words = f"simulated galaxies in {len(sky.pixels)} patches of sky"
    bar = tqdm(blends, desc="blends", unit="batch")
    found = compare(bar, deblender, sep=(), seed=seed, **sampling)
    if own:  # drawn again, so that their magnitudes are distributed as the survey's
        magnitude = survey.instrument.zero_point - 2.5 * np.log10(found.truth["flux"][..., 0])
        weight = magnitude_weights(magnitude, target)
        rows = np.random.default_rng(seed).choice(len(weight), size=len(weight), p=weight / weight.sum())
        truth = {name: values[rows] for name, values in found.truth.items()}
        found = replace(found, network=found.network.select(rows), truth=truth)
    images = ", ".join(path.name for path in survey.images)
    words = f"{len(found.network)} blends of {words}, with magnitudes as in {images}"
    settings = {"repair": repair, "fitted_on": words, "folds": folds(found.truth["identity"]) if own else None}
    return fit_calibrator(found.network, found, masks=found.sums, least=least, **settings)


def survey_magnitudes(survey: Survey) -> NDArray[np.float64]:
    """Return the magnitudes that the blends are to have: those of the catalog, or of what SEP finds in the images."""
    if survey.catalog is not None:
        table = read_columns(survey.catalog, dict(survey.columns), required=("magnitude",))
        return np.ma.filled(np.ma.asarray(table["magnitude"], dtype=float), np.nan)
    parts = []
    for path in survey.images:
        with open_mosaic(path, hdu=survey.hdu) as mosaic:
            parts.extend(find_sources(mosaic, in_units_of(mosaic, survey.instrument))["magnitude"])
    return np.array(parts)


def _own_galaxies(survey: Survey, *, seed: int) -> Library | None:
    try:
        taken = {"catalog": survey.catalog, "columns": dict(survey.columns), "hdu": survey.hdu, "seed": seed}
        taken |= {"instrument": survey.instrument, "selection": Selection(survey.magnitude)}
        library = isolate_galaxies(survey.images, **taken).library
    except ValueError as error:
        if survey.galaxies == "own" or "no galaxy is left" not in str(error):
            raise
        return None
    return library.select(library.keep)
