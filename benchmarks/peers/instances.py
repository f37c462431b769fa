"""Segment stars and galaxies in three bands, beside Mask R-CNN and SEP: average precision by class, as COCO has it.

Burke et al. (2019, doi:10.1093/mnras/stz2845) trained Mask R-CNN for simulated fields of DECam in z, r and g, and found
AP50 of 0.816 for galaxies and 0.708 for stars; in a field of 30 galaxies per square arcmin, precisions of 98 and 92 %
at a recall of 80 %. Fields of as many pixels, 512 on a side, are simulated here by the package, for a DECam-like and an
HSC-like camera; true masks are those of the package, the pixels where a source alone is above three times the sky
noise.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks._command import FILE, Run, benchmark, sized_option, weights_option
from benchmarks._scenes import compare, formatted
from benchmarks.peers._fields import SURVEYS, Field, field, flat_masks, overlaps, rgb
from benchmarks.peers._instances import (
    CLASSES,
    IOU_THRESHOLDS,
    Instances,
    by_network,
    by_sep,
    hits,
    judged,
    precision,
)
from benchmarks.peers.mask_rcnn import by_mask_rcnn, load_mask_rcnn
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.detections import RECALLS
from probdeblend.plots.images import PALETTE, show
from probdeblend.scene import Scene, seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_field", "finders", "main", "mask_rcnn_option", "rows", "timed"]

SIDE = 512  # pixels
EDGES = {"snr": (5.0, 15.0, 30.0, 100.0, 300.0, np.inf), "contested": (-np.inf, 0.02, 0.1, 0.3, 1.0)}
SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9)  # IoU thresholds of the curves
GALAXIES, STAMP = 6, 48  # deblended ones in a picture, and pixels on a side
Finder = Callable[[Scene], Instances]

mask_rcnn_option = click.option(
    "--mask-rcnn", type=FILE, help="What `python -m benchmarks.peers.mask_rcnn` has trained.  [default: leave it out]"
)


@benchmark("peers.instances")
@sized_option("--count", 1, 14, help="Number of fields of each camera.")
@click.option("--side", type=click.IntRange(64), default=SIDE, show_default=True, help="Pixels on a side of a field.")
@mask_rcnn_option
@weights_option
def main(run: Run, count: int, side: int, mask_rcnn: Path | None, weights: Path | None) -> None:
    """Segment stars and galaxies in three bands: average precision by class, brightness and contested light.

    The scene network scores a source by its existence, the probability of the class and the expected overlap of its
    mask, SEP, which knows no classes, by its signal-to-noise ratio, and Mask R-CNN, if it is given, as it learned to.
    `ap` is the mean over IoU thresholds from 0.50 to 0.95, `precision_at_80` the precision at 80 % recall and IoU 0.50.
    """
    deblender, found = load(weights), {}
    methods = {name: partial(timed, finder) for name, finder in finders(deblender, mask_rcnn, side).items()}
    known = {} if mask_rcnn is None else {"mask_rcnn": hashlib.sha256(mask_rcnn.read_bytes()).hexdigest()[:16]}
    with run.unfinished(deblender=deblender, count=count, side=side, **known) as kept:
        for survey in SURVEYS:
            draw = partial(draw_field, survey, side)
            found[survey] = compare(kept, survey, count, draw, methods, seed=run.seed, chunk=1)
        table = formatted(row for survey in SURVEYS for row in rows(survey, found[survey]))
        table.meta = {"fields per camera": count, "side": side} | known
        for method in methods:
            seconds = [found[survey][method]["cpu_seconds"].mean() for survey in SURVEYS]
            table.meta[f"CPU seconds per field, {method}"] = float(np.mean(seconds))
        fields = {survey: draw_field(survey, side, 1, seed_of(run.seed, 1)) for survey in SURVEYS}
        run.write(table, figure=_figure(found, fields, deblender))


def draw_field(survey: str, side: int, _: int, seed: int) -> Field:
    """Simulate one field, as `compare` asks for it."""
    return field(SURVEYS[survey], side, seed=seed)


def finders(deblender: Deblends, mask_rcnn: Path | None, side: int) -> dict[str, Finder]:
    """Return what finds instances in images of so many pixels on a side, by name."""
    found: dict[str, Finder] = {"network": partial(by_network, deblender), "sep": partial(by_sep, SepDeblender())}
    if mask_rcnn is not None:
        found["mask_rcnn"] = partial(by_mask_rcnn, load_mask_rcnn(mask_rcnn, side))
    return found


def timed(finder: Finder, drawn: Field) -> dict[str, NDArray]:
    """Compare what is found in a field with the truth, and return the ``cpu_seconds`` that it took, too."""
    began = time.process_time()
    instances = finder(drawn.scene)
    return judged(drawn, instances) | {"cpu_seconds": np.array([time.process_time() - began])}


def rows(survey: str, found: Mapping[str, Mapping[str, NDArray]]) -> Iterator[dict[str, object]]:
    """Yield average precisions by method, class and bin; those of a class only where a method knows classes."""
    bins = [("all", -np.inf, np.inf)] + [(name, *ends) for name, edges in EDGES.items() for ends in pairwise(edges)]
    for method, arrays in found.items():
        for kind in CLASSES[: 1 if method == "sep" else None]:
            for feature, low, high in bins:
                limits = {} if feature == "all" else {"feature": feature, "low": low, "high": high}
                curve, sources = precision(arrays, kind, **limits)
                row = {"survey": survey, "method": method, "class": kind, "feature": feature, "low": low, "high": high}
                at = dict(zip(IOU_THRESHOLDS.tolist(), curve.mean(1).tolist(), strict=True))
                row |= {"sources": sources, "ap": float(curve.mean()), "ap_50": at[0.5], "ap_75": at[0.75]}
                yield row | {"precision_at_80": float(curve[0, np.searchsorted(RECALLS, 0.8)])}


def _figure(
    found: Mapping[str, Mapping[str, Mapping[str, NDArray]]], fields: Mapping[str, Field], deblender: Deblends
) -> Figure:
    """Plot precision against recall, and a field of each camera with masks and deblended galaxies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 12 + 8 * len(fields)), layout="constrained")
    parts = figure.subfigures(1 + len(fields), 1, height_ratios=(12, *(8,) * len(fields)))
    panels = parts[0].subplots(len(found), len(CLASSES), sharex=True, sharey=True, squeeze=False)
    for line, (survey, methods) in zip(panels, found.items(), strict=True):
        for axes, kind in zip(line, CLASSES, strict=True):
            for color, (method, arrays) in zip(PALETTE, methods.items(), strict=False):
                curve, _ = precision(arrays, kind)
                for number, threshold in enumerate(SHOWN if method != "sep" or kind == "any" else ()):
                    own = curve[np.isclose(IOU_THRESHOLDS, threshold).argmax()]
                    label = f"{method}, AP50 {own.mean():.2f}, AP {curve.mean():.2f}" if number == 0 else None
                    axes.plot(RECALLS, own, color=color, alpha=1 - 0.18 * number, label=label)
            axes.set(title=f"{survey}: {kind}", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
            axes.legend(loc="lower left", title="IoU 0.5 (dark) to 0.9", fontsize=8)
    for part, (survey, drawn) in zip(parts[1:], fields.items(), strict=True):
        part.suptitle(f"{survey}: network (orange galaxies, blue stars) and truth (white); galaxies alone")
        _picture(part, drawn, deblender)
    return figure


def _picture(part: SubFigure, drawn: Field, deblender: Deblends) -> None:
    """Show a field with contours of masks, and beside it galaxies: in the image, deblended, and as they are alone."""
    posterior = deblender.scenes(drawn.scene)
    image, rms = drawn.scene.image[0].numpy(), drawn.scene.sky_rms[0].numpy()
    left, right = part.subfigures(1, 2, width_ratios=(8, 7))
    axes = left.subplots()
    show(axes, rgb(image, rms))
    stars = np.asarray(posterior.dataset["star"]) > 0.5
    for cutouts, colors in (
        (drawn.truth, ["white"] * len(drawn.truth)),
        (posterior.cutouts, np.where(stars, *PALETTE[4:6])),
    ):
        for number, color in enumerate(colors):
            cutout = cutouts.cutout("mask", number)
            mask, (y, x) = np.pad(cutout.data.astype(float), 1), cutout.corner
            if (mask > 0.5).any():
                places = np.arange(mask.shape[1]) + x - 1, np.arange(mask.shape[0]) + y - 1
                axes.contour(*places, mask, [0.5], colors=[color], linewidths=0.6)
    axes.set(xticks=[], yticks=[])
    overlap = overlaps(flat_masks(posterior.cutouts), flat_masks(drawn.truth))
    hit = hits(overlap, np.asarray(posterior.dataset["existence"]), 0.5)
    contested, galaxy = drawn.contested, ~drawn.star & np.isin(np.arange(len(drawn.star)), hit)
    worth = np.where(galaxy, contested * drawn.snr, -1)  # bright, and not alone
    chosen = [number for number in np.argsort(-worth)[:GALAXIES] if worth[number] >= 0]
    grid = right.subplots(GALAXIES // 2, 6, squeeze=False)
    for panel in grid.ravel():
        panel.axis("off")
    for panels, number in zip(grid.reshape(-1, 3), chosen, strict=False):
        found = posterior.cutouts.cutout("image", int(np.flatnonzero(hit == number)[0]))
        true = drawn.truth.cutout("image", number)
        y, x = (round(float(value[number])) for value in (drawn.scene.y, drawn.scene.x))
        titles = f"image, contested {contested[number]:.2f}", "network", "truth"
        for panel, cutout, title in zip(panels, (None, found, true), titles, strict=True):
            pixels = image if cutout is None else np.zeros_like(image)
            if cutout is not None:
                pixels[:, *cutout.slices] = cutout.data
            padded = np.pad(pixels, ((0, 0), *((STAMP // 2,) * 2,) * 2))
            show(panel, rgb(padded[:, y : y + STAMP, x : x + STAMP], rms, stretch=3.0))
            panel.set_title(title, fontsize=7)


if __name__ == "__main__":
    main()
