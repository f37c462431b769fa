"""Ground images labeled from space: what seeing blends, and what the network says of it where nobody told.

One sky is seen twice, by a camera like HST's ACS in F814W and by one like Hyper Suprime-Cam in i: the ground image is
the noiseless sharp one, convolved with a Moffat profile and summed over 3 x 3 pixels, with noise of its own.
`probdeblend.surveys.label_ground` labels it. Dawson et al. (2016, doi:10.3847/0004-637X/816/1/11) find with HST that
14 % of the galaxies in Subaru images of about the depth of LSST are several. Their sky is clustered and their criterion
another one: here a source is a segment of SEP, and it is several if sharp sources are in it.

Galaxies are counted in i as in the LSST Science Book (`benchmarks.peers._fields`), and lie anywhere. They are those of
the package's population, and real ones of GOODS-S (`benchmarks.real_library`; weights may have been trained on them).
The seeing is the median of the Wide layer of Hyper Suprime-Cam in i (Aihara et al. 2019, doi:10.1093/pasj/psz103), its
depth about that of Aihara et al. (2022, doi:10.1093/pasj/psab122); the sharp image is about as deep as COSMOS (Scoville
et al. 2007, doi:10.1086/516580).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from astropy.table import QTable
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import mannwhitneyu
from torch import Tensor

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._held_out import data_folder
from benchmarks._scenes import Arrays, column, compare, flat_draws, formatted, measure, positions, summary
from benchmarks.peers._fields import GALAXIES, SLOPE, draw_sources
from benchmarks.real_library import BY_EYE, goods_galaxies
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.weights import load
from probdeblend.metrics.detections import match_sources
from probdeblend.photometry.noise import add_noise
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import LN_FLUX_UNIT, PSF_SIZE, SCENE_FIELDS, Scene, seed_of, seeded
from probdeblend.simulation.cameras import Camera, random_psf
from probdeblend.simulation.light import Light, SimulatedSources, Sources
from probdeblend.simulation.scenes import auto_over_total, paste
from probdeblend.surveys.overlap import Overlap, label_ground
from probdeblend.surveys.templates import RealGalaxies

__all__ = ["Pair", "area", "blurred", "draw_cameras", "forced", "frame", "kinds", "listed", "main", "matched", "rows"]
__all__ += ["several", "skies", "sky"]

SIDE, FINER = 192, 3  # pixels of the ground image, and sharp pixels along the side of one of them
PIXEL_SCALE = 0.168  # arcsec
SHARPNESS, SEEING, VARIATION = 0.11, 0.6, 0.06  # FWHM in arcsec, and standard deviation of ln of the seeing
MOFFAT, KERNEL = 3.5, 61  # exponent of the seeing's profile, and sharp pixels from its middle to its edge
ZERO_POINT, WAVELENGTH = 27.0, 0.8
DEPTH, SHARP_DEPTH = 26.0, 27.2  # magnitudes of point sources at a signal-to-noise ratio of 5
SKY = 20.48  # AB magnitudes per square arcsec (Ivezic et al. 2019, doi:10.3847/1538-4357/ab042c, table 2)
MAGNITUDES = (19.0, 27.0)  # of the galaxies
CUTOUT, LARGEST_CUTOUT, FAINT = 64, 512, 0.03  # sharp pixels, and light at the edge of a cutout over the noise
REACH = 0.3  # arcsec between a source of the sharp image and the true one that it is
SHARE = 0.9  # of the light of a blend: if the brightest source has less, others count
KINDS = ("none", "single", "dominated", "blend")
BINS = [("all", "kind", 1, 4), ("gold", "magnitude", 0, 25.3)]  # the gold sample of LSST is brighter than i = 25.3
BINS += [
    (f"{low:g} to {high:g}", "magnitude", low, high) for low, high in pairwise((18.0, 23.0, 24.0, 25.0, 26.0, 27.0))
]
BINS += [(kind, "kind", number, number + 1) for number, kind in enumerate(KINDS)]
TOLD = ("p_several", "unlisted", "doubtful", "contested", "anomaly")
SHARP = ("sources", "detected", "mape", "bias_mag", "nmad_mag", "width", "coverage_68")


class Pair(NamedTuple):
    """A scene of the ground image, with the light of each source, and what the sharp image tells about it."""

    scene: Scene
    sharp: Tensor
    overlap: Overlap


@benchmark("peers.ground")
@sized_option("--count", 3, 100, help="Images of simulated galaxies, and of real ones, about 60 galaxies in each.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Deblend ground images that a sharper image labels: unrecognized blends, and fluxes at the sharp positions.

    Rows are ground sources that the sharp image shows: all that SEP finds; by magnitude; and those with one sharp
    source in their segment ("single"), and with several of which the brightest has at least ("dominated") or less
    ("blend") than 0.9 of their light. Columns are `unrecognized`, the fraction with several, and `blends`, that with
    less than 0.9; what the network says at SEP's positions: means of `unlisted` and `doubtful`, its flags, of the
    contested light and of the anomaly score, bias and coverage of the flux of the brightest source and, with `_all`, of
    the sum of all; and the mean of `p_several`, the probability that there are several sources, from what the network
    finds itself. Columns with `sharp_` are fluxes of the true sources there, measured at the positions of the sharp
    image; those of "none" are in no ground source. Beneath the table are areas under the curve for telling blends from
    single sources. Real galaxies need PROBDEBLEND_DATA.
    """
    deblender = load(weights)
    methods = {"sharp": partial(forced, deblender), "ground": partial(listed, deblender)}
    table, curves = [], {}
    with run.unfinished(deblender=deblender, count=count) as kept:
        for number, (images, sources) in enumerate(skies()):
            name, seed = images.replace(" ", "-"), seed_of(run.seed, number)
            found = compare(kept, name, count, partial(sky, sources), methods, seed=seed, chunk=1)
            table += [{"images": images} | row for row in rows(found)]
            curves |= {f"{images}: area under the curve of {told}": area(found["ground"], told) for told in TOLD}
        written = formatted(table)
        written.meta = {"count": count} | curves
        run.write(written)


