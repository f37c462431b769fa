"""Deblend three bands together and one by one: how much better colors are for the covariance of their fluxes.

What a neighbor takes in one band it mostly takes in the next, so that errors of the division cancel in a color.
Deblended one by one, bands know nothing of each other, and neither do their draws.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import crowded_scenes
from benchmarks._scenes import LEAST_SNR, ONE_CAMERA, compare, formatted, positions, truth
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.weights import load
from probdeblend.scene import LN_FLUX_UNIT, Scene
from probdeblend.simulation.cameras import Cameras

__all__ = ["colors", "main", "one_band"]

BANDS = 3
NUMBERS = (1, 2, 4)  # sources per scene
LEVELS = (50, 68, 95)


@benchmark("bands")
@sized_option("--count", 16, 1000, help="Scenes of each number of sources.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Deblend three bands together and one by one: scatter and coverage of colors of neighboring bands."""
    deblender, rows = load(weights), []
    cameras = Cameras(native_fraction=0.0, bands=(0.0, 0.0, 1.0))
    methods = {name: partial(_colors, deblender, joint=name == "joint") for name in ("joint", "one by one")}
    with run.unfinished(deblender=deblender, count=count) as kept:
        for number in NUMBERS:
            draw = partial(crowded_scenes, number, cameras=cameras)
            found = compare(kept, f"sources-{number}", count, draw, methods, seed=run.seed, chunk=ONE_CAMERA)
            both = [{"number": number, "bands": name} | colors(arrays) for name, arrays in found.items()]
            rows += [row | {"gain": both[1]["scatter"] / row["scatter"]} for row in both]
        run.write(formatted(rows))


def one_band(scene: Scene, band: int) -> Scene:
    """Return scenes in one of their bands."""
    cut = {name: getattr(scene, name) for name in ("image", "sky_rms", "psf", "exposure", "noise_kernel", "wavelength")}
    cut |= {name: getattr(scene, name) for name in ("flux", "auto_flux", "light")}
    zero_point = scene.zero_point[band : band + 1]
    cut = {name: None if value is None else value[:, band : band + 1] for name, value in cut.items()}
    return replace(scene, zero_point=zero_point, **cut)


def _colors(deblender: Deblends, scene: Scene, *, joint: bool) -> dict[str, NDArray]:
    """Return the median, the half-width and the rank of the truth of ln flux ratios of neighboring bands."""
    if joint:
        flux = deblender.scenes(scene, positions=positions(scene)).flux.values
    else:
        alone = [one_band(scene, band) for band in range(BANDS)]
        answers = [
            deblender.scenes(one, positions=positions(one), seed=seed).flux.values for seed, one in enumerate(alone)
        ]
        flux = np.concatenate(answers, -1)
        # Bands that were deblended one by one are independent: no draw of one belongs to a draw of another.
        rng = np.random.default_rng(0)
        flux = flux.reshape(-1, *flux.shape[2:])
        flux = np.stack([flux[rng.permutation(len(flux)), :, band] for band in range(BANDS)], -1)[None]
    steps = tuple(zip(*pairwise(range(BANDS)), strict=True))
    ratio = np.log(flux[..., steps[0]] / flux[..., steps[1]]).reshape(-1, flux.shape[2], BANDS - 1)
    true = scene.flux.double().numpy()
    true = np.log(true[:, steps[0]] / true[:, steps[1]])
    low, median, high = np.quantile(ratio, (0.16, 0.5, 0.84), axis=0)
    rank = ((ratio < true).sum(0) + 0.5) / (len(ratio) + 1)
    return truth(scene) | {"error": median - true, "half": (high - low) / 2, "rank": rank}


def colors(found: dict[str, NDArray]) -> dict[str, float]:
    """Return scatter (magnitudes), half-width and coverage of the colors of sources that are bright enough."""
    bright = found["snr"] >= LEAST_SNR
    depth = np.abs(2 * found["rank"][bright] - 1)
    row = {"sources": int(bright.sum()), "scatter": LN_FLUX_UNIT * mad_std(found["error"][bright])}
    row["width"] = LN_FLUX_UNIT * float(np.median(found["half"][bright]))
    return row | {f"coverage_{level}": float((depth <= level / 100).mean()) for level in LEVELS}


if __name__ == "__main__":
    main()
