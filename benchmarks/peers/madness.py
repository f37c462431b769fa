"""Measure galaxies in fields of LSST as MADNESS does, beside SEP, scarlet2 and no deblending at all.

MADNESS (Biswas et al. 2025, doi:10.1051/0004-6361/202451887) subtracts from a field the models of all galaxies but one,
and measures this one with SEP in an ellipse of twice its semi-axes, which are those of the half-light ellipse and half
the FWHM of the PSF in quadrature. The error is relative to the same measurement with the true light of the others
subtracted: the noise in the ellipse is in both, so that only errors of the deblending count. Contamination is the light
of others in the ellipse over that of its own; the published means are of galaxies with at most 5.

The network's model of a galaxy is a Sérsic profile of the flux, size, shape and index that it tells. Its light is that
of the pixels, divided in proportion to these models: where an error of the flux of a bright galaxy leaves or takes much
of a faint neighbor, dividing does less harm than subtracting models, for which "network, models" stands. Deblended
images ("network, images") are divided pixels, too, but end where a galaxy is no longer seen, so that what bright
neighbors have beyond is left. SEP's are its segments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._scenes import column, compare, formatted, positions
from benchmarks.peers import _scarlet2
from benchmarks.peers._lsst import BANDS, LEAST_SNR, SEEING, field, signal_to_noise
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import LN_FLUX_UNIT, Scene
from probdeblend.simulation.profiles import Components, render
from probdeblend.simulation.scenes import auto_over_total

__all__ = [
    "Answer",
    "Ellipses",
    "aperture_flux",
    "contamination",
    "cosine",
    "divided",
    "main",
    "measure",
    "models",
    "summary",
]

RADIUS = 2.0  # semi-axes of the ellipses
DARK = 1e-3  # sky rms, as faint as which models have no light
MOST = 5.0  # contamination of galaxies that count
BINS = (-np.inf, 0.03, 0.1, 0.3, 1.0, MOST, np.inf)  # of contamination
COLORS = (("g", "r"), ("r", "i"), ("i", "z"))
NETWORK_BANDS = ("g", "r", "i")  # the network was trained on up to three
R = BANDS.index("r")
Arrays = dict[str, NDArray]


class Ellipses(NamedTuple):
    """Where galaxies are, in pixels: centers, semi-axes ``(source, band)``, and angles in radians ``(source,)``."""

    x: NDArray
    y: NDArray
    semi_major: NDArray
    semi_minor: NDArray
    angle: NDArray

    @classmethod
    def of(cls, scene: Scene) -> Ellipses:
        """Return those of a scene's true galaxies, as wide as they are seen in each band of LSST."""
        names = ("x", "y", "half_light_radius", "axis_ratio", "angle")
        x, y, radius, ratio, angle = (getattr(scene, name).double().numpy() for name in names)
        blur = np.array(SEEING) / 2
        axes = (np.hypot(radius[:, None] * ratio[:, None] ** power, blur) / scene.pixel_scale for power in (-0.5, 0.5))
        return cls(x, y, *axes, (angle + math.pi / 2) % math.pi - math.pi / 2)


class Answer(NamedTuple):
    """What a method says of a scene, NaN where it says nothing.

    Parameters
    ----------
    light
        Light ``(source, band, y, x)`` that others are freed from.
    model
        Image of each source alone, of the same shape.
    flux
        The method's own fluxes ``(source, band)``.
    true
        What these should be.
    """

    light: NDArray
    model: NDArray
    flux: NDArray
    true: NDArray


def aperture_flux(image: NDArray, light: NDArray, ellipses: Ellipses) -> NDArray[np.float64]:
    """Return fluxes ``(source, band)`` in ellipses on an image ``(band, y, x)`` less the light of the other sources."""
    import sep

    rest = image - light.sum(0)
    flux = np.empty(light.shape[:2])
    for number, band in np.ndindex(flux.shape):
        pixels = np.ascontiguousarray(rest[band] + light[number, band], dtype=np.float64)
        place = [ellipses.x[number], ellipses.y[number], ellipses.semi_major[number, band]]
        place += [ellipses.semi_minor[number, band], ellipses.angle[number]]
        flux[number, band] = sep.sum_ellipse(pixels, *([value] for value in place), RADIUS)[0][0]
    return flux


