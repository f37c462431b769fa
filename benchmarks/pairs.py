"""Deblend pairs of the published population: accuracy, coverage and time of the network, beside SEP.

The network finds its sources, or is given the true positions. SEP finds its own, and its detections are matched in two
ways: each galaxy takes the nearest within 10 pixels, or the rule of Boucaud et al. (2020, doi:10.1093/mnras/stz3056,
section 3.3) holds. A detection alone then belongs to the central galaxy if it is within half of that one's half-light
radius, to the companion otherwise; of three and more the two brightest count. The network is judged in both kinds of
flux, SEP in its Kron flux, always against the truth of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import published_pairs
from benchmarks._scenes import answered, column, compare, flat_draws, formatted, measure, summary
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.detections import match_positions
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Scene

__all__ = ["by_the_paper", "main", "paper_rows", "published_match"]


@benchmark("pairs")
@sized_option("--count", 64, 2000, help="Number of pairs.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Deblend pairs of the published population: accuracy, coverage and time of the network, beside SEP."""
    torch.set_num_threads(1)
    deblender = load(weights)
    deblender.scenes(published_pairs(1, seed=0))  # the first call loads libraries
    methods: dict[str, Callable] = {
        f"network, {kind}, {'true' if given else 'detected'} positions": answered(deblender, kind=kind, given=given)
        for kind in ("total", "auto")
        for given in (False, True)
    }
    methods |= {"SEP, nearest detection": answered(SepDeblender(pairs=True), kind="auto")}
    methods |= {"SEP, rule of the paper": by_the_paper}
    with run.unfinished(deblender=deblender, count=count) as kept:
        found = compare(kept, "pairs", count, published_pairs, methods, seed=run.seed)
        seconds = {method: arrays.get("scene_seconds", np.array(np.nan)).mean() for method, arrays in found.items()}
        run.write(
            formatted(
                {"method": method} | summary(arrays) | {"seconds": seconds[method]} for method, arrays in found.items()
            )
        )


def by_the_paper(scene: Scene) -> dict[str, NDArray]:
    """Measure SEP's detections, matched by the rule of the paper."""
    posterior = SepDeblender(pairs=True).scenes(scene)
    return measure(scene, posterior, kind="auto", row=paper_rows(scene, posterior))


def paper_rows(scene: Scene, posterior: Posterior) -> NDArray[np.int64]:
    """Return the detection of each galaxy of pairs, -1 for none; the first of a scene is the central one."""
    flux = np.median(flat_draws(posterior, "auto")[..., 0], 0)
    radius = (scene.half_light_radius / scene.axis_ratio.sqrt() / scene.pixel_scale)[::2]
    rows, owner = [], column(posterior, "scene")
    for number, (x, y) in enumerate(zip(scene.x.reshape(-1, 2), scene.y.reshape(-1, 2), strict=True)):
        there = np.flatnonzero(owner == number)
        found = (column(posterior, "x")[there], column(posterior, "y")[there], flux[there])
        chosen = published_match(found, x.numpy(), y.numpy(), radius=float(radius[number]))
        rows.append(np.where(chosen >= 0, np.append(there, -1)[chosen], -1))
    return np.concatenate(rows)


def published_match(
    found: tuple[ArrayLike, ArrayLike, ArrayLike], x: ArrayLike, y: ArrayLike, *, radius: float
) -> NDArray[np.int64]:
    """Match the detections in a stamp to its two galaxies by the published rule.

    Two detections belong to one galaxy each, by position. A single one belongs to the central galaxy if it is within
    half of its radius, else to the companion. Of three or more the two brightest count.

    Parameters
    ----------
    found
        x, y and flux of the detections ``(detection,)``.
    x, y
        Positions of the central galaxy and of the companion in pixels ``(2,)``.
    radius
        Major-axis half-light radius of the central galaxy in pixels.

    Returns
    -------
    NDArray
        Index of the detection of each galaxy ``(2,)``, -1 for a missed one.

    References
    ----------
    Boucaud et al. (2020), doi:10.1093/mnras/stz3056, section 3.3.
    """
    place, flux = np.stack(found[:2], axis=-1).astype(np.float64), np.asarray(found[2])
    galaxies = np.stack([x, y], axis=-1).astype(np.float64)
    if len(place) == 0:
        return np.array([-1, -1])
    if len(place) == 1:
        central = np.hypot(*(place[0] - galaxies[0])) <= radius / 2
        return np.array([0, -1]) if central else np.array([-1, 0])
    brightest = np.sort(np.argsort(-flux, kind="stable")[:2])
    return brightest[match_positions(place[brightest], galaxies, radius=np.inf)]


if __name__ == "__main__":
    main()