def skies() -> Iterator[tuple[str, Sources]]:
    """Yield what images show, and what makes the light there."""
    yield "simulated", SimulatedSources()
    try:
        galaxies = [galaxy for galaxy in goods_galaxies(data_folder()) if galaxy.identity not in BY_EYE and galaxy.keep]
    except FileNotFoundError as error:
        click.echo(f"Real galaxies are left out: {error}")
    else:
        yield "real galaxies", RealGalaxies(galaxies)


class Cameras(NamedTuple):
    """Both cameras, and the profile of the seeing ``(y, x)`` in pixels of the sharp one."""

    ground: Camera
    sharp: Camera
    seeing: NDArray[np.float64]


def sky(sources: Sources, count: int, seed: int) -> Pair:
    """Draw one pair of images; there is one at a time."""
    if count != 1:
        raise ValueError(f"count must be 1, got {count}")
    rng = np.random.default_rng(seed)
    cameras, area = draw_cameras(rng), (SIDE * PIXEL_SCALE / 60) ** 2
    number = max(rng.poisson(area * GALAXIES * 10 ** (SLOPE * (MAGNITUDES[1] - 25))), 1)
    magnitude = np.log10(rng.uniform(*10 ** (SLOPE * np.array(MAGNITUDES)), number)) / SLOPE
    places, star = rng.uniform(-0.5, FINER * SIDE - 0.5, (number, 2)), np.zeros(number, dtype=bool)
    drawn = draw_sources(magnitude, star, places, cameras.sharp.pixel_scale, seed=seed_of(seed, 1))
    with seeded(seed_of(seed, 2)), torch.no_grad():
        sharp, light = _painted(sources(drawn, cameras.sharp), cameras, drawn)
    rms = cameras.ground.sky_rms
    auto = [own.sum() * auto_over_total(own / own.sum(), float(own.sum() / rms)) for own in light]
    image, fine = (
        _noisy(noiseless, camera, seed_of(seed, 3, n))
        for n, (noiseless, camera) in enumerate(((light.sum(0), cameras.ground), (sharp, cameras.sharp)), 1)
    )
    scene = Scene(
        image=image,
        pixel_scale=PIXEL_SCALE,
        zero_point=cameras.ground.zero_point,
        scene=torch.zeros(number, dtype=torch.long),
        light=light[:, None],
        auto_flux=torch.stack(auto)[:, None],
        source_type=drawn["source_type"],
        **{name: (drawn[name] + 0.5) / FINER - 0.5 for name in "xy"},
        **{name: getattr(cameras.ground, name)[None] for name in SCENE_FIELDS[1:]},
    )
    own, other = (
        {"psf": camera.psf, "sky_rms": float(camera.sky_rms), "wcs": frame(pixels, camera.pixel_scale)}
        for pixels, camera in ((SIDE, cameras.ground), (FINER * SIDE, cameras.sharp))
    )
    return Pair(scene, fine[0, 0], label_ground(image[0, 0], fine[0, 0], sharp_options=other, **own))


