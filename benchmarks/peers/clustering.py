"""Cluster the pixels of sources, beside SEP and the network: counts, masks, and galaxies that are broken into knots.

The baseline follows ASTErIsM (Tramacere et al. 2016, doi:10.1093/mnras/stw2103). DBSCAN (Ester et al. 1996) joins
pixels above the background where enough light is around them. The pixels of such a cluster are the points of DENCLUE
(Hinneburg & Keim 1998): each climbs the density of all of them, a sum of Gaussian kernels weighted by their light, in
steps of a pixel to the maximum that attracts it. An attractor with too little of the cluster's light is a part of its
neighbor. Numbers that the paper leaves to the user were chosen on other scenes than those of this benchmark.

True masks are the pixels where the light of a source alone exceeds 3 sky rms. They overlap, so that methods that give
each pixel to one source, as this one and SEP do, cannot reach all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist
from sklearn.cluster import DBSCAN

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import SIDE, crowded_scenes
from benchmarks._scenes import ONE_CAMERA, column, compare, formatted
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.detections import match_sources
from probdeblend.metrics.masks import iou
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement.mode import fwhm_of
from probdeblend.scene import GALAXY_TYPES, Scene
from probdeblend.simulation.cameras import Cameras
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import simulate
from probdeblend.training.evaluation import REACH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClusterDeblender", "Segments", "main"]

NEIGHBORS = 1.5  # pixels, the radius of DBSCAN: a pixel and the eight around it
TOUCHING = np.ones((3, 3), dtype=bool)
NUMBERS = (1, 2, 3, 5, 8)
SEPARATIONS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, np.inf)  # over the FWHM
PAIRED = (20.0, 300.0)  # signal-to-noise ratios of pairs
BRIGHT = (100.0, 300.0)  # signal-to-noise ratios of galaxies whose knots may be seen
SHOWN = (("irregular", 5), ("disk", 11), (2, 1), (8, 1))  # scenes of the figure: set and seed
Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class ClusterDeblender:
    """Clusters of the bright pixels of an image, and the density attractors in each.

    Parameters
    ----------
    threshold
        Least light of a pixel over the noise.
    light
        Least light over the noise, in a pixel and those around it, that makes it the core of a cluster.
    width, narrowest
        Standard deviation of the kernel over the radius of the cluster, and its least value in pixels.
    fraction
        Least fraction of a cluster's light that is a source of its own.
    """

    threshold: float = 3.0
    light: int = 30
    width: float = 0.1
    narrowest: float = 1.0
    fraction: float = 0.01

    def __call__(self, image: NDArray) -> NDArray[np.int64]:
        """Return the source ``(y, x)`` of each pixel of an image over its noise, from 1, and 0 for the sky."""
        labels = np.zeros(image.shape, dtype=int)
        bright = np.nan_to_num(image) > self.threshold
        if bright.any():
            scan = DBSCAN(eps=NEIGHBORS, min_samples=self.light)
            labels[bright] = scan.fit(np.argwhere(bright), sample_weight=image[bright]).labels_ + 1
        found = np.zeros_like(labels)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            own = labels[box] == number
            found[box][own] = found.max() + self._sources(np.where(own, image[box], 0.0), own)
        return found

    def _sources(self, light: NDArray, own: NDArray) -> NDArray[np.int64]:
        """Return the source of each pixel ``(pixel,)`` of one cluster, from 1."""
        width = max(self.narrowest, self.width * np.sqrt(own.sum() / np.pi))
        density = ndimage.gaussian_filter(light, width, mode="constant")
        source = np.zeros(own.shape, dtype=int)
        source[own] = 1 + climb(np.where(own, density, -np.inf))[own]
        while True:
            numbers, total = np.unique(source[own], return_inverse=True)
            total = np.bincount(total, light[own])
            faint = source == numbers[total.argmin()]
            if total.min() >= self.fraction * total.sum() or len(numbers) == 1:
                return 1 + np.searchsorted(numbers, source[own])
            edge = ndimage.binary_dilation(faint, TOUCHING) & own & ~faint
            source[faint] = source[edge][density[edge].argmax()]


def climb(density: NDArray) -> NDArray[np.int64]:
    """Return the number of the pixel ``(y, x)`` that steepest ascent ends at; pixels at minus infinity stay."""
    height, width = density.shape
    padded = np.pad(density, 1, constant_values=-np.inf)
    around = np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    step = np.add.outer(np.arange(-1, 2) * width, np.arange(-1, 2)).ravel()[around.argmax(0)]
    target = (np.arange(density.size).reshape(density.shape) + np.where(np.isfinite(density), step, 0)).ravel()
    while (target != target[target]).any():
        target = target[target]
    return target.reshape(density.shape)


class Segments(NamedTuple):
    """Sources found in scenes: their scene and center ``(source,)``, and masks ``(source, y, x)``."""

    scene: NDArray
    x: NDArray
    y: NDArray
    mask: NDArray


def clustered(scene: Scene) -> Segments:
    """Cluster the pixels of each scene, all bands together; a center is that of the light."""
    over = (scene.image / scene.sky_rms[..., None, None]).sum(1).numpy() / np.sqrt(scene.image.shape[1])
    rows, masks = [np.zeros((0, 3))], [np.zeros((0, *over.shape[1:]), dtype=bool)]
    for number, image in enumerate(over):
        labels = ClusterDeblender()(image)
        index = np.arange(1, labels.max() + 1)
        place = np.reshape(ndimage.center_of_mass(np.maximum(image, 0), labels, index), (-1, 2))
        rows.append(np.column_stack([np.full(len(index), number), place]))
        masks.append(labels == index[:, None, None])
    found, y, x = np.concatenate(rows).T
    return Segments(found, x, y, np.concatenate(masks))


def segments(posterior: Posterior) -> Segments:
    """Return the sources of a posterior, with the pixels that are more probably in their masks than not."""
    mask = np.zeros((len(posterior), *posterior.cutouts.shape), dtype=bool)
    for number, full in enumerate(mask):
        cutout = posterior.cutouts.cutout("mask", number)
        full[cutout.slices] = cutout.data >= 0.5
    return Segments(*(column(posterior, name) for name in ("scene", "x", "y")), mask)


def measure(method: Callable[[Scene], Segments], scene: Scene) -> Arrays:
    """Compare what a method finds with the truth.

    Per true source ``iou`` of its mask, NaN where it was missed; per detection ``found_real``; per scene the numbers
    ``scene_true`` and ``scene_found``, and CPU seconds. Each is listed with ``separation``: that of the closest pair of
    its scene, over the FWHM of the PSF.
    """
    began = time.process_time()
    found = method(scene)
    seconds = np.full(len(scene), (time.process_time() - began) / len(scene))
    owner, x, y = (values.double().numpy() for values in (scene.scene, scene.x, scene.y))
    match = match_sources(found[:3], (owner, x, y), radius=REACH)
    there = match >= 0
    overlap = np.full(len(match), np.nan)
    overlap[there] = iou(found.mask[match[there]], scene.mask.numpy()[there])
    places = (np.column_stack([x, y])[owner == number] for number in range(len(scene)))
    separation = np.array([pdist(place).min(initial=np.inf) for place in places])
    separation /= fwhm_of(scene.psf[:, 0]).numpy()
    counts = [np.bincount(numbers.astype(int), minlength=len(scene)) for numbers in (found.scene, owner)]
    return {
        "scene": scene.scene.numpy(),
        "iou": overlap,
        "separation": separation[scene.scene.numpy()],
        "found_real": np.isin(np.arange(len(found.scene)), match),
        "found_separation": separation[found.scene.astype(int)],
        "scene_found": counts[0],
        "scene_true": counts[1],
        "scene_separation": separation,
        "scene_seconds": seconds,
    }


def galaxies(kind: str, count: int, seed: int) -> Scene:
    """Draw bright galaxies of one kind, one in the middle of each scene, taken by one camera."""
    kinds = tuple(float(kind == name) for name in GALAXY_TYPES)
    only = {"type_probabilities": kinds, "star_fraction": 0.0}
    population = Population.default().replace(layout="centered", snr=BRIGHT, **only)
    camera = Cameras().sample(np.random.default_rng(seed))
    return simulate(count, population=population, camera=camera, size=SIDE, number=1, seed=seed)


def close_pairs(count: int, seed: int) -> Scene:
    """Draw pairs, most of them closer than in the sky, taken by one camera."""
    population = Population.default().replace(layout="paired", close_fraction=0.6, snr=PAIRED)
    camera = Cameras().sample(np.random.default_rng(seed))
    return simulate(count, population=population, camera=camera, size=SIDE, number=2, seed=seed)


SETS: dict[object, Callable[[int, int], Scene]] = {number: partial(crowded_scenes, number) for number in NUMBERS}
SETS |= {"separation": close_pairs, "irregular": partial(galaxies, "irr"), "disk": partial(galaxies, "disk")}


@benchmark("peers.clustering")
@sized_option("--count", 8, 400, help="Scenes of each number of sources, pairs, and galaxies of each kind.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Cluster pixels as ASTErIsM does, beside SEP and the network: counts and masks, and how often galaxies are split.

    Rows are groups of one to eight sources, pairs by their separation over the FWHM (from the number on), and single
    galaxies: irregular ones with knots, and disks of which a third has spiral arms. `found` is the number of
    detections over that of true sources, `right` the fraction of the scenes with the right number, and `split` of those
    with more than there are; completeness and purity are by position; `iou` is the mean overlap of the masks of what
    was found, and `masks` the fraction of all true masks that are found with an overlap of one half and more.
    """
    deblender = load(weights)
    found_by = {"clustering": clustered, "SEP": lambda scene: segments(SepDeblender(draws=2).scenes(scene))}
    found_by["network"] = lambda scene: segments(deblender.scenes(scene, draws=32))
    methods = {name: partial(measure, method) for name, method in found_by.items()}
    with run.unfinished(deblender=deblender, count=count) as kept:
        found = {
            name: compare(kept, f"scenes-{name}", count, draw, methods, seed=run.seed, chunk=ONE_CAMERA)
            for name, draw in SETS.items()
        }
        table = formatted(rows(found))
        run.write(table, figure=draw_figure(found_by))