def cosine(light: NDArray, true: NDArray) -> NDArray[np.float64]:
    """Return the cosine ``(...)`` of the angle between images ``(..., y, x)``, as vectors; 0 for one without light."""
    product = np.einsum("...yx,...yx->...", light, true)
    size = np.linalg.norm(light, axis=(-2, -1)) * np.linalg.norm(true, axis=(-2, -1))
    return np.where(size == 0, 0.0, product / np.where(size == 0, 1.0, size))


def contamination(image: NDArray, true: NDArray, ellipses: Ellipses) -> NDArray[np.float64]:
    """Return light of others over own light in each ellipse in r ``(source,)``, given true light alone."""
    own = aperture_flux(image, true, ellipses)[:, R]
    return aperture_flux(image, np.zeros_like(true), ellipses)[:, R] / own - 1


def measure(method: Callable[[Scene], Answer], scene: Scene) -> Arrays:
    """Compare what a method says of one scene with the truth.

    Per galaxy and band, relative to the truth, ``error`` in the ellipse, ``divided_error`` there if pixels are divided
    in proportion to the method's models, whatever it is, and ``own_error`` of the method's own flux; ``cosine`` with
    the true image, and signal-to-noise ratio ``snr``; per galaxy ``contamination``; per scene CPU seconds.
    """
    began = time.process_time()
    answer = method(scene)
    seconds = time.process_time() - began
    image, true, ellipses = scene.image[0].double().numpy(), scene.light.double().numpy(), Ellipses.of(scene)
    truth = aperture_flux(image, true, ellipses)
    shared = divided(scene, answer.model)
    flux, radius = scene.flux.double().numpy(), scene.half_light_radius.double().numpy()
    return {
        "scene": scene.scene.numpy(),
        "error": aperture_flux(image, answer.light, ellipses) / truth - 1,
        "divided_error": aperture_flux(image, shared, ellipses) / truth - 1,
        "own_error": answer.flux / answer.true - 1,
        "cosine": cosine(answer.model, true),
        "snr": signal_to_noise(flux, radius),
        "contamination": contamination(image, true, ellipses),
        "scene_seconds": np.array([seconds]),
    }


def deblended(
    deblender: Deblends, scene: Scene, *, way: str = "divided", bands: tuple[str, ...] = NETWORK_BANDS
) -> Answer:
    """Ask a network about some bands, at the true positions; its own fluxes are means of total fluxes.

    Light is that of the pixels "divided" in proportion to the `models`, that of the "models", or deblended "images".
    """
    index = [BANDS.index(name) for name in bands]
    seen = in_bands(scene, index)
    posterior = deblender.scenes(seen, positions=positions(seen))
    (light, flux), model = _nothing(scene), _nothing(scene)[0]
    flux[:, index] = posterior.flux.values.mean((0, 1))
    model[:, index] = models(posterior, flux[:, index], seen.psf[0]) if way != "images" else 0.0
    if way == "images":
        for number in range(len(posterior)):
            cutout = posterior.cutouts.cutout("image", number)
            model[number, index, *cutout.slices] = cutout.data
    light[:, index] = divided(seen, model[:, index]) if way == "divided" else model[:, index]
    return Answer(light, model, flux, scene.flux.double().numpy())


def divided(scene: Scene, model: NDArray) -> NDArray[np.float64]:
    """Divide the pixels of a scene in proportion to models ``(source, band, y, x)``, where these have light."""
    model, sky_rms = np.maximum(model, 0), scene.sky_rms[0].double().numpy()[:, None, None]
    return scene.image[0].double().numpy() * model / (model.sum(0) + DARK * sky_rms)


def models(posterior: Posterior, flux: NDArray, psf: Tensor) -> NDArray[np.float64]:
    """Return Sérsic profiles ``(source, band, y, x)`` as a posterior tells, of given fluxes ``(source, band)``."""
    names = ("half_light_radius", "sersic_index", "axis_ratio", "angle", "x", "y")
    known = [torch.from_numpy(column(posterior, name)).double()[:, None] for name in names]
    known[1] = known[1].clamp(0.5, 6.0)
    one = torch.ones_like(known[0])
    components = Components(one, *known, one > 0)
    settings = {"pixel_scale": posterior.dataset.attrs["pixel_scale"], "size": posterior.cutouts.shape[0]}
    unit = torch.stack([render(components, own.double(), **settings) for own in psf], 1).numpy()
    return unit * flux[..., None, None]


