"""Fit a calibrator to scenes of known truth, and test it on scenes that it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from ..deblending.deblender import Deblends
from ..metrics.arrays import group_total
from ..metrics.coverage import coverage_row, diagnose
from ..metrics.detections import match_sources
from ..metrics.masks import Reliability
from ..metrics.ranks import group_pit
from ..posterior.calibrator import LEAST, Calibrator, mask_pixels
from ..posterior.draws import Posterior
from ..posterior.maps import fit_logistic, logistic
from ..scene import SOURCE_FIELDS, Scene, seed_of
from .evaluation import FLOOR, LEAST_SNR, REACH, TRUTHS, signal_to_noise

__all__ = ["CalibratorFit", "fit_calibrator"]

HELD_OUT = 5  # one scene in so many is held out for the test


@dataclass(frozen=True, eq=False)
class CalibratorFit:
    """A calibrator fitted to all scenes, and the test of one that was fitted to four fifths of them on the others.

    Parameters
    ----------
    calibrator
        The calibrator.
    tested
        Rows with the ``state`` "before" and "after", for each ``quantity``, such as "flux", "flux of groups" and "flux,
        jointly": coverage with bands, and the other columns of `~probdeblend.metrics.diagnose`, in ln flux.
    probabilities
        The expected calibration error ``ece`` of the quantities "mask" (where the image exceeds the sky noise) and
        "existence", with the same states.
    """

    calibrator: Calibrator
    tested: Table
    probabilities: Table


class _Answered(NamedTuple):
    """Bright sources of scenes with the posterior at their positions, and the deblender's own detections."""

    scene: Scene
    posterior: Posterior
    owner: NDArray[np.int64]
    existence: NDArray[np.float64]
    real: NDArray[np.bool_]


def fit_calibrator(
    scenes: Iterable[Scene], deblender: Deblends, *, least: int = LEAST, fitted_on: str = "", seed: int = 0
) -> CalibratorFit:
    """Fit a calibrator to a deblender's answers for scenes of known truth.

    Fluxes and masks are those at the true positions of sources that are bright enough to be detected: the light of a
    neighbor that a list lacks is not in the errors. Existence probabilities are those of the deblender's detections.

    Parameters
    ----------
    scenes
        Batches of scenes of one shape with their truth, which the network was not trained on.
    deblender
        The deblender, without a calibrator of its own.
    least
        Minimum number of sources with one map.
    fitted_on
        Description of the scenes.
    seed
        Seed of the draws.

    Returns
    -------
    CalibratorFit
        The calibrator and its test.

    Raises
    ------
    ValueError
        If there are no scenes, too few sources, or the deblender calibrates already.
    """
    parts = [_answered(scene, deblender, seed_of(seed, number)) for number, scene in enumerate(scenes)]
    if not parts:
        raise ValueError("scenes must hold at least one batch, got none")
    start = np.cumsum([0, *(len(part.scene) for part in parts)])
    owner = np.concatenate([part.owner + n for part, n in zip(parts, start, strict=False)])
    existence, real = (np.concatenate([getattr(part, name) for part in parts]) for name in ("existence", "real"))
    posterior, scene = Posterior.concatenate([part.posterior for part in parts]), Scene.join(p.scene for p in parts)

    def fitted(chosen: NDArray[np.bool_], count: int) -> Calibrator:
        """Fit to the sources of some of the scenes."""
        rows = np.flatnonzero(chosen[posterior.dataset["scene"].values])
        found = Calibrator.fit(posterior.select(rows), scene, rows, least=count, fitted_on=fitted_on)
        known = chosen[owner] & np.isfinite(existence)
        return replace(found, existence=fit_logistic(existence[known], real[known]))

    test = np.arange(len(scene)) % HELD_OUT == HELD_OUT - 1
    partial = fitted(~test, least * (HELD_OUT - 1) // HELD_OUT)
    rows, held = np.flatnonzero(test[posterior.dataset["scene"].values]), test[owner] & np.isfinite(existence)
    before = posterior.select(rows)
    mapped = existence if partial.existence is None else logistic(existence, partial.existence)
    tested, errors = [], []
    for state, answer, given in (("before", before, existence), ("after", partial(before), mapped)):
        tested += [{"state": state} | row for row in _coverage(answer, scene, rows)]
        pixels = (np.zeros(0),) * 2 if answer.cutouts is None else mask_pixels(answer, scene, rows)
        for name, values in (("mask", pixels), ("existence", (given[held], real[held]))):
            if len(values[0]):
                error = Reliability.measure(*values).calibration_error
                errors.append({"state": state, "quantity": name, "ece": error})
    everything = fitted(np.ones(len(scene), dtype=bool), least)
    return CalibratorFit(everything, _formatted(tested), _formatted(errors))


def _answered(scene: Scene, deblender: Deblends, seed: int) -> _Answered:
    """Ask for the bright sources at their true positions, and for detections."""
    bright = signal_to_noise(scene) >= LEAST_SNR
    values = {name: getattr(scene, name) for name in SOURCE_FIELDS}
    known = Scene(**vars(scene) | {name: None if v is None else v[bright] for name, v in values.items()})
    given = deblender.scenes(scene, positions=(known.scene, known.x, known.y), seed=seed)
    given = Posterior(given.dataset.assign_attrs(scenes=len(scene)), given.cutouts)
    data = deblender.scenes(scene, seed=seed).dataset
    places = tuple(data[name].values for name in ("scene", "x", "y"))
    matched = match_sources(places, tuple(v.numpy() for v in (scene.scene, scene.x, scene.y)), radius=REACH)
    numbers = np.arange(data.sizes["source"])
    counts = ~np.isin(numbers, matched[~bright])  # whether a faint source should be detected is left open
    existence = data["existence"].values if "existence" in data else np.full(len(numbers), np.nan)
    return _Answered(known, given, places[0][counts], existence[counts], np.isin(numbers, matched[bright])[counts])


def _coverage(answer: Posterior, scene: Scene, rows: NDArray[np.int64]) -> Iterator[dict[str, object]]:
    """Measure each flux, totals of groups of two and more, and groups jointly; `rows` are the true sources."""
    group = np.unique(answer.dataset["group"].values, return_inverse=True)[1]
    several = np.bincount(group)[group] > 1
    for kind, name in TRUTHS.items():
        true = getattr(scene, name).double().numpy()[rows]
        if kind in answer.dataset and np.isfinite(true).any():  # total fluxes of real galaxies are unknown
            draws = answer.dataset[kind].values
            draws = np.maximum(draws.reshape(-1, *draws.shape[2:]).astype(np.float64), FLOOR * true)
            cluster = np.broadcast_to(group[:, None], true.shape)
            yield {"quantity": kind} | _diagnosed(draws, true, cluster)
            if several.any():
                total, true_total = (group_total(values[..., several, :], group[several]) for values in (draws, true))
                yield {"quantity": f"{kind} of groups"} | _diagnosed(total, true_total, None)
            joint = group_pit(np.log(draws), np.log(true), group)
            joint = joint[np.isfinite(joint)]
            row = {"quantity": f"{kind}, jointly", "count": len(joint), "clusters": len(joint)}
            yield row | (coverage_row(joint, None, central=False) if len(joint) else {})


def _diagnosed(draws: NDArray, true: NDArray, cluster: NDArray | None) -> dict[str, float]:
    known = np.isfinite(true) & np.isfinite(draws).all(0)
    return diagnose(np.log(draws[:, known]), np.log(true[known]), cluster=None if cluster is None else cluster[known])


def _formatted(rows: list[dict[str, object]]) -> Table:
    table = Table(rows)
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".3f"
    return table
