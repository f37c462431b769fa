"""Catalog crowded fields by probability: a sampler of catalogs, the network and SEP, by number and by magnitude.

Each method answers with many catalogs of an image. The sampler of `benchmarks.peers._birth_death` knows the PSF, the
noise and the prior that the scenes were drawn from, and stands for probabilistic cataloging (PCAT; Portillo et al.
2017, doi:10.3847/1538-3881/aa8565). In a catalog of the network each source is there with its existence probability, at
a position drawn from its errors, with the flux of a joint draw. SEP's catalogs always have the same sources. From each
set follow a posterior of the number of sources and a condensed catalog. A source of it is real where a true one of half
to twice its flux lies within half of the FWHM, one to one and from the highest existence probability down.

Stamps have 64 pixels on a side, one band, white noise, and up to 40 sources anywhere in them: every number is equally
probable. Fluxes are log-uniform, from a signal-to-noise ratio of 5, if isolated, to 300 of a star. The network was not
trained on such crowds: it saw up to 14 sources in 96 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._scenes import column, compare, flat_draws, formatted
from benchmarks.detections import equal_purity
from benchmarks.peers._birth_death import Prior, Target, sample_catalogs
from benchmarks.peers._templates import STAR_RADIUS, Templates
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.posterior.condensed import condensed_catalog
from probdeblend.posterior.draws import Posterior
from probdeblend.refinement.mode import fwhm_of
from probdeblend.scene import GALAXY_TYPES, SOURCE_TYPES, Scene, seed_of
from probdeblend.simulation.cameras import Cameras
from probdeblend.simulation.profiles import Components, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Crowd", "crowd", "drawn_catalogs", "judged", "main"]

SIDE = 64  # pixels
MOST = 40  # sources in a stamp
SNR = (5.0, 300.0)  # of isolated stars
CAMERAS = Cameras(fwhm=(2.6, 4.5), native_fraction=0.0, white_fraction=1.0, bands=(1.0,))
SAMPLES = 200  # catalogs of an image
LEAST_EXISTENCE = 0.5  # of what counts as listed
FLUX_FACTOR = 2.0  # between a source and a true one that it is
GALAXIES = {"stars": 0.0, "stars and small galaxies": 0.5}  # fraction of galaxies
NUMBERS = (0, 10, 20, 30, MOST + 1)  # edges of bins
MAGNITUDES = (-4.5, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0)  # edges of bins, relative to the faintest sources
COLORS = {"sampler": "C3", "network": "C0", "SEP": "C2"}
Arrays = dict[str, NDArray]


class Crowd(NamedTuple):
    """One scene, the prior that its sources were drawn from, and their templates."""

    scene: Scene
    prior: Prior
    templates: Templates


@benchmark("peers.catalogs")
@sized_option("--count", 3, 40, help="Scenes of stars, and of stars and galaxies.")
@sized_option("--moves", 20_000, 100_000, least=SAMPLES, help="Moves of the sampler to settle, and again to sample.")
@weights_option
def main(run: Run, count: int, moves: int, weights: Path | None) -> None:
    """Catalog crowded fields by probability: a sampler of catalogs, the network and SEP.

    Rows are all scenes, bins of their true numbers of sources, and bins of magnitude, which is 0 for the faintest
    sources and negative for brighter ones. `completeness` is the fraction of true sources in the condensed catalog,
    `false` the fraction of its sources that are not real, at existence probabilities of one half and more, and
    `completeness_equal` the completeness at the existence probability at which as many are false as of SEP's. `depth`
    is the magnitude at which that falls to one half, by logistic regression, and 0 if the faintest sources are still
    found more often. `number` columns have the bias and scatter
    of the median of the number of sources, its uncertainty (half of the 68 % interval), and how often the interval
    holds the true number.
    """
    deblender = load(weights)
    methods = {"sampler": partial(sampled, moves=moves, seed=run.seed)}
    methods |= {"network": partial(deblended, deblender, "total"), "SEP": partial(deblended, SepDeblender(), "auto")}
    methods = {name: partial(measure, method) for name, method in methods.items()}
    with run.unfinished(deblender=deblender, count=count, moves=moves) as kept:
        found = {}
        for number, (kind, fraction) in enumerate(GALAXIES.items()):
            draw, seed = partial(crowd, fraction), seed_of(run.seed, number)
            found[kind] = compare(kept, kind.replace(" ", "-"), count, draw, methods, seed=seed, chunk=1)
        table = formatted(rows(found))
        table.meta = {"scenes": count, "samples": SAMPLES}
        run.write(table, figure=draw_figure(found, run.seed))


def crowd(fraction: float, count: int, seed: int) -> Crowd:
    """Draw a scene of stars and a fraction of small galaxies; there is one at a time."""
    if count != 1:
        raise ValueError(f"count must be 1, got {count}")
    rng = np.random.default_rng(seed)
    camera = CAMERAS.sample(rng)
    templates = Templates.rendered(camera.psf[0], Prior.radius)
    sky_rms = float(camera.sky_rms)
    faintest = Target(templates, Prior((1.0,), (1.0, 2.0), SIDE), sky_rms).flux_error
    prior = Prior((1 / (MOST + 1),) * (MOST + 1), (SNR[0] * faintest, SNR[1] * faintest), SIDE, fraction)
    x, y, flux, radius = torch.tensor(prior.sample(rng), dtype=torch.float64).reshape(-1, 4).T
    star = radius == 0
    size = camera.pixel_scale * torch.where(star, STAR_RADIUS, radius)
    index, one = torch.where(star, 0.5, 1.0).double(), torch.ones_like(x)
    columns = [values[:, None] for values in (flux, size, index, one, 0 * one, x, y, one > 0)]
    light = render(Components(*columns), camera.psf[0].double(), pixel_scale=camera.pixel_scale, size=SIDE)
    image = light.sum(0) + sky_rms * torch.from_numpy(rng.normal(size=(SIDE, SIDE)))
    types = torch.where(star, SOURCE_TYPES.index("star"), GALAXY_TYPES.index("disk"))
    known = {name: getattr(camera, name)[None] for name in ("sky_rms", "psf", "wavelength")}
    columns = {"x": x.float(), "y": y.float(), "flux": flux[:, None].float(), "source_type": types}
    number = torch.zeros(len(x), dtype=torch.long)
    scene = Scene(image[None, None].float(), pixel_scale=camera.pixel_scale, scene=number, **known, **columns)
    return Crowd(scene, prior, templates)


def sampled(crowd: Crowd, *, moves: int, seed: int) -> Arrays:
    """Sample catalogs of a scene by reversible jumps."""
    target = Target(crowd.templates, crowd.prior, float(crowd.scene.sky_rms))
    image, rng = crowd.scene.image[0, 0].double().numpy(), np.random.default_rng([seed, 1])
    return sample_catalogs(image, target, moves=moves, samples=SAMPLES, rng=rng)


def deblended(deblender: Deblends, kind: str, crowd: Crowd) -> Arrays:
    """Draw catalogs of a scene from a deblender's posterior."""
    return drawn_catalogs(deblender.scenes(crowd.scene), SAMPLES, kind=kind)