def segmented(scene: Scene) -> Answer:
    """Ask SEP: the image of a galaxy is what lies in its segment, and its own flux a Kron flux."""
    posterior = SepDeblender(draws=2).scenes(scene, positions=positions(scene))
    image, light = scene.image[0].double().numpy(), np.zeros(scene.light.shape)
    for number in range(len(posterior)):
        cutout = posterior.cutouts.cutout("mask", number)
        light[number][:, *cutout.slices] = image[:, *cutout.slices] * cutout.data
    unit = scene.light / scene.flux[..., None, None]
    kron = [[*map(auto_over_total, *pair)] for pair in zip(unit, (scene.flux / scene.sky_rms).tolist(), strict=True)]
    flux = posterior.flux_auto.values.mean((0, 1))
    return Answer(light, light, flux, scene.flux.double().numpy() * np.array(kron))


def scarlet2_fit(scene: Scene) -> Answer:
    """Ask scarlet2, at the true positions, about all bands."""
    image, sky_rms, psf = (getattr(scene, name)[0].double().numpy() for name in ("image", "sky_rms", "psf"))
    place = np.column_stack([scene.x.double().numpy(), scene.y.double().numpy()])
    try:
        found = _scarlet2.fit(image, sky_rms[:, None, None], psf, place)
    except RuntimeError:  # it diverged
        light, flux = _nothing(scene)
        return Answer(light, light, flux, scene.flux.double().numpy())
    return Answer(found.light, found.light, found.flux, scene.flux.double().numpy())


def not_deblended(scene: Scene) -> Answer:
    """Leave the light of others where it is."""
    light, flux = _nothing(scene)
    return Answer(np.zeros(light.shape), light, flux, scene.flux.double().numpy())


def known_light(scene: Scene) -> Answer:
    """Know the light of all others: what error the noise alone makes in the ellipse is that of its own flux."""
    ellipses, true = Ellipses.of(scene), scene.light.double().numpy()
    flux = aperture_flux(scene.image[0].double().numpy(), true, ellipses)
    return Answer(true, true, flux, aperture_flux(true.sum(0), true, ellipses))


def in_bands(scene: Scene, index: list[int]) -> Scene:
    """Return the images of a scene and the places of its sources in some of the bands."""
    names = ("image", "sky_rms", "psf", "exposure", "noise_kernel", "wavelength")
    cut = {name: getattr(scene, name)[:, index] for name in names}
    cut |= dict.fromkeys(("flux", "light"))
    return replace(scene, zero_point=tuple(scene.zero_point[band] for band in index), **cut)


