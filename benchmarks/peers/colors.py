"""Separate blends in three bands by color, beside the network and SEP: sources of different and of equal colors.

Factorizations into colors and shapes are what scarlet and MuSCADeT deblend with (`_factorization` has both in short,
`_scarlet2` calls the former's successor). They live on differences of color: the same blends are therefore simulated
twice, once with all sources of a blend as red as each other, once from blue to red. All bands have one PSF, as the
factorizations assume, and white noise. Methods are given the true positions; SEP detects, and each source gets the
detection next to it. Fluxes are total ones, those of SEP Kron fluxes, which the network is asked for as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from astropy.stats import mad_std
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import SIDE
from benchmarks._scenes import FAINTEST, LEAST_SNR, ONE_CAMERA, compare, flat_draws, formatted, positions
from benchmarks.peers import _scarlet2
from benchmarks.peers._factorization import constrained, morpho_spectral
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.photometry.noise import add_noise
from probdeblend.scene import LN_FLUX_UNIT, Scene, correlation_sum, seed_of
from probdeblend.simulation.cameras import Cameras
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import auto_over_total, simulate
from probdeblend.training.evaluation import signal_to_noise

__all__ = ["blends", "by_factorization", "by_posterior", "by_scarlet2", "main", "measure", "recolored", "summary"]

BANDS = 3
NUMBERS = (2, 3)
SPREADS = {"equal": 0.0, "different": 0.8}  # magnitudes per band between the bluest source of a blend and the reddest
BRIGHT = (20.0, 300.0)  # signal-to-noise ratios
Arrays = dict[str, NDArray]
Answer = tuple[NDArray, NDArray]
"""Fluxes ``(source, band)``, NaN where a source was missed, and CPU seconds of each scene, compilation apart."""


def blends(number: int, spread: float, count: int, seed: int) -> Scene:
    """Draw close groups of galaxies in three bands of one PSF, as `recolored`; the same ones whatever the spread."""
    cameras = Cameras(native_fraction=0.0, bands=(0.0, 0.0, 1.0), white_fraction=1.0)
    camera = cameras.sample(np.random.default_rng(seed))
    fine = None if camera.fine_psf is None else camera.fine_psf[:1].expand_as(camera.fine_psf)
    camera = replace(camera, psf=camera.psf[:1].expand_as(camera.psf), fine_psf=fine)
    population = Population.default().replace(snr=BRIGHT, star_fraction=0.0)
    scene = simulate(count, population=population, camera=camera, size=SIDE, number=number, seed=seed)
    return recolored(scene, spread, seed=seed)


def recolored(scene: Scene, spread: float, *, seed: int) -> Scene:
    """Return scenes, in noise of their own, whose sources have equal colors or evenly spaced ones.

    Each source keeps its flux in the first band. Colors of a blend are about its mean color, the first source bluest.

    Parameters
    ----------
    scene
        Scenes of known light.
    spread
        Magnitudes per band between the bluest source of a blend and the reddest.
    seed
        Seed of the noise.

    Returns
    -------
    Scene
        The scenes.
    """
    owner, bands = scene.scene, torch.arange(scene.flux.shape[1])
    total = torch.zeros(len(scene), len(bands)).index_add_(0, owner, scene.flux)
    among = torch.cat([torch.linspace(-0.5, 0.5, n) if n > 1 else torch.zeros(n) for n in scene.count.tolist()])
    color = (total / total[:, :1])[owner] * 10 ** (0.4 * spread * among[:, None] * bands)
    flux = scene.flux[:, :1] * color
    light = scene.light * (flux / scene.flux)[..., None, None]
    rms = scene.sky_rms[owner]
    ratio = [
        [auto_over_total(one / total, float(total / noise)) for one, total, noise in zip(*source, strict=True)]
        for source in zip(light, flux, rms, strict=True)
    ]
    noise = {name: getattr(scene, name) for name in ("sky_rms", "exposure", "noise_kernel")}
    image = add_noise(
        torch.zeros_like(scene.image).index_add_(0, owner, light),
        generator=torch.Generator().manual_seed(seed_of(seed, 1)),
        **noise,
    )
    return replace(scene, image=image, flux=flux, auto_flux=flux * torch.tensor(ratio), light=light)


def by_factorization(separate: Callable[[NDArray, NDArray], NDArray], scene: Scene) -> Answer:
    """Return the light that a factorization finds, summed over pixels."""
    flux, seconds = np.zeros(scene.flux.shape), np.zeros(len(scene))
    for number, own in enumerate(_own(scene)):
        began, rms = time.process_time(), scene.sky_rms[number].double().numpy()
        image = scene.image[number].double().numpy() / rms[:, None, None]
        flux[own] = separate(image, _place(scene)[own]).sum((2, 3)) * rms
        seconds[number] = time.process_time() - began
    return flux, seconds


def by_scarlet2(scene: Scene) -> Answer:
    """Return the fluxes that scarlet2 fits; NaN where the fit diverges."""
    flux, seconds = np.full(scene.flux.shape, np.nan), np.zeros(len(scene))
    for number, own in enumerate(_own(scene)):
        image, rms = (values[number].double().numpy() for values in (scene.image, scene.sky_rms))
        depth = (scene.exposure[number] * correlation_sum(scene.noise_kernel[number])).double().numpy()
        noise = np.sqrt(np.square(rms)[:, None, None] + image.clip(0) / depth[:, None, None])
        psf = scene.psf[number].double().numpy()
        try:
            found = _scarlet2.fit(image, noise, psf, _place(scene)[own])
        except RuntimeError:
            continue
        flux[own], seconds[number] = found.flux, found.seconds
    return flux, seconds


def by_posterior(deblender: Deblends, kind: str, scene: Scene) -> Answer:
    """Return the median fluxes of one kind of a posterior at the true positions."""
    began = time.process_time()
    posterior = deblender.scenes(scene, positions=positions(scene))
    flux = np.median(flat_draws(posterior, kind), 0)
    return flux, np.full(len(scene), (time.process_time() - began) / len(scene))


def _own(scene: Scene) -> list[NDArray]:
    return [np.flatnonzero(scene.scene.numpy() == number) for number in range(len(scene))]


def _place(scene: Scene) -> NDArray[np.float64]:
    return torch.stack([scene.x, scene.y], 1).double().numpy()


def measure(method: Callable[[Scene], Answer], kind: str, scene: Scene) -> Arrays:
    """Return a method's fluxes ``(source, band)`` beside the true ones of one kind, and its seconds."""
    flux, seconds = method(scene)
    true = (scene.flux if kind == "total" else scene.auto_flux).double().numpy()
    return {
        "scene": scene.scene.numpy(),
        "snr": signal_to_noise(scene),
        "flux": true,
        "estimate": flux,
        "scene_seconds": seconds,
    }


