"""Segment two and three galaxies that overlap, beside Mask R-CNN and SEP: average precision by their separation.

Mask R-CNN has been reported to reach a mean average precision of 0.87 on images of two galaxies. Here galaxies of
similar brightness lie at a separation of half to four times the width of the PSF in r, the third as far from one of the
other two and no closer to the other; a DECam-like and an HSC-like camera see them in g, r and z.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._scenes import compare, formatted, joined
from benchmarks.peers._fields import SURVEYS, Field, compose, draw_sources
from benchmarks.peers._instances import precision
from benchmarks.peers.instances import Finder, finders, mask_rcnn_option, timed
from probdeblend.deblending.weights import load
from probdeblend.plots.images import PALETTE
from probdeblend.scene import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_groups", "main", "places", "rows"]

SIDE, AT_ONCE = 80, 16  # pixels on a side of an image, and images that are kept together
NUMBERS = (2, 3)  # galaxies
SEPARATIONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # over the FWHM
BRIGHTEST, ABOVE, DIFFERENCE = 19.5, 2.5, 1.0  # mag: least, above the faintest of a field, and from the first galaxy


@benchmark("peers.overlaps")
@sized_option("--count", 16, 400, help="Number of images of each camera and number of galaxies.")
@mask_rcnn_option
@weights_option
def main(run: Run, count: int, mask_rcnn: Path | None, weights: Path | None) -> None:
    """Segment two and three galaxies that overlap: average precision by their separation over the FWHM.

    `ap` is the mean over IoU thresholds from 0.50 to 0.95.
    """
    deblender, found = load(weights), {}
    methods = {name: partial(_answered, finder) for name, finder in finders(deblender, mask_rcnn, SIDE).items()}
    known = {} if mask_rcnn is None else {"mask_rcnn": hashlib.sha256(mask_rcnn.read_bytes()).hexdigest()[:16]}
    with run.unfinished(deblender=deblender, count=count, **known) as kept:
        for survey in SURVEYS:
            for number in NUMBERS:
                draw, name = partial(draw_groups, survey, number), f"{survey}-{number}"
                found[survey, number] = compare(kept, name, count, draw, methods, seed=run.seed, chunk=AT_ONCE)
        table = formatted(row for key, arrays in found.items() for row in rows(*key, arrays))
        table.meta = {"images": count} | known
        run.write(table, figure=_figure(found))


def places(number: int, separation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return centers x, y ``(galaxy, 2)`` about zero: each is at the separation from an earlier one, or farther."""
    found = np.zeros((1, 2))
    while len(found) < number:
        angle = rng.uniform(0, 2 * math.pi)
        tried = found[rng.integers(len(found))] + separation * np.array([math.cos(angle), math.sin(angle)])
        if np.linalg.norm(found - tried, axis=1).min() > separation * (1 - 1e-9):
            found = np.concatenate([found, tried[None]])
    return found - found.mean(0)


def draw_groups(name: str, number: int, count: int, seed: int) -> list[tuple[float, Field]]:
    """Simulate images of so many galaxies each, with the separation over the FWHM."""
    survey, drawn = SURVEYS[name], []
    for image in range(count):
        rng = np.random.default_rng([seed, image])
        separation = rng.uniform(SEPARATIONS[0], SEPARATIONS[-1])
        first = rng.uniform(BRIGHTEST, survey.faintest - ABOVE)
        magnitude = first + np.append(0, rng.uniform(-DIFFERENCE, DIFFERENCE, number - 1))
        middle = (SIDE - 1) / 2 + rng.uniform(-2, 2, 2)
        own = middle + places(number, separation * survey.seeing[1] / survey.pixel_scale, rng)
        star, seeds = np.zeros(number, dtype=bool), (seed_of(seed, image, 1), seed_of(seed, image, 2))
        sources = draw_sources(magnitude, star, own, survey.pixel_scale, seed=seeds[0])
        drawn.append((separation, compose(sources, survey.camera(rng), (SIDE, SIDE), seed=seeds[1])))
    return drawn


def rows(survey: str, number: int, found: Mapping[str, Mapping[str, NDArray]]) -> Iterator[dict[str, object]]:
    """Yield average precisions by method and separation."""
    for method, arrays in found.items():
        for low, high in [(SEPARATIONS[0], SEPARATIONS[-1]), *pairwise(SEPARATIONS)]:
            curve, sources = precision(arrays, "any", feature="separation", low=low, high=high)
            row = {"survey": survey, "galaxies": number, "method": method, "low": low, "high": high}
            ap_50, ap_75 = (float(curve[level].mean()) for level in (0, 5))
            yield row | {"sources": sources, "ap": float(curve.mean()), "ap_50": ap_50, "ap_75": ap_75}


def _answered(finder: Finder, drawn: list[tuple[float, Field]]) -> dict[str, NDArray]:
    """Compare what is found in images with the truth, with the separation of each source and instance."""
    parts = []
    for separation, image in drawn:
        part = timed(finder, image)
        part["separation"] = np.full(len(part["snr"]), separation)
        parts.append(part | {"found_separation": np.full(len(part["found_snr"]), separation)})
    return joined(parts)


def _figure(found: Mapping[tuple[str, int], Mapping[str, Mapping[str, NDArray]]]) -> Figure:
    """Plot average precisions against the separation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(NUMBERS), 4 * len(SURVEYS)), layout="constrained")
    panels = figure.subplots(len(SURVEYS), len(NUMBERS), sharex=True, sharey=True, squeeze=False)
    middle = [sum(ends) / 2 for ends in pairwise(SEPARATIONS)]
    for axes, (key, methods) in zip(panels.ravel(), found.items(), strict=True):
        for color, (method, arrays) in zip(PALETTE, methods.items(), strict=False):
            own = list(rows(*key, {method: arrays}))[1:]
            for name, style, text in (("ap_50", "o-", "AP50"), ("ap", "s--", "AP")):
                axes.plot(middle, [row[name] for row in own], style, color=color, label=f"{method}, {text}")
        axes.set(title=f"{key[0]}: {key[1]} galaxies", ylim=(0, 1.02))
        axes.set(xlabel="separation over FWHM", ylabel="average precision")
        axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
