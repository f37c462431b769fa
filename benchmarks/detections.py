"""Detect the sources of crowded scenes: completeness, purity, existence probabilities, and stars among galaxies.

The network answers for the peaks of its heat map, SEP for its segments, of which it gives no probability. To compare
them at equal purity, the network's sources are cut at the existence probability at which as many of them are false as
of SEP's. Sources with a signal-to-noise ratio below five do not count, whether they are found or not.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import mixed_scenes
from benchmarks._scenes import LEAST_SNR, ONE_CAMERA, column, compare, flat_draws, formatted, match, truth
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.masks import reliability
from probdeblend.scene import SOURCE_TYPES, Scene

__all__ = ["detected", "equal_purity", "main"]

EDGES = {
    "all": (-np.inf, np.inf),
    "brightness": (10.0, 30.0, 100.0, 300.0, 1000.0, np.inf),  # auto flux over the sky noise of a pixel
    "contested": (-np.inf, 0.02, 0.1, 0.3, 1.0),
}
STAR = SOURCE_TYPES.index("star")


@benchmark("detections")
@sized_option("--count", 32, 4000, help="Number of scenes.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Detect the sources of crowded scenes, beside SEP at equal purity: by brightness and by contested light.

    Purity is in bins of the estimated brightness, everything else in bins of true ones; brightness is the auto flux
    over the sky noise of a pixel. Columns with `_equal` are those of the network at SEP's purity; `stars_right` and
    `galaxies_right` are the fractions that the class probability puts on the right side of one half.
    """
    deblender = load(weights)
    methods = {"network": partial(detected, deblender), "sep": partial(detected, SepDeblender())}
    with run.unfinished(deblender=deblender, count=count) as kept:
        found = compare(kept, "scenes", count, mixed_scenes, methods, seed=run.seed, chunk=ONE_CAMERA)
        network, sep = found["network"], found["sep"]
        threshold = equal_purity(network, _purity(sep, np.ones(len(sep["found_real"]), dtype=bool)))
        table = formatted(
            {"feature": feature, "low": low, "high": high} | _row(network, sep, threshold, feature, (low, high))
            for feature, edges in EDGES.items()
            for low, high in pairwise(edges)
        )
        counts = network["found_real"] >= 0
        judged = network["found_existence"][counts], network["found_real"][counts] == 1
        error = reliability(*judged).meta["ece"] if counts.any() else np.nan
        table.meta = {"scenes": count, "existence_ece": error, "threshold": threshold}
        run.write(table)


def detected(deblender: Deblends, scene: Scene) -> dict[str, NDArray]:
    """Return the truth with what was found of each source, and of each source that was found whether it is real.

    Per true source ``existence`` (NaN where it was missed) and ``star``, the probability of a star; per source found
    ``found_existence`` and ``found_brightness``, and ``found_real``: 1 for a real source, 0 for none, and -1 for one
    that is too faint to count.
    """
    posterior = deblender.scenes(scene)
    row, known = match(scene, posterior), truth(scene)
    existence = np.nan_to_num(column(posterior, "existence"), nan=1.0)
    found, real = row >= 0, np.zeros(len(posterior), dtype=int)
    real[row[found]] = np.where(known["snr"][found] >= LEAST_SNR, 1, -1)
    flux = np.median(flat_draws(posterior, "auto"), 0) / scene.sky_rms.numpy()[column(posterior, "scene")]
    own = np.maximum(row, 0)
    return known | {
        "existence": np.where(found, existence[own], np.nan) if len(posterior) else np.full(len(row), np.nan),
        "star": np.where(found, column(posterior, "star")[own], np.nan)
        if len(posterior)
        else np.full(len(row), np.nan),
        "found_existence": existence,
        "found_brightness": flux.max(1, initial=0.0),
        "found_real": real,
    }


def equal_purity(found: dict[str, NDArray], purity: float) -> float:
    """Return the least existence probability above which sources are as pure as given; 1 if none is."""
    counts = found["found_real"] >= 0
    order = np.argsort(-found["found_existence"][counts], kind="stable")
    real = found["found_real"][counts][order]
    pure = np.flatnonzero(np.cumsum(real) / np.arange(1, len(real) + 1) >= purity)
    return float(found["found_existence"][counts][order][pure[-1]]) if len(pure) else 1.0


def _purity(found: dict[str, NDArray], chosen: NDArray) -> float:
    counts = chosen & (found["found_real"] >= 0)
    return float(found["found_real"][counts].mean()) if counts.any() else np.nan


def _row(
    network: dict[str, NDArray], sep: dict[str, NDArray], threshold: float, feature: str, ends: tuple[float, float]
) -> dict[str, float]:
    """Return completeness and purity of both in a bin."""
    low, high = ends
    counted = network["snr"] >= LEAST_SNR
    if feature != "all":
        counted &= (network[feature] >= low) & (network[feature] < high)
    row = {"sources": int(counted.sum())}
    for name, found, least in (("", network, 0.0), ("_equal", network, threshold), ("_sep", sep, 0.0)):
        chosen = found["found_existence"] >= least
        if feature == "brightness":
            chosen &= (found["found_brightness"] >= low) & (found["found_brightness"] < high)
        there = np.nan_to_num(found["existence"][counted], nan=-1.0) >= least
        row[f"completeness{name}"] = float(there.mean()) if counted.any() else np.nan
        row[f"purity{name}"] = np.nan if feature == "contested" else _purity(found, chosen)
    for name, kind in (("stars", network["type"] == STAR), ("galaxies", network["type"] != STAR)):
        star = network["star"][counted & kind & np.isfinite(network["star"])]
        right = star > 0.5 if name == "stars" else star <= 0.5
        row[f"{name}_right"] = float(right.mean()) if len(star) else np.nan
    return row


if __name__ == "__main__":
    main()