def summary(found: Mapping[str, NDArray]) -> dict[str, float]:
    """Return the errors of sources that are bright enough.

    ``error`` is the median absolute error of the fluxes in percent, all bands together; ``nmad_mag_0`` and
    ``bias_mag_0`` are scatter and median of the errors in the first band; ``color_mag`` is the scatter of the errors of
    colors of neighboring bands. What was missed is only in ``detected``.
    """
    bright = found["snr"] >= LEAST_SNR
    true, estimate = found["flux"][bright], found["estimate"][bright]
    there = np.isfinite(estimate).all(1) & np.isfinite(true).all(1)
    true, estimate = true[there], estimate[there]
    error = -LN_FLUX_UNIT * np.log(np.maximum(estimate, FAINTEST * true) / true)
    row = {"sources": int(bright.sum()), "detected": float(there.mean()) if len(there) else math.nan}
    row["error"] = 100 * float(np.median(np.abs(estimate / true - 1))) if len(true) else math.nan
    for name, of in (("nmad_mag", mad_std), ("bias_mag", np.median)):
        for band in range(true.shape[1]):
            row[f"{name}_{band}"] = float(of(error[:, band])) if len(true) else math.nan
    row["color_mag"] = float(mad_std(np.diff(error, axis=1))) if len(true) else math.nan
    return row | {"seconds": float(found["scene_seconds"].mean())}


@benchmark("peers.colors")
@sized_option("--count", 8, 200, help="Blends of each number of sources and kind of colors.")
@sized_option("--scarlet2", 2, 40, least=0, help="Blends of these that scarlet2 fits, where it is installed.")
@weights_option
def main(run: Run, count: int, scarlet2: int, weights: Path | None) -> None:
    """Separate pairs and triples of galaxies in three bands by color, beside the network and SEP.

    Each blend is there twice, with equal colors and with different ones. Rows of `NMF` are about positive, symmetric
    and monotonic shapes of one color each, of `positive NMF` about positive ones, and of `morpho-spectral` about
    shapes in starlets. `scarlet2` is about the first blends alone, and `network, same` about these. Errors are in
    percent and magnitudes; seconds are CPU seconds per blend, for scarlet2 without those of compilation.
    """
    deblender = load(weights)
    factorizations = {
        "NMF": constrained,
        "positive NMF": partial(constrained, projected=False),
        "morpho-spectral": morpho_spectral,
    }
    methods = {name: partial(measure, partial(by_factorization, of), "total") for name, of in factorizations.items()}
    for name, of, kind in (("network", deblender, "total"), ("network, Kron", deblender, "auto")):
        methods[name] = partial(measure, partial(by_posterior, of, kind), kind)
    methods["SEP, Kron"] = partial(measure, partial(by_posterior, SepDeblender(), "auto"), "auto")
    fitted = min(scarlet2, count) if _scarlet2.installed() else 0
    few = {"scarlet2": partial(measure, by_scarlet2, "total"), "network, same": methods["network"]}
    rows = []
    with run.unfinished(deblender=deblender, count=count, scarlet2=fitted) as kept:
        for (colors, spread), number in product(SPREADS.items(), NUMBERS):
            draw = partial(blends, number, spread)
            settings = {"seed": run.seed, "chunk": ONE_CAMERA}
            found = compare(kept, f"{colors}-{number}", count, draw, methods, **settings)
            if fitted:
                found |= compare(kept, f"few-{colors}-{number}", fitted, draw, few, **settings)
            rows += [{"colors": colors, "number": number, "method": m} | summary(f) for m, f in found.items()]
        run.write(formatted(rows))


if __name__ == "__main__":
    main()