def draw_cameras(rng: np.random.Generator) -> Cameras:
    """Draw the PSF of the sharp camera and the seeing, which make the PSF of the other."""
    scale = PIXEL_SCALE / FINER
    psf, fine = random_psf(rng, SHARPNESS / scale, kind="space", fine=True)
    square = SEEING**2 * np.exp(2 * rng.normal(0, VARIATION)) - SHARPNESS**2 - 8 * np.log(2) * PIXEL_SCALE**2 / 12
    radius = square**0.5 / scale / 2 / (2 ** (1 / MOFFAT) - 1) ** 0.5
    place = np.arange(-KERNEL, KERNEL + 1)
    seeing = (1 + (place**2 + place[:, None] ** 2) / radius**2) ** -MOFFAT
    seeing /= seeing.sum()
    around = (FINER * PSF_SIZE - len(psf)) // 2
    broad = blurred(np.pad(psf.double().numpy(), around), seeing)
    broad = torch.from_numpy(broad / broad.sum()).float()
    known = {"wavelength": torch.tensor([WAVELENGTH]), "zero_point": (ZERO_POINT,)}
    rms = [_flux(depth) / 5 * one.square().sum().sqrt()[None] for depth, one in ((DEPTH, broad), (SHARP_DEPTH, psf))]
    photons = _flux(SKY) * PIXEL_SCALE**2 / rms[0] ** 2
    sharp = Camera(scale, psf[None], rms[1], fine_psf=fine[None], **known)
    return Cameras(Camera(PIXEL_SCALE, broad[None], rms[0], photons, **known), sharp, seeing)


