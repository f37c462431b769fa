"""Accuracy, coverage and detections on scenes of known truth, for a deblender and for SEP side by side.

Fluxes are measured at the true positions of the sources that are bright enough to be detected, and judged by the number
of sources in their group, which is what makes them hard. Detections are judged without any position given.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike

import numpy as np
import torch
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..deblending.deblender import Deblends
from ..deblending.sep import SepDeblender
from ..metrics.accuracy import FLOOR, flux_accuracy
from ..metrics.arrays import group_total, over_finite
from ..metrics.detections import average_precision, binned_fraction, match_sources
from ..metrics.masks import blendedness, iou, iou_matrix, reliability
from ..metrics.ranks import group_pit, pit
from ..posterior.draws import Posterior
from ..scene import LN_FLUX_UNIT, Scene, seed_of
from ..simulation.sets import count_scenes, read_scenes

__all__ = ["REACH", "Evaluation", "accuracy_rows", "check_truth", "detected", "evaluate", "flat_draws", "formatted"]
__all__ += ["joined", "signal_to_noise", "stored_parts", "stored_scenes"]

CHUNK = 16  # scenes in memory at a time, and in a field of a stored set
LEAST_SNR = 5.0  # fainter sources do not count as detectable
REACH = 5.0  # pixels; a detection farther from a source is another one
SIZES = (1, 2, 3, 4, 6, 11, 10**6)  # edges of the numbers of sources in a group
EDGES = {"flux": (0.0, 30.0, 100.0, 300.0, 1000.0, np.inf), "contested": (0.0, 0.05, 0.2, 0.5, 1.0)}
TRUTHS = {"flux": "flux", "flux_auto": "auto_flux"}
ACCURACY = ["count", "detected", "mape", "nmad_mag", "bias_mag", "outliers", "coverage_50", "coverage_68"]
ACCURACY += ["coverage_68_low", "coverage_68_high", "coverage_95", "interval_score", "width"]
Arrays = dict[str, NDArray]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Parameters
    ----------
    accuracy
        One row per method, kind of flux and number of ``sources`` in the group ("all", "1", "2", ..., "4-5"): the
        columns ``count`` to ``width`` of `~probdeblend.metrics.flux_accuracy`, with a band by bootstrap over groups, or
        over galaxies if they are real ones, which repeat; ``joint_68``, the fraction of groups whose fluxes are in the
        68 % region by Mahalanobis distance; ``total_68`` and ``total_nmad_mag`` of the groups' totals; ``color_68`` and
        ``color_nmad_mag`` of neighboring bands' colors (NaN with one band); ``iou`` of masks.
    detection
        The fraction of sources with its band (``completeness``), and of detections (``purity``), for each method in
        bins of ``flux`` (Kron's, over the sky noise of a pixel, of the band where it is highest) and of ``contested``
        light: true values for completeness, estimated ones for purity.
    summary
        One row per method: ``completeness``, ``purity``, average precision of the masks ``ap`` and ``ap_50``, and the
        expected calibration error ``existence_ece`` of existence probabilities (NaN without).
    """

    accuracy: Table
    detection: Table
    summary: Table


def stored_scenes(path: str | PathLike[str], *, progress: bool = True) -> Iterator[Scene]:
    """Read a stored set batch by batch.

    Parameters
    ----------
    path
        The set.
    progress
        Show a progress bar.

    Yields
    ------
    Scene
        Up to 16 scenes.
    """
    for part in tqdm(stored_parts([path]), disable=not progress, desc="scenes", unit="batch"):
        yield read_scenes(*part)


def stored_parts(paths: Iterable[str | PathLike[str]]) -> list[tuple[str | PathLike[str], int, int]]:
    """Return the parts of stored sets that are read at a time: path, first scene, and the one after the last."""
    sizes = [(path, count_scenes(path)) for path in paths]
    return [(path, n, min(n + CHUNK, count)) for path, count in sizes for n in range(0, count, CHUNK)]


def signal_to_noise(scene: Scene) -> NDArray[np.float64]:
    """Return the matched-filter signal-to-noise ratio of each source alone ``(source,)``, for white noise."""
    light = torch.linalg.vector_norm(scene.light, dim=(-2, -1), dtype=torch.float64)
    return (light / scene.sky_rms[scene.scene]).norm(dim=1).numpy()


