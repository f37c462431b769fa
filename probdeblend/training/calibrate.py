"""Fit a calibrator to scenes of known truth, and test it on scenes that it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..deblending.deblender import Deblender, Deblends, Positions
from ..metrics.masks import reliability
from ..posterior.calibrator import LEAST, Calibrator, Known, fit_known, known_sources
from ..posterior.draws import Posterior
from ..posterior.maps import logistic
from ..scene import Scene, seed_of
from ..simulation.cameras import Cameras
from ..simulation.population import Population
from ..simulation.scenes import Simulator
from . import evaluation

__all__ = ["AsImages", "CalibratorFit", "fit_calibrator", "training_fields"]

HELD_OUT = 5  # one batch in so many is held out for the test
JITTER = 0.7  # pixels, largest standard deviation of listed positions
PAIRS = 0.3  # fraction of the fields
NATIVE = 0.1  # fraction of the fields of crowds that CANDELS F160W sees
SIDE = 384  # pixels of a field
GROUPS = (4, 13)  # least number of groups in a field, and the first that is too large
FAINTEST = 2.0  # signal-to-noise ratio of sources in crowds
SKY = 100.0  # sky noise of a pixel: the level of the sky in images


@dataclass(frozen=True, eq=False)
class CalibratorFit:
    """A calibrator fitted to all scenes, and the test of one that was fitted to four fifths of them on the others.

    Parameters
    ----------
    calibrator
        The calibrator.
    tested
        Rows with the ``state`` "before" and "after", for each number of ``bands``, with the columns of the accuracy of
        an `Evaluation`: kinds of flux by the number of sources in a group.
    probabilities
        The expected calibration error ``ece`` of the quantities "mask" (where the image exceeds the sky noise) and
        "existence", with the same states.
    """

    calibrator: Calibrator
    tested: Table
    probabilities: Table


@dataclass(frozen=True)
class AsImages:
    """Deblends scenes as users' images: one by one, above a sky whose level, noise and correlation are measured.

    Parameters
    ----------
    deblender
        The deblender. It is given the PSF and, where they are known, the exposure as gain and the wavelengths.
    """

    deblender: Deblender

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        """Deblend the images of scenes; in each there are positions, if any are given."""
        answers = []
        for number, image in enumerate(scene.image + SKY * scene.sky_rms[..., None, None]):
            known = {"psf": scene.psf[number].numpy()}
            for name, value in (("gain", scene.exposure), ("wavelength", scene.wavelength)):
                if bool(value[number].isfinite().all()):
                    known[name] = value[number].tolist()
            if positions is not None:
                known["positions"] = torch.stack(positions[1:], 1)[positions[0] == number].numpy()
            answers.append(self.deblender(image.numpy(), **known, seed=seed))
            answers[-1].dataset.attrs["notes"] = ""
        return Posterior.concatenate(answers)


def training_fields(count: int, *, seed: int = 0, progress: bool = True) -> Iterator[Scene]:
    """Simulate fields of sources like those that networks are trained on, but others.

    Each holds 4 to 12 groups and, between them, sky. In three tenths of them the groups are pairs in CANDELS F160W, in
    the others crowds of 0 to 14 sources, some too faint to count, of random cameras with one to three bands and white
    or drizzled noise.

    Parameters
    ----------
    count
        Number of fields.
    seed
        Same seed, same fields.
    progress
        Show a progress bar.

    Yields
    ------
    Scene
        One field of 384 pixels on a side.
    """
    crowds = Population.default()
    crowds = crowds.replace(snr=(FAINTEST, crowds.snr[1]))
    for field in tqdm(range(count), disable=not progress, desc="fields", unit="field"):
        rng = np.random.default_rng((seed, field))
        population, number, native = (Population.pairs(), 2, 1.0) if rng.random() < PAIRS else (crowds, None, NATIVE)
        camera, groups = Cameras(native_fraction=native).sample(rng), int(rng.integers(*GROUPS))
        simulator = Simulator(population, camera, (SIDE, SIDE), number, groups=groups)
        yield from simulator.batches(1, seed=seed_of(seed, field + 1))


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
        Five and more batches of scenes with their truth, such as from `training_fields`, which the network was not
        trained on. Cameras, shapes and bands may differ from batch to batch.
    deblender
        The deblender, without a calibrator of its own; as `AsImages`, for what it is to do with whole images.
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
    fitted: list[Known] = []
    held: list[tuple[Posterior, Known, evaluation.Arrays]] = []
    for batch, scene in enumerate(scenes):
        evaluation.check_truth(scene)
        bright = evaluation.signal_to_noise(scene) >= evaluation.LEAST_SNR
        listed = batch % 2 == 0 and bool(bright.any())
        posterior, matched, faint = _answered(scene, deblender, bright, listed=listed, seed=seed_of(seed, batch))
        known = known_sources(posterior, scene, matched)
        for truth in known.truth.values():
            truth[faint] = np.nan
        counts = np.zeros_like(faint) if listed else ~faint
        known = known._replace(existence=known.existence[:, counts[: known.existence.shape[1]]])
        if batch % HELD_OUT == HELD_OUT - 1:
            held.append((Posterior(posterior.dataset), known, _truth(scene, posterior, np.where(faint, -1, matched))))
        else:
            fitted.append(known)
    if not held:
        raise ValueError(f"scenes must hold at least {HELD_OUT} batches, got {len(fitted)}")
    partial = fit_known(fitted, least=least * (HELD_OUT - 1) // HELD_OUT)
    everything = fit_known(fitted + [known for _, known, _ in held], least=least, fitted_on=fitted_on)
    tested, errors = [], []
    for state in ("before", "after"):
        answers = [(answer if state == "before" else partial(answer), truth) for answer, _, truth in held]
        tested += _tested(state, answers)
        for name in ("mask", "existence"):
            given, true = np.concatenate([getattr(known, name) for _, known, _ in held], 1)
            numbers = getattr(partial, name)
            if len(given):
                given = logistic(given, numbers) if state == "after" and numbers is not None else given
                error = reliability(given, true).meta["ece"]
                errors.append({"state": state, "quantity": name, "ece": error})
    return CalibratorFit(everything, evaluation.formatted(tested), evaluation.formatted(errors))


def _answered(
    scene: Scene, deblender: Deblends, bright: NDArray[np.bool_], *, listed: bool, seed: int
) -> tuple[Posterior, NDArray[np.int64], NDArray[np.bool_]]:
    """Ask for sources, and return the true source of each, -1 for none, and whether that is too faint to count."""
    if not listed:
        posterior = deblender.scenes(scene, seed=seed)
        matched = evaluation.detected(scene, posterior)
        return posterior, matched, np.isin(matched, np.flatnonzero(~bright))
    rng = np.random.default_rng(seed)
    error = JITTER * torch.from_numpy(rng.random(len(scene))[scene.scene.numpy()] * rng.normal(size=(2, len(bright))))
    places = (
        (place + own)[bright].clamp(0, side - 1)
        for place, own, side in zip((scene.x, scene.y), error, scene.image.shape[:-3:-1], strict=True)
    )
    posterior = deblender.scenes(scene, positions=(scene.scene[bright], *places), seed=seed)
    return posterior, np.flatnonzero(bright), np.zeros(len(posterior), dtype=bool)


def _truth(scene: Scene, posterior: Posterior, matched: NDArray[np.int64]) -> evaluation.Arrays:
    """Return which sources are real, their groups and, with an axis before them, their true fluxes."""
    real, names = matched >= 0, evaluation.TRUTHS.items()
    fluxes = {kind: getattr(scene, name).double().numpy()[None, matched[real]] for kind, name in names}
    return fluxes | {"real": real, "group": posterior.dataset["group"].values[real]}


def _tested(state: str, answers: list[tuple[Posterior, evaluation.Arrays]]) -> Iterator[dict[str, object]]:
    """Measure the real ones of the sources, by the number of bands."""
    for bands in sorted({answer.dataset.sizes["band"] for answer, _ in answers}):
        own = [(answer, truth) for answer, truth in answers if answer.dataset.sizes["band"] == bands]
        kinds = [kind for kind in evaluation.TRUTHS if kind in own[0][0].dataset]
        found = [{kind: evaluation.flat_draws(p, kind)[:, truth["real"]] for kind in kinds} for p, truth in own]
        for row in evaluation.accuracy_rows(evaluation.joined(found), evaluation.joined([truth for _, truth in own])):
            del row["iou"]
            yield {"state": state, "bands": bands} | row
