"""What benchmarks of scenes share: answers beside the truth as flat arrays, and the numbers that sum these up.

`measure` reduces a posterior to arrays by name, which can be kept and joined: those that begin with ``group_`` have one
value per group of the posterior, the others one per true source. Fluxes are judged by ranks of the truth among the
draws. Groups count for the joint distribution where each of their sources was matched with a true one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks._command import kept_arrays
from probdeblend.deblending.deblender import Deblends
from probdeblend.metrics.arrays import group_total
from probdeblend.metrics.detections import match_sources
from probdeblend.metrics.ranks import group_pit
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import LN_FLUX_UNIT, Scene, seed_of
from probdeblend.training.evaluation import REACH, signal_to_noise

__all__ = [
    "CHUNK",
    "LEAST_SNR",
    "ONE_CAMERA",
    "answered",
    "column",
    "compare",
    "flat_draws",
    "formatted",
    "joined",
    "match",
    "measure",
    "positions",
    "summary",
    "truth",
]

CHUNK = 32  # scenes that are simulated, answered and kept together
ONE_CAMERA = 4  # the same, where each chunk is taken by a camera of its own
LEAST_SNR = 5.0  # fainter sources do not count as detectable
LEVELS = (50, 68, 95)
FAINTEST = 0.01  # of the true flux, to which draws are raised before taking logarithms
Arrays = dict[str, NDArray]
Drawn = TypeVar("Drawn")


def compare(
    kept: Path,
    name: str,
    count: int,
    draw: Callable[[int, int], Drawn],
    methods: Mapping[str, Callable[[Drawn], Arrays]],
    *,
    seed: int,
    chunk: int = CHUNK,
) -> dict[str, Arrays]:
    """Ask several methods about `count` scenes, `chunk` by chunk; finished ones are kept.

    `draw` makes a number of scenes from a seed, a method turns what it returns into arrays, which are joined by method.
    """
    parts = []
    for first in tqdm(range(0, count, chunk), desc=name, unit="chunk", leave=False):

        def make(first: int = first) -> Arrays:
            scene = draw(min(chunk, count - first), seed_of(seed, first // chunk + 1))
            found = {method: answer(scene) for method, answer in methods.items()}
            return {f"{method}/{key}": values for method, arrays in found.items() for key, values in arrays.items()}

        parts.append(kept_arrays(kept / f"{name}-{first:06d}.npz", make))
    return {
        method: joined({key.split("/")[1]: part[key] for key in part if key.split("/")[0] == method} for part in parts)
        for method in methods
    }


def answered(
    deblender: Deblends, *, kind: str = "total", given: bool = True, seed: int = 0
) -> Callable[[Scene], Arrays]:
    """Return a method of `compare`: what `measure` finds, at the true positions if these are given.

    ``scene_seconds`` is the CPU time per scene.
    """

    def answer(scene: Scene) -> Arrays:
        began = time.process_time()
        posterior = deblender.scenes(scene, positions=positions(scene) if given else None, seed=seed)
        seconds = np.full(len(scene), (time.process_time() - began) / len(scene))
        row = np.arange(len(scene.scene)) if given else None
        return measure(scene, posterior, kind=kind, row=row) | {"scene_seconds": seconds}

    return answer


def positions(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Return the true positions, to be forced on a method."""
    return scene.scene, scene.x, scene.y


def column(posterior: Posterior, name: str) -> NDArray:
    """Return a column of a posterior, one value per source; NaN where it has none."""
    values = posterior.dataset.get(name)
    return np.full(len(posterior), np.nan) if values is None else values.values


def flat_draws(posterior: Posterior, kind: str) -> NDArray[np.float64]:
    """Return draws ``(draw, source, band)`` of one kind of flux, over all chains."""
    chains, draws, *sources = posterior.draws(kind).shape
    return posterior.draws(kind).values.reshape(chains * draws, *sources).astype(np.float64)


def match(scene: Scene, posterior: Posterior, *, reach: float = REACH) -> NDArray[np.int64]:
    """Return the source of the posterior that belongs to each true source, by position, -1 for none."""
    found = (column(posterior, "scene"), column(posterior, "x"), column(posterior, "y"))
    return match_sources(found, tuple(value.numpy() for value in positions(scene)), radius=reach)


def truth(scene: Scene) -> Arrays:
    """Return what is true of each source: signal-to-noise ratio, type, contested light, and Kron flux over sky noise.

    The contested light is ``1 - sum(own^2) / sum(all own)`` over pixels, as in Bosch et al. (2018, section 4.9.11).
    """
    light = scene.light.double()
    total = torch.zeros(scene.image.shape, dtype=torch.float64).index_add_(0, scene.scene, light)
    shared = (total[scene.scene] * light).sum((1, 2, 3))
    return {
        "scene": scene.scene.numpy(),
        "snr": signal_to_noise(scene),
        "type": scene.source_type.numpy(),
        "contested": (1 - light.square().sum((1, 2, 3)) / shared.clamp(min=1e-12)).numpy(),
        "brightness": (scene.auto_flux / scene.sky_rms[scene.scene]).amax(1).double().numpy(),
    }


