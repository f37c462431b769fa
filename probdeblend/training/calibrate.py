"""Fit a calibrator to fields of known truth, test it on others, and say how wrong error bars were without it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .._files import whole_bytes
from ..deblending.deblender import Deblends, Positions
from ..metrics.arrays import ONE_SIGMA
from ..metrics.coverage import bootstrap
from ..metrics.masks import reliability
from ..posterior.calibrator import LEAST, Calibrator, Known, fit_known, known_sources
from ..posterior.maps import logistic
from ..posterior.moments import FLUX_OF
from ..scene import Scene, seed_of
from . import evaluation
from .fields import Field

__all__ = ["CalibratorFit", "answer", "answers_of", "fit_answers", "fit_calibrator"]

HELD_OUT = 5  # one field in so many is held out for the test
JITTER = 0.7  # pixels, largest standard deviation of listed positions
FAINT, EXTENDED = 30.0, 3.0  # signal-to-noise ratio, and half-light radius in pixels, between classes of the report
LEAST_IN_CLASS = 100  # values; a factor is then uncertain by a tenth
WITHIN = 0.68
KINDS = ("draws", "truth")  # of what is known, those with values for each kind of flux
SIGNIFICANT = 2.0  # standard errors of a factor
RIGHT = "right, as far as this test can tell"
STATES = {"before": "Your error bars of {} fluxes were", "after": "With the calibrator, error bars of {} fluxes are"}


@dataclass(frozen=True, eq=False)
class CalibratorFit:
    """A calibrator fitted to all fields, and the test of one that was fitted to four fifths of them on the others.

    Parameters
    ----------
    calibrator
        The calibrator.
    tested
        Rows with the ``state`` "before" and "after", for each number of ``bands``, with the columns of the accuracy of
        an `Evaluation`: kinds of flux by the number of sources in a group.
    probabilities
        The expected calibration error ``ece`` of the quantity "existence", with the same states.
    report
        For each state, kind of ``flux`` and class of ``sources`` the ``factor`` by which 68 % intervals in ln flux must
        be stretched so that they contain 68 % of the truths, with its standard error ``factor_err`` by bootstrap over
        fields, and the ``count`` of values. Before calibration these are all fields, afterwards those held out.
    """

    calibrator: Calibrator
    tested: Table
    probabilities: Table
    report: Table

    def findings(self) -> list[str]:
        """Say in plain words which error bars were too small or too wide, and which are so with the calibrator.

        Returns
        -------
        list of str
            A sentence for each state and kind of flux. It names the classes whose factor differs from 1 by more than
            twice its standard error, as one in twenty does by chance.
        """
        found: dict[str, list[str]] = {}
        for row in self.report:
            wrong = found.setdefault(STATES[row["state"]].format("total" if row["flux"] == "flux" else "Kron"), [])
            how, factor = ("small", row["factor"]) if row["factor"] > 1 else ("wide", 1 / row["factor"])
            error = row["factor_err"] * factor / row["factor"]
            if factor - 1 > SIGNIFICANT * error:
                wrong.append(f"{factor:.2f} ± {error:.2f} times too {how} for {row['sources']}")
        return [f"{start} {', '.join(wrong) or RIGHT}." for start, wrong in found.items()]


def fit_calibrator(
    scenes: Iterable[Scene], deblender: Deblends, *, least: int = LEAST, fitted_on: str = "", seed: int = 0
) -> CalibratorFit:
    """Fit a calibrator to a deblender's answers for scenes of known truth.

    In every other batch, the sources that are bright enough to be detected are listed, at positions that err as those
    of catalogs do, by 0 to 0.7 pixels. In the others they are detected, and some have the light of a neighbor that is
    not. Existence probabilities are those of detections. Detections of sources that are too faint do not count.

    Parameters
    ----------
    scenes
        Five and more batches of scenes with their truth, which the network was not trained on. Cameras, shapes and
        bands may differ from batch to batch.
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
        If there are fewer than five batches, too few sources, they have no truth, or the deblender calibrates already.
    """
    answers = [answer(number, scene, deblender, seed) for number, scene in enumerate(scenes)]
    return fit_answers(answers, least=least, fitted_on=fitted_on)


def answers_of(
    fields: Callable[[Sequence[int]], Iterator[Field]], count: int, folder: Path, *, seed: int = 0
) -> list[Known]:
    """Answer for fields, those that a folder holds no answer for yet, and return all answers.

    Parameters
    ----------
    fields
        A function of the numbers of fields, which makes them.
    count
        Their number.
    folder
        Holds the answers.
    seed
        Seed of the draws.

    Returns
    -------
    list of Known
        What a calibrator learns from each field.
    """
    if count < HELD_OUT:
        raise ValueError(f"scenes must hold at least {HELD_OUT} batches, got {count}")
    files = [folder / f"field-{number:06d}.npz" for number in range(count)]
    left = [number for number, file in enumerate(files) if not file.exists()]
    for field in tqdm(fields(left), total=count, initial=count - len(left), desc="fields", unit="field", disable=None):
        known = answer(*field, seed)._asdict()
        flat = {f"{name} {kind}": values for name in KINDS for kind, values in known.pop(name).items()}
        with whole_bytes(files[field[0]]) as file:
            np.savez(file, **known, **flat)
    return [_stored(file) for file in files]


def _stored(path: Path) -> Known:
    """Read an answer that `answers_of` wrote."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    draws, truth = ({k: found.pop(f"{name} {k}") for k in FLUX_OF if f"{name} {k}" in found} for name in KINDS)
    return Known(**found | {"method": str(found["method"]), "draws": draws, "truth": truth})