def evaluate(scenes: Iterable[Scene], deblender: Deblends, *, seed: int = 0) -> Evaluation:
    """Measure the accuracy, coverage and detections of a deblender, and of SEP, on scenes of known truth.

    Total fluxes are scored against total ones, Kron fluxes against those of the isolated sources. Where every scene
    has two sources, SEP detects as published for pairs (Boucaud et al. 2020, doi:10.1093/mnras/stz3056, section 3.3).

    Parameters
    ----------
    scenes
        Batches of scenes with their truth, such as from `stored_scenes`.
    deblender
        What is to be measured.
    seed
        Seed of the draws.

    Returns
    -------
    Evaluation
        The tables.

    Raises
    ------
    ValueError
        If there are no scenes, or they have no truth.
    """
    truths: list[Arrays] = []
    found: dict[str, list[tuple[Arrays, Arrays, list]]] = {}
    for number, scene in enumerate(scenes):
        check_truth(scene)
        bright = signal_to_noise(scene) >= LEAST_SNR
        truths.append(_truth(scene, bright))
        places = tuple(values[bright] for values in (scene.scene, scene.x, scene.y))
        sep = [] if isinstance(deblender, SepDeblender) else [SepDeblender(pairs=bool((scene.count == 2).all()))]
        for deblends in (deblender, *sep):
            answer, given = (deblends.scenes(scene, positions=at, seed=seed_of(seed, number)) for at in (None, places))
            judged = _measured(scene, given, bright), _detections(scene, answer, bright)
            found.setdefault(answer.dataset.attrs["method"], []).append((*judged, _overlaps(scene, answer, bright)))
    if not truths:
        raise ValueError("scenes must hold at least one batch, got none")
    truth, accuracy, detection, summary = joined(truths), [], [], []
    for method, parts in found.items():
        measured, detections, masks = zip(*parts, strict=True)
        detections = joined(detections)
        accuracy += [{"method": method} | row for row in accuracy_rows(joined(measured), truth)]
        detection += [{"method": method} | row for row in _by_feature(detections, truth)]
        summary += [{"method": method} | _summary(detections, [own for part in masks for own in part])]
    return Evaluation(*map(formatted, (accuracy, detection, summary)))


def check_truth(scene: Scene) -> None:
    """Refuse scenes without what evaluation and calibration need."""
    needed = ("scene", "x", "y", "flux", "auto_flux", "light")
    if missing := [name for name in needed if getattr(scene, name) is None]:
        raise ValueError(f"scenes must have truth, got some without {', '.join(missing)}")


def joined(parts: Sequence[Arrays]) -> Arrays:
    """Join arrays of batches, of which draws have sources on their second axis; groups are renumbered."""
    common = [name for name in parts[0] if all(name in part for part in parts)]
    found = {name: np.concatenate([part[name] for part in parts], axis=int(name in TRUTHS)) for name in common}
    if "group" in found:
        start = np.cumsum([0, *(part["group"].max(initial=-1) + 1 for part in parts)])
        found["group"] = np.concatenate([part["group"] + n for part, n in zip(parts, start, strict=False)])
    return found


def _truth(scene: Scene, bright: NDArray) -> Arrays:
    """Return what is true of the bright sources; fluxes get an axis before them, as draws have."""
    over = (scene.light / scene.sky_rms[scene.scene][..., None, None]).double().flatten(1, 2).numpy()
    owner = scene.scene.numpy()
    contested = np.concatenate([np.zeros(0), *(blendedness(over[owner == number]) for number in np.unique(owner))])
    known = {kind: getattr(scene, name)[bright].double().numpy()[None] for kind, name in TRUTHS.items()}
    brightness = (scene.auto_flux / scene.sky_rms[scene.scene]).double().numpy().max(1)
    others = {"group": scene.group.numpy(), "brightness": brightness, "contested": contested}
    others |= {} if scene.identity is None else {"identity": scene.identity.numpy()}
    return known | {name: values[bright] for name, values in others.items()}


def flat_draws(posterior: Posterior, kind: str) -> NDArray[np.float64]:
    """Return the draws ``(draw, source, band)`` of all chains of "flux" or "flux_auto"."""
    chains, draws, *sources = posterior.dataset[kind].shape
    return posterior.dataset[kind].values.reshape(chains * draws, *sources).astype(np.float64)


def _full_masks(posterior: Posterior) -> NDArray[np.bool_]:
    """Return masks ``(source, y, x)`` in the image of their scene."""
    masks = np.zeros((len(posterior), *posterior.cutouts.shape), dtype=bool)
    for number, full in enumerate(masks):
        cutout = posterior.cutouts.cutout("mask", number)
        full[cutout.slices] = cutout.data >= 0.5
    return masks


def _measured(scene: Scene, given: Posterior, bright: NDArray) -> Arrays:
    """Return draws and the overlap of masks at given positions."""
    found = {kind: flat_draws(given, kind) for kind in TRUTHS if kind in given.dataset}
    if given.cutouts is not None:
        found["iou"] = iou(_full_masks(given), scene.mask.numpy()[bright])
    return found


def detected(scene: Scene, answer: Posterior) -> NDArray[np.int64]:
    """Return the true source of each detection ``(detection,)``, -1 for none."""
    places = tuple(answer.dataset[name].values for name in ("scene", "x", "y"))
    found = match_sources(places, tuple(v.numpy() for v in (scene.scene, scene.x, scene.y)), radius=REACH)
    matched = np.full(len(answer), -1)
    matched[found[found >= 0]] = np.flatnonzero(found >= 0)
    return matched


