"""Tests that need no truth: whether the network agrees with itself, and with what it was not shown.

- *Repeats*: the same sources in two exposures of one sky. Simulated ones have two realizations of their noise, at equal
  and at four times the exposure. No two images of our real data overlap, so real ones are split in two: with noise m
  of the level and correlation that the image has, ``image + a m`` and ``image - m / a`` have independent noise (data
  fission: Rasines & Young 2023, doi:10.1093/biomet/asac070), of equal depth for a = 1 and fourfold for a = 2. Errors
  of the model are common to both and cancel, so that z scatters by less than 1 where they are larger than the noise, as
  they are for bright sources: there, only a scatter above 1 is a fault.
- *Blending excess*: a source measured in its blend and alone. Errors of the model cancel here too.
- *Held-out bands* of real HSC blends, predicted from the bands on either side, as images with one flux per source, and
  as fluxes: the color that the neighbors predict, with the scatter of the population's colors, against the measurement.
- *Held-out pixels* of real HSC blends, predicted from the draws of fluxes, positions and shapes.

Bands are 68 % intervals by bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.stats import mad_std
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._held_out import (
    BANDS,
    BETWEEN,
    NOISE_KERNEL,
    WAVELENGTH,
    Blend,
    color_pull,
    data_folder,
    held_band,
    held_pixels,
    hsc_blends,
    interpolation,
    measured_snr,
)
from benchmarks._populations import crowded_scenes
from benchmarks._real import blending_excess, difference
from benchmarks._scenes import ONE_CAMERA, compare, formatted, positions
from probdeblend.deblending.deblender import Deblender, Deblends
from probdeblend.deblending.weights import load
from probdeblend.metrics.coverage import bootstrap
from probdeblend.photometry.noise import add_noise, correlated_noise
from probdeblend.photometry.sky import estimate_noise_kernel, subtract_sky
from probdeblend.posterior.flags import Flag
from probdeblend.scene import LN_FLUX_UNIT, Scene, correlation_sum, seed_of
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import simulate
from probdeblend.training.evaluation import signal_to_noise

__all__ = ["Image", "color_scatter", "judged", "main", "measured_twice", "observed_twice", "split"]

DEPTHS = {"equal depth": 1.0, "fourfold exposure": 4.0}
NUMBERS = (1, 2, 3, 5)  # sources per scene
SNR = (5.0, 20.0, 100.0, np.inf)
RATIO = (-np.inf, 1.0, 5.0, 20.0, np.inf)  # expected light of a pixel over its noise
# Exposures in s. The cut-out gds_H.gf18160 is of two depths, and left out.
CUTOUTS = {
    **dict.fromkeys((f"candels_f160w/egs_H.gf{name}.fits" for name in (10518, 12782, 1690, 27018)), 3200.0),
    **dict.fromkeys((f"candels_f160w/gds_H.gf{name}.fits" for name in (16440, 18959)), 3200.0),
    "xdf/f160w_sci.fits": 2.4e5,
}
SMALL_CUTOUTS = 2
METHODS = ("network", "SEP", "SEP, grown", "whole")
PICTURED = 4  # blends
MOST_GROUPS = 10**6  # of an image
Arrays = dict[str, NDArray]


@benchmark("consistency")
@sized_option("--count", 6, 120, help="Simulated scenes of each number of sources.")
@sized_option("--blends", 4, 98, help="Real blends of HSC.")
@weights_option
def main(run: Run, count: int, blends: int, weights: Path | None) -> None:
    """Compare the network with itself and with what it was not shown: repeats, blends, held-out bands and pixels."""
    deblender, real = load(weights), hsc_blends(blends)
    images = [*_hsc_images(real), *_cutouts(deblender, None if run.full else SMALL_CUTOUTS)]
    with run.unfinished(deblender=deblender, count=count, blends=blends) as kept:
        rows = [*_simulated(deblender, kept, count, run.seed)]
        rows += [*_real_repeats(deblender, kept, images, run.seed)]
        rows += [*_bands(deblender, kept, real, run.seed), *_pixels(deblender, kept, real, run.seed)]
        run.write(formatted(rows), figure=picture(deblender, real[:PICTURED]))


def judged(found: Arrays, edges: Sequence[float] = (), *, of: str = "snr") -> Iterator[dict[str, object]]:
    """Yield rows that sum up z, in bins of a feature: scatter with its band, and fractions within one and two sigma."""
    bins = list(pairwise(edges)) or [(-np.inf, np.inf)]
    for low, high in bins:
        chosen = np.isfinite(found["z"])
        if edges:
            chosen &= (found[of] >= low) & (found[of] < high)
        z = found["z"][chosen]
        name = "" if not edges else f"{of} < {high:g}" if np.isinf(low) else f"{of} {low:g} to {high:g}"
        row: dict[str, object] = {"bin": name, "values": len(z)}
        if len(z) > 1:
            owner = found["scene"][chosen]
            band = bootstrap(lambda rows, z=z: float(mad_std(z[rows])), owner)
            row |= {"z_median": np.median(z), "z_sd": mad_std(z), "z_sd_low": band[0], "z_sd_high": band[1]}
            row |= {"within_68": np.mean(np.abs(z) < 1), "within_95": np.mean(np.abs(z) < 1.96)}
            if "difference" in found:
                row["scatter_mag"] = LN_FLUX_UNIT * mad_std(found["difference"][chosen])
        yield row


def _simulated(deblender: Deblender, kept: Path, count: int, seed: int) -> Iterator[dict[str, object]]:
    methods: dict[str, Callable] = {
        name: partial(observed_twice, deblender, depth=depth) for name, depth in DEPTHS.items()
    }
    methods["blending"] = partial(blending_excess, deblender, kind="total")
    found = {}
    for number in NUMBERS:
        draw = partial(crowded_scenes, number)
        found[number] = compare(kept, f"simulated-{number}", count, draw, methods, seed=seed, chunk=ONE_CAMERA)
    for name in DEPTHS:
        every = _joined([found[number][name] for number in NUMBERS])
        yield from ({"test": "repeats", "images": "simulated", "case": name} | row for row in judged(every, SNR))
    for number in NUMBERS:
        case = {"test": "blending excess", "images": "simulated", "case": f"{number} sources"}
        yield from (case | row for row in judged(found[number]["blending"], (SNR[0], np.inf)))


def observed_twice(deblender: Deblends, scene: Scene, *, depth: float, seed: int = 0) -> Arrays:
    """Observe scenes twice, the second time with `depth` times the exposure, and compare the total fluxes."""
    posteriors = []
    for number, deeper in enumerate((1.0, depth)):
        taken = {"sky_rms": scene.sky_rms / deeper**0.5, "exposure": scene.exposure * deeper}
        light = torch.zeros_like(scene.image).index_add_(0, scene.scene, scene.light)
        generator = torch.Generator().manual_seed(seed_of(seed, number + 1, int(deeper)))
        image = add_noise(light, **taken, noise_kernel=scene.noise_kernel, generator=generator)
        posteriors.append(
            deblender.scenes(replace(scene, image=image, **taken), positions=positions(scene), seed=seed + number)
        )
    known = {"scene": scene.scene.numpy(), "snr": signal_to_noise(scene)}
    return known | difference(*posteriors, kind="total")


@dataclass(frozen=True, eq=False)
class Image:
    """A real image in one band: pixels, variance of their noise and its kernel, and arguments of a deblender."""

    survey: str
    pixels: NDArray[np.float64]
    variance: NDArray[np.float64]
    kernel: torch.Tensor
    sky_rms: float
    settings: dict[str, object]


def _hsc_images(blends: Sequence[Blend]) -> Iterator[Image]:
    band = BANDS.index("i")
    for blend in blends:
        known = blend.settings([band])
        rms = float(known.pop("sky_rms")[0])
        yield Image("HSC i", blend.image[band], blend.variance[band], NOISE_KERNEL, rms, known)


def _cutouts(deblender: Deblender, most: int | None) -> Iterator[Image]:
    """Yield cut-outs in F160W with the sources that are detected there, but for those at an edge."""
    for name in list(CUTOUTS)[-(most or 0) :]:
        exposure, survey = CUTOUTS[name], "XDF F160W" if name.startswith("xdf") else "CANDELS F160W"
        with fits.open(data_folder() / name) as hdus:
            pixels = hdus[0 if survey.startswith("XDF") else 1].data.astype(np.float64)
        pixels, noise = subtract_sky(pixels)
        kernel, rms = estimate_noise_kernel(pixels / noise), float(np.median(noise))
        found = deblender(pixels, psf="candels_f160w", sky_rms=rms, gain=exposure)
        good = (found.dataset["existence"].values > 0.5) & (found.flags & int(Flag.EDGE) == 0)
        place = np.stack([found.dataset[name].values[good] for name in "xy"], -1)
        if not len(place):
            continue
        counts = exposure * float(correlation_sum(kernel))
        variance = rms**2 + ndimage.gaussian_filter(pixels, 1.0).clip(0) / counts
        known = {"psf": "candels_f160w", "gain": exposure, "positions": place}
        yield Image(survey, pixels, variance, kernel, rms, known)


def _real_repeats(deblender: Deblender, kept: Path, images: Sequence[Image], seed: int) -> Iterator[dict[str, object]]:
    for survey in dict.fromkeys(image.survey for image in images):
        own = [image for image in images if image.survey == survey]
        for name, depth in DEPTHS.items():
            ask = partial(measured_twice, deblender, depth=depth)
            every = _asked(kept, f"repeats {survey} {name}", own, ask, seed)
            yield from ({"test": "repeats", "images": survey, "case": name} | row for row in judged(every, SNR))


def draw_noise(shape: tuple[int, ...], kernel: torch.Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw noise of unit variance ``(..., y, x)`` with the correlation of a kernel."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return correlated_noise(shape, kernel.cpu().double(), generator=generator).numpy()


def split(image: Image, ratio: float, rng: np.random.Generator) -> list[tuple[NDArray, float]]:
    """Split an image in two of independent noise; return pixels and the factor on the variance of each."""
    extra = np.sqrt(image.variance) * draw_noise(image.pixels.shape, image.kernel, rng)
    return [(image.pixels + share * extra, 1 + share**2) for share in (ratio, -1 / ratio)]


def measured_twice(deblender: Deblender, image: Image, *, depth: float, seed: int = 0) -> Arrays:
    """Split a real image in two, the second with `depth` times the exposure, and compare the total fluxes."""
    posteriors = []
    for number, (pixels, factor) in enumerate(split(image, depth**0.5, np.random.default_rng([seed, int(depth)]))):
        known = image.settings | {"gain": image.settings["gain"] / factor, "sky_rms": image.sky_rms * factor**0.5}
        posteriors.append(deblender(pixels, **known, seed=seed + number))
    first, second = posteriors
    snr = measured_snr(second, image.sky_rms * (1 + 1 / depth) ** 0.5) / depth**0.5  # in the first one
    group = first.dataset["group"].values
    return {"snr": snr, "group": group} | difference(first, second, kind="total")


def _bands(deblender: Deblender, kept: Path, blends: Sequence[Blend], seed: int) -> Iterator[dict[str, object]]:
    for band in BETWEEN:
        rows = _asked(kept, f"band {band}", blends, partial(_chi2, deblender, band=band), seed)
        for method in METHODS:
            chi2 = rows[method]
            low, high = bootstrap(lambda some, c=chi2: float(np.median(c[some])), rows["scene"])
            case = {"test": "held-out band", "images": f"HSC {band}", "case": method, "bin": "", "values": len(chi2)}
            yield (
                case
                | {"chi2": np.median(chi2), "chi2_low": low, "chi2_high": high}
                | {"network_better": np.nan if method == "network" else np.mean(rows["network"] < chi2)}
            )
    for band in BETWEEN:
        scatter = color_scatter(band)
        ask = partial(color_pull, deblender, band=band, scatter=scatter)
        every = _asked(kept, f"color {band}", blends, ask, seed)
        case = {"test": "predicted flux", "images": f"HSC {band}", "case": f"prior's scatter {scatter:.3f}"}
        yield from (case | row for row in judged(every, SNR))


def _chi2(deblender: Deblender, blend: Blend, *, band: str, seed: int) -> Arrays:
    found = held_band(deblender, blend, band, seed=seed)
    return {name: np.atleast_1d(found[name]) for name in (*METHODS, "sources", "segments")}


def color_scatter(band: str, *, count: int = 50) -> float:
    """Return the scatter of ln flux in a band around the interpolation between its neighbors, in the population."""
    first, last = BETWEEN[band][1:]
    waves = [WAVELENGTH[BANDS.index(name)] for name in (first, band, last)]
    psf = torch.zeros(3, 3, 3).index_put_((torch.arange(3), torch.tensor(1), torch.tensor(1)), torch.ones(()))
    psf[:, 1, :], psf[:, :, 1] = psf[:, 1, :] + 0.125, psf[:, :, 1] + 0.125
    psf /= psf.sum((1, 2), keepdim=True)
    camera = Camera(0.2, psf, torch.ones(3), torch.full((3,), torch.inf), None, torch.tensor(waves))
    scene = simulate(count, population=Population.default(), camera=camera, size=32, number=1, seed=0)
    ln = scene.flux.double().log().numpy()
    return float(np.std(ln[:, 1] - ln[:, ::2] @ interpolation(waves)))


def _pixels(deblender: Deblender, kept: Path, blends: Sequence[Blend], seed: int) -> Iterator[dict[str, object]]:
    for name, patch in (("a tenth, scattered", False), ("4 x 4 patches", True)):
        every = _asked(kept, f"pixels {name}", blends, partial(held_pixels, deblender, patch=patch), seed)
        case = {"test": "held-out pixels", "images": "HSC i", "case": name}
        yield from (case | row for row in judged(every, RATIO, of="ratio"))


def _asked(kept: Path, name: str, items: Sequence, ask: Callable[..., Arrays], seed: int) -> Arrays:
    """Ask about items one by one, keep what is found, and join it; ``scene`` tells items and their groups apart."""
    parts = []
    for number, item in enumerate(tqdm(items, desc=name, unit="image", leave=False)):
        path = kept / f"{name.replace(' ', '-')}-{number:04d}.npz"
        found = kept_arrays(path, lambda item=item, n=number: ask(item, seed=seed_of(seed, n + 1) % 2**31))
        group = found.get("group", np.zeros(len(next(iter(found.values()))), dtype=int))
        parts.append(found | {"scene": MOST_GROUPS * number + group})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """Join what is found for different scenes."""
    start = np.cumsum([0, *(part["scene"].max() + 1 for part in parts)])
    parts = [part | {"scene": part["scene"] + first} for part, first in zip(parts, start, strict=False)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def picture(deblender: Deblender, blends: Sequence[Blend], *, band: str = "r") -> Figure:
    """Draw a band of blends, what the network predicts, and residuals of all methods over the noise."""
    figure = Figure(figsize=(13, 2.3 * len(blends)), layout="constrained")
    for row, blend in zip(figure.subplots(len(blends), 6, squeeze=False), blends, strict=True):
        found = held_band(deblender, blend, band)
        scale = blend.sky_rms[BANDS.index(band)]
        for axes, name in zip(row[:2], ("data", "model"), strict=True):
            axes.imshow(np.arcsinh(found[name] / scale), vmin=-1, vmax=5, origin="lower", cmap="gray_r")
            axes.set_title(f"{band}: {name}", fontsize=8)
        row[0].plot(*blend.place.T, "r+", ms=4)
        for axes, method in zip(row[2:], METHODS, strict=True):
            axes.imshow(found[f"residual {method}"], vmin=-5, vmax=5, origin="lower", cmap="RdBu")
            axes.set_title(f"{method}: chi2 {found[method]:.2f}", fontsize=8)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    main()
