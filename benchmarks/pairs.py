"""Deblend pairs of the published population: accuracy, coverage and time of the network, beside SEP.

The network finds its sources, or is given the true positions. SEP finds its own, and its detections are matched in two
ways: each galaxy takes the nearest, or the rule of Boucaud et al. (2020, doi:10.1093/mnras/stz3056, section 3.3) holds.
A detection alone then belongs to the central galaxy if it is within half of that one's half-light radius, to the
companion otherwise; of three and more the two brightest count. The network is judged in both kinds of flux, SEP in
its Kron flux, always against the truth of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option
from benchmarks._populations import published_pairs
from benchmarks._scenes import answered, column, compare, formatted, measure, summary
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import Scene

__all__ = ["main", "paper_match"]

OWN = 0.5  # of the half-light radius of the central galaxy, within which a detection alone is its own


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
    methods |= {"SEP, nearest detection": answered(SepDeblender(), kind="auto", given=False)}
    methods |= {"SEP, rule of the paper": by_the_paper}
    with run.unfinished(deblender=deblender, count=count) as kept:
        found = compare(kept, "pairs", count, partial(_draw), methods, seed=run.seed)
        rows = [
            {"method": method} | summary(arrays) | {"seconds": arrays["scene_seconds"].mean()}
            for method, arrays in found.items()
        ]
        table = formatted(rows)
        table["seconds"].info.format = ".4f"
        run.write(table)


def _draw(count: int, seed: int) -> Scene:
    return published_pairs(count, seed=seed)


def by_the_paper(scene: Scene) -> dict[str, NDArray]:
    """Measure SEP's detections, matched by the rule of the paper."""
    posterior = SepDeblender().scenes(scene)
    return measure(scene, posterior, kind="auto", row=paper_match(scene, posterior)) | {
        "scene_seconds": np.full(len(scene), np.nan)
    }


def paper_match(scene: Scene, posterior: Posterior) -> NDArray[np.int64]:
    """Return the detection of each galaxy of pairs, -1 for none; the first of a scene is the central one."""
    flux = np.median(posterior.draws("auto").values[..., 0], (0, 1))
    found = np.column_stack([column(posterior, "x"), column(posterior, "y")])
    true, owner = np.column_stack([scene.x.numpy(), scene.y.numpy()]), column(posterior, "scene")
    radius = scene.half_light_radius.numpy() / scene.pixel_scale
    rows = np.full((len(scene), 2), -1)
    for number, (first, second) in enumerate(true.reshape(-1, 2, 2)):
        there = np.flatnonzero(owner == number)
        there = there[np.argsort(-flux[there], kind="stable")][:2]
        away = np.hypot(*(found[there] - first).T), np.hypot(*(found[there] - second).T)
        if len(there) == 1:
            rows[number, int(away[0][0] > OWN * radius[2 * number])] = there[0]
        elif len(there) == 2:
            straight = away[0][0] + away[1][1] <= away[0][1] + away[1][0]
            rows[number] = there if straight else there[::-1]
    return rows.ravel()


if __name__ == "__main__":
    main()