def _nothing(scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.full(scene.light.shape, np.nan), np.full(scene.flux.shape, np.nan)


@benchmark("peers.madness")
@sized_option("--count", 6, 200, help="Fields.")
@sized_option("--scarlet2", 2, 60, least=0, help="Fields of these that scarlet2 fits, where it is installed.")
@weights_option
def main(run: Run, count: int, scarlet2: int, weights: Path | None) -> None:
    """Deblend fields of LSST at true positions, beside SEP, scarlet2 and no deblending, measured as MADNESS is.

    Rows are methods, for all galaxies whose contamination is at most 5, and by contamination; those of "first fields"
    are about the fields that scarlet2 has fitted. `mean` and `median` columns have the absolute error in percent of
    fluxes in ellipses, with the standard error of the mean in r, `divided` that of any method if pixels are divided in
    proportion to its models; `own` columns that of the method's own flux, for "known light" what noise alone does in
    the ellipse; `found` is the fraction of galaxies that have one. Bands other than r are of galaxies that are bright
    enough in them. `cosine` is the median in r, and colors are mean absolute errors in magnitudes.
    """
    deblender = load(weights)
    methods = {
        "network": partial(deblended, deblender),
        "network, six bands": partial(deblended, deblender, bands=BANDS),
        "network, models": partial(deblended, deblender, way="models"),
        "network, images": partial(deblended, deblender, way="images"),
        "SEP": segmented,
        "no deblending": not_deblended,
        "known light": known_light,
    }
    methods = {name: partial(measure, method) for name, method in methods.items()}
    fitted = min(scarlet2, count) if _scarlet2.installed() else 0
    with run.unfinished(deblender=deblender, count=count, scarlet2=fitted) as kept:
        settings = {"draw": _one_field, "seed": run.seed, "chunk": 1}
        found = compare(kept, "fields", count, methods=methods, **settings)
        if fitted:
            peer = {"scarlet2": partial(measure, scarlet2_fit)}
            peer = compare(kept, "scarlet2", fitted, methods=peer, **settings)
            first = {name: _first(arrays, fitted) for name, arrays in found.items()} | peer
        else:
            first = {}
        table = formatted([*rows("all", found), *rows("first fields", first)])
        table.meta = {"network_bands": "".join(NETWORK_BANDS)} | numbers(found["known light"])
        run.write(table)


def _one_field(count: int, seed: int) -> Scene:
    if count != 1:
        raise ValueError(f"count must be 1, got {count}")
    return field(seed)


def _first(found: Arrays, fields: int) -> Arrays:
    own = found["scene"] < fields
    return {name: v[:fields] if name.startswith("scene_") else v[own] for name, v in found.items()}


def rows(fields: str, found: Mapping[str, Arrays]) -> Iterator[dict[str, object]]:
    """Return one row per bin of contamination and method."""
    for low, high in [(-np.inf, MOST), *pairwise(BINS)]:
        for method, arrays in found.items():
            row = summary(arrays, low, high)
            if row["galaxies"]:
                yield {"fields": fields, "method": method, "above": low, "up_to": high} | row


def summary(found: Arrays, low: float, high: float) -> dict[str, float]:
    """Return mean and median errors of galaxies whose contamination is above `low` and at most `high`."""
    chosen = (found["contamination"] > low) & (found["contamination"] <= high)
    bright = found["snr"][chosen] >= LEAST_SNR
    error, own, alike = (np.where(bright, found[name][chosen], np.nan) for name in ("error", "own_error", "cosine"))
    sizes, own_sizes = 100 * np.abs(error), 100 * np.abs(own)
    row = {"galaxies": int(chosen.sum()), "mean_r": _mean(sizes[:, R])}
    row["mean_r_error"] = _mean_error(sizes[:, R], found["scene"][chosen])
    row["divided_mean_r"] = _mean(100 * np.abs(found["divided_error"][chosen, R]))
    row |= {"median_r": _median(sizes[:, R]), "own_mean_r": _mean(own_sizes[:, R])}
    row |= {"own_median_r": _median(own_sizes[:, R]), "found": _mean(1.0 * np.isfinite(own[:, R]))}
    row["cosine"] = _median(alike[:, R])
    for name, step in ((f"{one}-{two}", (BANDS.index(one), BANDS.index(two))) for one, two in COLORS):
        for kind, values in (("", error), ("own_", own)):
            ratio = (1 + values[:, step[0]]) / (1 + values[:, step[1]])
            row[f"{kind}{name}"] = _mean(LN_FLUX_UNIT * np.abs(np.log(np.where(ratio > 0, ratio, np.nan))))
    for number, name in enumerate(BANDS):
        if number != R:
            row |= {f"mean_{name}": _mean(sizes[:, number]), f"median_{name}": _median(sizes[:, number])}
    return row | {"seconds": _mean(found["scene_seconds"])}


def numbers(found: Arrays) -> dict[str, float]:
    """Return how many fields and galaxies there are, and which fraction of these is contaminated beyond what counts."""
    return {
        "fields": len(found["scene_seconds"]),
        "galaxies": len(found["scene"]),
        "excluded": float((found["contamination"] > MOST).mean()),
    }


def _mean_error(values: NDArray, scene: NDArray) -> float:
    """Return the standard error of a mean of galaxies, of which those of a field belong together."""
    known = np.isfinite(values)
    sums = np.bincount(scene[known], values[known] - values[known].mean()) if known.any() else np.zeros(0)
    return float(np.sqrt((sums**2).sum()) / known.sum()) if np.count_nonzero(sums) > 1 else np.nan


def _mean(values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _median(values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


if __name__ == "__main__":
    main()