def _detections(scene: Scene, answer: Posterior, bright: NDArray) -> Arrays:
    """Return which bright sources are detected, and which detections are real; those of faint sources do not count."""
    data, unknown = answer.dataset, np.full(len(answer), np.nan)
    matched = detected(scene, answer)
    counts = ~np.isin(matched, np.flatnonzero(~bright))
    kind = next(kind for kind in reversed(TRUTHS) if kind in data)
    ratio = np.median(flat_draws(answer, kind), axis=0) / scene.sky_rms.numpy()[data["scene"].values]
    known = {name: data[name].values if name in data else unknown for name in ("contested", "existence")}
    known |= {"brightness": ratio.max(1), "real": matched >= 0}
    hit = np.isin(np.flatnonzero(bright), matched)
    return {"hit": hit} | {name: values[counts] for name, values in known.items()}


def _overlaps(scene: Scene, answer: Posterior, bright: NDArray) -> list[tuple[NDArray, NDArray]]:
    """Return, scene by scene, how detected masks overlap true ones, and the confidence in each detection."""
    if answer.cutouts is None:
        return []
    true, found = scene.mask.numpy(), _full_masks(answer)
    data, owner = answer.dataset, answer.dataset["scene"].values
    score = data["existence"].values if "existence" in data else found.sum((1, 2))
    own = [bright & (scene.scene == number).numpy() for number in range(len(scene))]
    return [(iou_matrix(found[owner == n], true[chosen]), score[owner == n]) for n, chosen in enumerate(own)]


def accuracy_rows(found: Arrays, truth: Arrays) -> Iterator[dict[str, object]]:
    """Return one row per kind of flux and class of groups: the columns of `Evaluation.accuracy`, without the method.

    ``flux`` and ``flux_auto`` are draws ``(draw, source, band)``, and true fluxes with an axis of length one before;
    the truth has the ``group`` of each source as well, and may have its ``identity`` (-1 for none); what was found may
    have the ``iou`` of its mask. There are no rows of a kind of flux of which no truth is known.
    """
    group, identity = truth["group"], truth.get("identity", np.array(-1))
    size, cluster = np.bincount(group)[group], np.where(identity >= 0, identity, -1 - group)
    classes = [("all", size > 0)] + [
        (str(low) if high == low + 1 else f"{low}-{high - 1}", (size >= low) & (size < high))
        for low, high in pairwise(SIZES)
    ]
    for kind in (kind for kind in TRUTHS if kind in found and np.isfinite(truth[kind]).any()):
        for name, chosen in classes:
            if chosen.any():
                own = found[kind][:, chosen], truth[kind][0, chosen], group[chosen], cluster[chosen]
                row = {"flux": kind, "sources": name} | _fluxes(*own)
                yield row | {"iou": float(found["iou"][chosen].mean()) if "iou" in found else np.nan}


def _fluxes(draws: NDArray, true: NDArray, group: NDArray, cluster: NDArray) -> dict[str, float]:
    """Return the columns of fluxes, from draws ``(draw, source, band)`` and truths ``(source, band)``."""
    each = flux_accuracy(draws, true, cluster=np.repeat(cluster[:, None], true.shape[1], 1))
    total = flux_accuracy(group_total(draws, group), group_total(true, group))
    logs, log_true = np.log(np.maximum(draws, FLOOR * true)), np.log(true)
    logs[:, ~(logs.std(0) > 0)] = np.nan
    joint = group_pit(logs, log_true, group)
    color, true_color = (LN_FLUX_UNIT * np.diff(values, axis=-1) for values in (logs, log_true))
    known = np.isfinite(true_color) & np.isfinite(color).all(0)
    color, true_color = color[:, known], true_color[known]
    return {name: each[name] for name in ACCURACY} | {
        "joint_68": over_finite(np.mean, np.where(np.isfinite(joint), joint <= 0.68, np.nan)),
        "total_68": total["coverage_68"],
        "total_nmad_mag": total["nmad_mag"],
        "color_68": over_finite(np.mean, np.abs(2 * pit(color, true_color) - 1) <= 0.68),
        "color_nmad_mag": over_finite(mad_std, np.median(color, axis=0) - true_color),
    }


def _by_feature(found: Arrays, truth: Arrays) -> Iterator[dict[str, object]]:
    names = {"flux": "brightness", "contested": "contested"}
    for quantity, inside, of in (("completeness", found["hit"], truth), ("purity", found["real"], found)):
        for feature, edges in EDGES.items():
            for row in binned_fraction(inside, of[names[feature]], edges):
                yield {"quantity": quantity, "feature": feature} | dict(row)


def _summary(found: Arrays, masks: list[tuple[NDArray, NDArray]]) -> dict[str, object]:
    row = {"completeness": over_finite(np.mean, found["hit"]), "purity": over_finite(np.mean, found["real"])}
    row |= {"ap": np.nan, "ap_50": np.nan, "existence_ece": np.nan}
    known = np.isfinite(found["existence"])
    if known.any():
        row["existence_ece"] = reliability(found["existence"][known], found["real"][known]).meta["ece"]
    return row | (average_precision(*zip(*masks, strict=True)) if masks else {})


def formatted(rows: Iterable[Mapping[str, object]]) -> Table:
    """Return rows as a table whose numbers print short."""
    table = Table(list(rows))
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".2f" if name == "mape" else ".4g" if name in ("low", "high") else ".3f"
    return table