def rows(found: dict[object, dict[str, Arrays]]) -> Iterator[dict[str, object]]:
    """Return one row per bin and method."""
    every = (0.0, np.inf)
    bins = [("sources", float(number), number, every) for number in NUMBERS]
    bins += [("separation", low, "separation", (low, high)) for low, high in pairwise(SEPARATIONS)]
    bins += [(name, 1.0, name, every) for name in ("irregular", "disk")]
    for feature, value, name, ends in bins:
        for method, arrays in found[name].items():
            row = summary(arrays, *ends)
            if row["scenes"]:
                yield {"feature": feature, "from": value, "method": method} | row


def summary(found: Arrays, low: float, high: float) -> dict[str, float]:
    """Return counts, completeness, purity and overlap in scenes whose closest pair has a separation in a bin."""
    own, theirs, scenes = (
        (found[f"{kind}separation"] >= low) & ((found[f"{kind}separation"] < high) | np.isinf(high))
        for kind in ("", "found_", "scene_")
    )
    overlap, real = found["iou"][own], found["found_real"][theirs]
    count, true = (found[name][scenes] for name in ("scene_found", "scene_true"))
    there = np.isfinite(overlap)
    return {
        "scenes": int(scenes.sum()),
        "found": count.sum() / max(true.sum(), 1),
        "right": _mean(count == true),
        "split": _mean(count > true),
        "completeness": _mean(there),
        "purity": _mean(real),
        "iou": _mean(overlap[there]),
        "masks": _mean(np.nan_to_num(overlap) >= 0.5),
        "seconds": _mean(found["scene_seconds"][scenes]),
    }


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else np.nan


def draw_figure(methods: dict[str, Callable[[Scene], Segments]]) -> Figure:
    """Draw a few scenes with the outlines of true masks and of those of each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3 * len(SHOWN)), layout="constrained")
    axes = figure.subplots(len(SHOWN), 1 + len(methods), squeeze=False)
    for row, (name, seed) in zip(axes, SHOWN, strict=True):
        scene = SETS[name](1, seed)
        true = Segments(*(v.numpy() for v in (scene.scene, scene.x, scene.y, scene.mask)))
        image = np.arcsinh((scene.image[0] / scene.sky_rms[0][:, None, None]).mean(0).numpy() / 3)
        found_by = {"truth": true} | {method: find(scene) for method, find in methods.items()}
        for axis, (title, found) in zip(row, found_by.items(), strict=True):
            axis.imshow(image, origin="lower", cmap="gray_r")
            for number, mask in enumerate(found.mask):
                axis.contour(np.pad(mask, 0).astype(float), [0.5], colors=f"C{number % 10}", linewidths=1.2)
            axis.plot(found.x, found.y, "k+", ms=5)
            axis.set(xticks=[], yticks=[], title=f"{title}: {len(found.x)}")
    return figure


if __name__ == "__main__":
    main()