def drawn_catalogs(posterior: Posterior, samples: int, *, kind: str = "total", seed: int = 0) -> Arrays:
    """Draw catalogs of one scene from a posterior: arrays ``sample, x, y, flux`` with one value per source of each.

    Each source is there with its existence probability, independently of the others, as bright as in a joint draw, of
    the first band, and where a normal distribution with its position's errors says; where probability or errors are not
    known, it is always there, or always at one place. Fluxes that are not positive are those of no source.
    """
    rng = np.random.default_rng(seed)
    flux = flat_draws(posterior, kind)[..., 0]
    flux = rng.permutation(flux)[np.arange(samples) % len(flux)]
    existence = np.nan_to_num(column(posterior, "existence"), nan=1.0)
    there = (rng.random(flux.shape) < existence) & (flux > 0)
    place = [
        column(posterior, name) + np.nan_to_num(column(posterior, f"{name}_err")) * rng.normal(size=flux.shape)
        for name in "xy"
    ]
    return {"sample": np.nonzero(there)[0]} | dict(
        zip(("x", "y", "flux"), (v[there] for v in (*place, flux)), strict=True)
    )


def measure(method: Callable[[Crowd], Arrays], crowd: Crowd) -> Arrays:
    """Compare the catalogs that a method draws of a scene with the truth.

    Per true source its ``magnitude``, and ``existence`` in the condensed catalog, 0 where it is not; per source of that
    catalog ``found_existence``, ``found_real``, ``found_magnitude``, ``found_x`` and ``found_y``; per scene numbers
    of sources, ``scene_true`` and quantiles of the catalogs', ``scene_found``, the length of the condensed catalog, and
    CPU seconds; ``of_scene`` and ``found_of_scene`` have the true number again.
    """
    began = time.process_time()
    catalogs = method(crowd)
    radius = float(fwhm_of(crowd.scene.psf)) / 2
    values = [catalogs[name] for name in ("sample", "x", "y", "flux")]
    found = condensed_catalog(*values, radius=radius, samples=SAMPLES)
    seconds = time.process_time() - began
    true = [getattr(crowd.scene, name).double().numpy().ravel() for name in ("x", "y", "flux")]
    real = judged([found[name].data for name in ("x", "y", "flux_50")], true, radius=radius)
    existence = np.zeros(len(true[0]))
    existence[real[real >= 0]] = found["existence"][real >= 0]
    low, middle, high = np.quantile(np.bincount(catalogs["sample"], minlength=SAMPLES), (0.16, 0.5, 0.84))
    number = len(existence)
    magnitude, found_magnitude = (-2.5 * np.log10(v / crowd.prior.flux[0]) for v in (true[2], found["flux_50"].data))
    return {
        "scene": np.zeros(number, dtype=int),
        "of_scene": np.full(number, number),
        "magnitude": magnitude,
        "existence": existence,
        "found_of_scene": np.full(len(found), number),
        "found_existence": found["existence"].data,
        "found_real": (real >= 0).astype(int),
        "found_magnitude": found_magnitude,
        "found_x": found["x"].data,
        "found_y": found["y"].data,
        "scene_true": np.array([number]),
        "scene_low": np.array([low]),
        "scene_middle": np.array([middle]),
        "scene_high": np.array([high]),
        "scene_found": np.array([len(found)]),
        "scene_seconds": np.array([seconds]),
    }