def measure(scene: Scene, posterior: Posterior, *, kind: str = "total", row: NDArray | None = None) -> Arrays:
    """Compare one kind of flux, "total" or "auto", with the truth.

    `row` has the source of the posterior for each true one, by default the nearest. Per true source, in the first band:
    the true flux and the median (NaN if it was missed), the rank of the truth, and half-width and score of the 68 %
    interval in ln flux; per group its number of sources, and the ranks of the Mahalanobis distance, over all bands, and
    of the total flux in the first.
    """
    draws = flat_draws(posterior, kind)
    true = (scene.flux if kind == "total" else scene.auto_flux).double().numpy()
    row = match(scene, posterior) if row is None else row
    flux = np.where(row[:, None] >= 0, draws[:, row], np.nan) if draws.shape[1] else np.full((2, *true.shape), np.nan)
    floored = np.log(np.maximum(flux, FAINTEST * true))
    low, high = np.quantile(floored, (0.16, 0.84), axis=0)
    rank = np.where(np.isfinite(flux).all(0), ((flux < true).sum(0) + 0.5) / (len(flux) + 1), np.nan)
    known = truth(scene)
    outside = np.maximum(low - np.log(true), 0) + np.maximum(np.log(true) - high, 0)
    measured = {"flux": true, "estimate": np.median(flux, 0), "rank": rank, "width": (high - low) / 2}
    measured["score"] = high - low + 2 / (1 - 0.68) * outside
    measured = {name: values[:, 0] for name, values in measured.items()}
    of_found = np.full(draws.shape[1:], np.nan)
    of_found[row[row >= 0]] = true[row >= 0]
    return known | measured | _groups(posterior, draws, of_found)


def _groups(posterior: Posterior, draws: NDArray, true: NDArray) -> Arrays:
    """Rank the truth ``(source, band)`` of whole groups among the draws; NaN where a source of the group is false."""
    group = column(posterior, "group")
    if not len(group):
        return dict.fromkeys(("group_size", "group_joint", "group_total"), np.zeros(0))
    size = np.unique(group, return_counts=True)[1]
    floor = np.nan_to_num(FAINTEST * true, nan=1e-30)
    joint = group_pit(np.log(np.maximum(draws, floor)), np.log(true), group)
    total, true_total = group_total(draws, group)[..., 0], group_total(true, group)[..., 0]
    known = np.isfinite(true_total) & np.isfinite(total).all(0)
    rank = np.where(known, (total < true_total).mean(0), np.nan)
    return {"group_size": size, "group_joint": np.where(known, joint, np.nan), "group_total": rank}


def joined(parts: Iterable[Arrays]) -> Arrays:
    """Join the arrays of several batches; scenes are renumbered."""
    parts, start = [dict(part) for part in parts], 0
    for part in parts:
        part["scene"] = part["scene"] + start
        start = int(part["scene"].max(initial=start - 1)) + 1
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summary(found: Arrays, chosen: NDArray | None = None) -> dict[str, float]:
    """Return accuracy and coverage of sources that are bright enough, of some of them if `chosen` says which.

    ``mape`` is in percent, ``bias_mag`` and ``nmad_mag`` in magnitudes, ``width`` the median half-width of the 68 %
    interval in ln flux; coverage is a fraction. Joint and total coverage are those of groups of two and more, where
    there are any.
    """
    chosen = (found["snr"] >= LEAST_SNR) & (True if chosen is None else chosen)
    true, estimate, rank, width = (found[name][chosen] for name in ("flux", "estimate", "rank", "width"))
    error = -LN_FLUX_UNIT * np.log(np.maximum(estimate, FAINTEST * true) / true)
    row: dict[str, float] = {"sources": int(chosen.sum()), "detected": _mean(np.isfinite(estimate))}
    row |= {"mape": 100 * _mean(np.abs(estimate - true) / true), "bias_mag": _median(error)}
    row |= {"nmad_mag": float(mad_std(error, ignore_nan=True)) if np.isfinite(error).any() else np.nan}
    row |= {"width": _median(width)} | {f"coverage_{level}": _mean(_inside(rank, level)) for level in LEVELS}
    several = found["group_size"] >= min(2, found["group_size"].max(initial=1))
    joint, total = found["group_joint"][several], found["group_total"][several]
    covered = np.where(np.isfinite(joint), joint <= 0.68, np.nan)
    return row | {"groups": len(joint), "joint_68": _mean(covered), "total_68": _mean(_inside(total, 68))}


def _inside(rank: NDArray, level: float) -> NDArray:
    return np.where(np.isfinite(rank), np.abs(2 * rank - 1) <= level / 100, np.nan)


def _mean(values: NDArray) -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else np.nan


def _median(values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


FORMATS = {"mape": ".2f", "bias_mag": ".4f", "nmad_mag": ".4f", "seconds": ".4f"}


def formatted(rows: Iterable[Mapping[str, object]]) -> Table:
    """Return rows as a table whose numbers print short."""
    table = Table(list(rows))
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = FORMATS.get(name, ".3f")
    return table