def blurred(light: NDArray[np.float64], seeing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convolve a noiseless sharp image, and sum it in the pixels of the other."""
    rows, columns = (side // FINER for side in light.shape)
    return fftconvolve(light, seeing, mode="same").reshape(rows, FINER, columns, FINER).sum((1, 3))


def frame(side: int, pixel_scale: float) -> WCS:
    """Return world coordinates of a square image, whose middle is always at one place."""
    made = WCS(naxis=2)
    made.wcs.ctype, made.wcs.crval, made.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [(side + 1) / 2] * 2
    made.wcs.cdelt = [-pixel_scale / 3600, pixel_scale / 3600]
    return made


def _flux(magnitude: float) -> float:
    return 10 ** (0.4 * (ZERO_POINT - magnitude))


def _noisy(light: Tensor, camera: Camera, seed: int) -> Tensor:
    known = {name: getattr(camera, name)[None] for name in ("sky_rms", "exposure", "noise_kernel")}
    return add_noise(light[None, None], **known, generator=torch.Generator().manual_seed(seed))


def _painted(light: Light, cameras: Cameras, drawn: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the noiseless sharp image, and the light of each source ``(source, y, x)`` in the other.

    A real galaxy is no brighter than its own noise allows.
    """
    whole, blurry, rms = torch.zeros(1, FINER * SIDE, FINER * SIDE), [], float(cameras.sharp.sky_rms)
    for number, magnitude in enumerate(drawn["magnitude"].tolist()):
        middle = torch.stack([drawn[name][number] for name in "xy"]).round().long()
        size, flux = CUTOUT, _flux(magnitude)
        while True:
            corner = middle - size // 2
            seen = light.select(slice(number, number + 1)).seen(cameras.sharp, corner=corner[None], size=size)
            own = seen.image[0] * min(flux, rms * float(seen.brightest / seen.image.square().sum().sqrt()))
            edge = torch.stack([own[:, 0], own[:, -1], own[..., 0], own[..., -1]]).max()
            if size >= LARGEST_CUTOUT or edge < FAINT * rms:
                break
            size *= 2
        alone = torch.zeros_like(whole)
        paste(alone, own, corner)
        whole += alone
        blurry.append(torch.from_numpy(blurred(alone[0].double().numpy(), cameras.seeing)).float())
    return whole[0], torch.stack(blurry)


def kinds(pair: Pair) -> NDArray[np.int64]:
    """Return which of `KINDS` each source of the ground image is, and, at last, 0 for none."""
    table = pair.overlap.sources
    several = 2 + (np.asarray(table["share"]) < SHARE)
    return np.append(np.where(table["number"] > 1, several, table["number"]), 0)


def forced(deblender: Deblends, pair: Pair) -> Arrays:
    """Measure the true sources at the positions of the sharp image, with the ``kind`` of ground source of each."""
    table, owner = pair.overlap.positions, matched(pair)
    posterior = deblender.scenes(pair.scene, positions=_given(table))
    found = measure(pair.scene, posterior, kind="auto", row=owner)
    source = np.where(owner >= 0, table["source"][owner], 0)
    with np.errstate(invalid="ignore"):
        return found | {"magnitude": ZERO_POINT - 2.5 * np.log10(found["flux"]), "kind": kinds(pair)[source - 1]}


def _given(table: QTable) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(len(table)), *(torch.from_numpy(np.asarray(table[name], dtype=float)) for name in "xy")


def matched(pair: Pair) -> NDArray[np.int64]:
    """Return the source of the sharp image that is each true one, -1 for none."""
    table = pair.overlap.positions
    found = np.zeros(len(table)), np.asarray(table["x"]), np.asarray(table["y"])
    return match_sources(found, tuple(v.numpy() for v in positions(pair.scene)), radius=REACH / PIXEL_SCALE)


def listed(deblender: Deblends, pair: Pair) -> Arrays:
    """Ask about the ground sources at their own positions, and for what else is in their segments.

    Per ground source its ``kind`` and magnitude, flags and scores, and rank and error in ln of the true flux of its
    brightest source and, with ``_all``, of all its sources. The kind is 0 where the sharp image lacks a part.
    """
    table, labels, owner = pair.overlap.sources, pair.overlap.positions, matched(pair)
    posterior = deblender.scenes(pair.scene, positions=_given(table))
    source = np.where(owner >= 0, labels["source"][owner], 0)
    flux = np.nan_to_num(pair.scene.auto_flux[:, 0].double().numpy())
    true = {"": np.zeros(len(table) + 1), "_all": np.bincount(source, flux, len(table) + 1)}
    np.maximum.at(true[""], source, flux)
    found: Arrays = {"scene": np.zeros(len(table), dtype=int), "p_several": several(deblender.scenes(pair.scene), pair)}
    draws = flat_draws(posterior, "auto")[..., 0]
    for name, values in true.items():
        known = np.where(values[1:] > 0, values[1:], np.nan)
        rank = ((draws < known).sum(0) + 0.5) / (len(draws) + 1)
        found[f"inside{name}"] = np.where(known > 0, np.abs(2 * rank - 1) <= 0.68, np.nan)
        found[f"error{name}"] = np.log(np.maximum(np.median(draws, 0), 1e-3 * known) / known)
    flags = column(posterior, "flags").astype(int)
    found |= {flag.name.lower(): (flags & flag > 0).astype(float) for flag in (Flag.UNLISTED, Flag.DOUBTFUL)}
    found |= {name: column(posterior, name) for name in ("contested", "anomaly")}
    found["kind"] = np.where(table["covered"] == 1, kinds(pair)[:-1], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["magnitude"] = ZERO_POINT - 2.5 * np.log10(table["flux"].value[:, 0])
    return found


def several(posterior: Posterior, pair: Pair) -> NDArray[np.float64]:
    """Return the probability that a segment of a ground source has two or more of the sources of a posterior."""
    y, x = (np.floor(column(posterior, name) + 0.5).astype(int).clip(0, SIDE - 1) for name in "yx")
    label, existence = pair.overlap.segmentation[y, x], column(posterior, "existence")
    numbers = [
        reduce(np.convolve, ([1 - p, p] for p in existence[label == own]), np.array([1.0]))
        for own in pair.overlap.sources["label"]
    ]
    return np.array([1 - chances[:2].sum() for chances in numbers])


def rows(found: Mapping[str, Arrays]) -> Iterator[dict[str, object]]:
    """Yield rows: all ground sources, by magnitude, and by what the sharp image shows."""
    told, fluxes = found["ground"], found["sharp"]
    for name, feature, low, high in BINS:
        own, chosen = ((of[feature] >= low) & (of[feature] < high) for of in (told, fluxes))
        own &= told["kind"] > 0
        row = {"sources": name, "ground": int(own.sum())}
        row |= {"unrecognized": _mean(told["kind"][own] > 1), "blends": _mean(told["kind"][own] > 2)}
        row |= {said: _mean(told[said][own]) for said in TOLD}
        for which in ("", "_all"):
            row[f"bias_mag{which}"] = -LN_FLUX_UNIT * _mean(told[f"error{which}"][own], np.median)
            row[f"coverage_68{which}"] = _mean(told[f"inside{which}"][own])
        sharp = summary(fluxes, chosen)
        yield row | {f"sharp_{of}": sharp[of] for of in SHARP}


def _mean(values: NDArray, average: Callable[[NDArray], float] = np.mean) -> float:
    known = values[np.isfinite(values)]
    return float(average(known)) if len(known) else np.nan


def area(told: Arrays, name: str) -> float:
    """Return the probability that a blend has the larger score than a single source; equal ones count half."""
    blend, single = (told[name][told["kind"] == kind] for kind in (3, 1))
    blend, single = (values[np.isfinite(values)] for values in (blend, single))
    if not len(blend) or not len(single):
        return np.nan
    return float(mannwhitneyu(blend, single).statistic / len(blend) / len(single))


if __name__ == "__main__":
    main()