def judged(found: Sequence[NDArray], true: Sequence[NDArray], *, radius: float) -> NDArray[np.int64]:
    """Return the true source that each source of a catalog ``x, y, flux`` is, -1 for none.

    The first of the catalog chooses first, the nearest true source of a similar flux that is free.
    """
    free, answer = np.ones(len(true[0]), dtype=bool), np.full(len(found[0]), -1)
    for number, (x, y, flux) in enumerate(zip(*found, strict=True)):
        distance = np.hypot(true[0] - x, true[1] - y)
        fits = free & (distance <= radius) & (np.abs(np.log(true[2] / flux)) <= np.log(FLUX_FACTOR))
        if fits.any():
            answer[number] = np.where(fits, distance, np.inf).argmin()
            free[answer[number]] = False
    return answer


def rows(found: dict[str, dict[str, Arrays]]) -> Iterator[dict[str, object]]:
    """Return one row per kind of scenes, bin and method."""
    bins = [("all", -np.inf, np.inf)]
    bins += [("number", *ends) for ends in pairwise(NUMBERS)]
    bins += [("magnitude", *ends) for ends in pairwise(MAGNITUDES)]
    for kind, methods in found.items():
        listed = methods["SEP"]["found_existence"] >= LEAST_EXISTENCE
        purity = methods["SEP"]["found_real"][listed].mean() if listed.any() else 1.0
        for feature, low, high in bins:
            for method, arrays in methods.items():
                row = {"sources": kind, "method": method, "feature": feature, "low": low, "high": high}
                row |= summary(arrays, feature, (low, high), equal_purity(arrays, purity))
                if row["true"]:
                    yield row