def fit_answers(
    answers: Sequence[Known], *, before: Calibrator | None = None, least: int = LEAST, fitted_on: str = ""
) -> CalibratorFit:
    """Fit a calibrator to answers for fields, and test it; `before` is the calibrator that was used so far."""
    held = range(HELD_OUT - 1, len(answers), HELD_OUT)
    if not held:
        raise ValueError(f"scenes must hold at least {HELD_OUT} batches, got {len(answers)}")
    fitted = [known for number, known in enumerate(answers) if number not in held]
    partial = fit_known(fitted, least=least * (HELD_OUT - 1) // HELD_OUT)
    everything = fit_known(answers, least=least, fitted_on=fitted_on)
    tested, errors, report = [], [], []
    for state, calibrator, judged in (("before", before, range(len(answers))), ("after", partial, held)):
        moved = {number: _moved(answers[number], calibrator) for number in judged}
        tested += _tested(state, [moved[number] for number in held])
        report += _reported(state, moved)
        given, true = np.concatenate([answers[number].existence for number in held], 1)
        if len(given):
            corrected = logistic(given, getattr(calibrator, "existence", None) or (1.0, 0.0))
            errors.append({"state": state, "quantity": "existence", "ece": reliability(corrected, true).meta["ece"]})
    return CalibratorFit(everything, *map(evaluation.formatted, (tested, errors, report)))


def answer(number: int, scene: Scene, deblender: Deblends, seed: int) -> Known:
    """Answer for a field, and return what a calibrator learns from it."""
    evaluation.check_truth(scene)
    bright = evaluation.signal_to_noise(scene) >= evaluation.LEAST_SNR
    unknown = scene.light.isnan().flatten(1).any(1).numpy()  # sources that were there before others were injected
    wanted, listed, seed = bright | unknown, number % 2 == 0 and bool(bright.any()), seed_of(seed, number)
    posterior = deblender.scenes(scene, positions=_catalog(scene, wanted, seed) if listed else None, seed=seed)
    matched = np.flatnonzero(wanted) if listed else evaluation.detected(scene, posterior)
    faint = np.isin(matched, np.flatnonzero(~bright))
    if unknown.any():  # what is detected elsewhere than in injected light was there, or is as false as it was before
        lit = (scene.light[~unknown].sum(0) > scene.sky_rms[0, :, None, None]).any(0).numpy()
        place = (np.rint(posterior.dataset[axis].values).astype(int) for axis in "yx")
        faint |= (matched < 0) & ~lit[*(n.clip(0, side - 1) for n, side in zip(place, lit.shape, strict=True))]
    known = known_sources(posterior, scene, matched)
    for truth in known.truth.values():
        truth[faint] = np.nan
    counts = np.zeros_like(faint) if listed else ~faint
    return known._replace(existence=known.existence[:, counts[: known.existence.shape[1]]])


def _catalog(scene: Scene, wanted: NDArray[np.bool_], seed: int) -> Positions:
    """Return places in the image where a catalog would list some of the sources; they err more in some scenes."""
    rng, last = np.random.default_rng(seed), torch.tensor(scene.image.shape[:-3:-1]) - 1.0
    error = JITTER * rng.random(len(scene))[scene.scene.numpy()] * rng.normal(size=(2, len(wanted)))
    places = (torch.stack([scene.x, scene.y]) + torch.from_numpy(error)).clamp(min=0).minimum(last[:, None].double())
    return scene.scene[wanted], *places[:, wanted]


def _moved(known: Known, calibrator: Calibrator | None) -> Known:
    """Return an answer as a calibrator would give it."""
    if calibrator is None:
        return known
    moved = {k: calibrator.corrected(k, draws, known.features, known.group) for k, draws in known.draws.items()}
    return known._replace(draws=moved)


def _tested(state: str, answers: list[Known]) -> Iterator[dict[str, object]]:
    """Measure the real ones of the sources, by the number of bands."""
    for bands in sorted({known.features.shape[1] for known in answers}):
        own, found, truths = [known for known in answers if known.features.shape[1] == bands], [], []
        for known in own:
            real = np.any([np.isfinite(truth).any(1) for truth in known.truth.values()], axis=0)
            found.append({FLUX_OF[kind]: np.exp(draws[:, real], dtype=float) for kind, draws in known.draws.items()})
            true = {FLUX_OF[kind]: np.exp(truth[None, real]) for kind, truth in known.truth.items()}
            truths.append(true | {"group": known.group[real]})
        for row in evaluation.accuracy_rows(evaluation.joined(found), evaluation.joined(truths)):
            del row["iou"]
            yield {"state": state, "bands": bands} | row


def _reported(state: str, answers: dict[int, Known]) -> Iterator[dict[str, object]]:
    """Measure by which factor the 68 % intervals of classes of sources must be stretched."""
    features = np.concatenate([known.features.reshape(-1, known.features.shape[2]) for known in answers.values()])
    owner = np.repeat([*answers], [known.features[..., 0].size for known in answers.values()])
    for kind in (kind for kind in FLUX_OF if all(kind in known.draws for known in answers.values())):
        ratio = np.concatenate([_misfit(known.draws[kind], known.truth[kind]).ravel() for known in answers.values()])
        for name, chosen in _classes(features):
            rows = np.flatnonzero(chosen & np.isfinite(ratio))
            if len(rows) >= LEAST_IN_CLASS:
                values, row = ratio[rows], {"state": state, "flux": FLUX_OF[kind], "sources": name, "count": len(rows)}
                low, high = bootstrap(lambda picked, own=values: np.quantile(own[picked], WITHIN), owner[rows])
                yield row | {"factor": np.quantile(values, WITHIN), "factor_err": (high - low) / 2}


def _misfit(draws: NDArray, truth: NDArray) -> NDArray[np.float64]:
    """Return errors ``(source, band)`` over the half of the 68 % interval on their side; NaN without a truth."""
    low, middle, high = np.quantile(draws, ONE_SIGMA, axis=0)
    error = np.where(np.isfinite(truth), truth, np.nan) - middle
    return np.abs(error) / np.where(error > 0, high - middle, middle - low)


def _classes(features: NDArray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Return classes of sources by the features that a calibrator knows, and which of them are in each."""
    listed, size, snr, _, _, number = features.T
    yield "all sources", np.ones(len(features), dtype=bool)
    for names, first in {
        ("listed sources", "detected sources"): listed > 0.5,
        ("faint sources", "bright sources"): ~(snr >= FAINT),
        ("sources alone", "blended sources"): number < 2,
        ("compact sources", "extended sources"): ~(size >= EXTENDED),
    }.items():
        yield from zip(names, (first, ~first), strict=True)