def summary(found: Arrays, feature: str, ends: tuple[float, float], threshold: float) -> dict[str, float]:
    """Return completeness, false discoveries and numbers in a bin; `threshold` is that of equal purity."""
    names = {"magnitude": ("magnitude", "found_magnitude", None)}
    own, theirs, scenes = (
        np.ones(len(found[of]), dtype=bool) if name is None else (found[name] >= ends[0]) & (found[name] < ends[1])
        for of, name in zip(
            ("existence", "found_real", "scene_true"),
            names.get(feature, ("of_scene", "found_of_scene", "scene_true")),
            strict=True,
        )
    )
    existence, listed = found["existence"][own], theirs & (found["found_existence"] >= LEAST_EXISTENCE)
    row = {"true": int(own.sum()), "completeness": _mean(existence >= LEAST_EXISTENCE)}
    row |= {"false": _mean(found["found_real"][listed] == 0), "completeness_equal": _mean(existence >= threshold)}
    row["depth"] = _depth(found["magnitude"][own], existence >= threshold) if feature != "magnitude" else np.nan
    true, low, middle, high = (found[f"scene_{name}"][scenes] for name in ("true", "low", "middle", "high"))
    inside = (low <= true) & (true <= high)
    numbers = {"number_bias": _mean(middle - true), "number_scatter": np.sqrt(_mean((middle - true) ** 2))}
    numbers |= {"number_error": _mean((high - low) / 2), "number_within": _mean(inside)}
    numbers["seconds"] = _mean(found["scene_seconds"][scenes])
    return row | (dict.fromkeys(numbers, np.nan) if feature == "magnitude" else numbers)


def _mean(values: NDArray) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def _depth(magnitude: NDArray, found: NDArray) -> float:
    """Return the magnitude at which half of the sources are found, 0 at most; NaN without found and missed ones."""
    if found.all() or not found.any():
        return np.nan
    fit = LogisticRegression(C=np.inf).fit(magnitude[:, None], found)
    return min(float(-fit.intercept_[0] / fit.coef_[0, 0]), MAGNITUDES[-1])


def draw_figure(found: dict[str, dict[str, Arrays]], seed: int) -> Figure:
    """Draw the first scene of each kind with true sources (+) and those of the condensed catalogs (circles)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(COLORS), 4.3 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), len(COLORS), squeeze=False)
    for number, (row, (kind, methods)) in enumerate(zip(axes, found.items(), strict=True)):
        scene = crowd(GALAXIES[kind], 1, seed_of(seed_of(seed, number), 1)).scene
        image = np.arcsinh(scene.image[0, 0].numpy() / float(scene.sky_rms) / 3)
        for axis, (method, arrays) in zip(row, methods.items(), strict=True):
            axis.imshow(image, origin="lower", cmap="gray_r")
            axis.plot(scene.x, scene.y, "k+", ms=5)
            listed = np.arange(len(arrays["found_x"])) < arrays["scene_found"][0]
            listed &= arrays["found_existence"] >= LEAST_EXISTENCE
            place = arrays["found_x"][listed], arrays["found_y"][listed]
            axis.plot(*place, "o", mfc="none", mec=COLORS[method], ms=9)
            axis.set(xticks=[], yticks=[], title=f"{method}: {listed.sum()} of {len(scene.x)} {kind}")
    return figure


if __name__ == "__main__":
    main()
