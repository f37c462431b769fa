"""Deblend scenes taken through PSFs of several widths, with white and with drizzled noise: coverage in every cell."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import crowded_scenes
from benchmarks._scenes import ONE_CAMERA, answered, compare, formatted, summary
from probdeblend.deblending.weights import load
from probdeblend.simulation.cameras import Cameras

__all__ = ["FWHM", "main"]

FWHM = (2.0, 3.0, 4.0, 5.0)  # pixels
WHITE = {"white": 1.0, "drizzled": 0.0}
NUMBERS = (2, 4)  # sources per scene


@benchmark("psfs")
@sized_option("--count", 8, 800, help="Scenes in each cell.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Deblend scenes through PSFs of several widths, with white and drizzled noise: coverage and scatter.

    Positions are given. One row per width, noise and number of sources in a scene.
    """
    deblender, rows = load(weights), []
    with run.unfinished(deblender=deblender, count=count) as kept:
        for fwhm, (noise, white), number in product(FWHM, WHITE.items(), NUMBERS):
            cameras = Cameras(fwhm=(fwhm, fwhm), white_fraction=white, native_fraction=0.0, bands=(1.0,))
            draw = partial(crowded_scenes, number, cameras=cameras)
            name, methods = f"{noise}-{fwhm:g}-{number}", {"network": answered(deblender)}
            found = compare(kept, name, count, draw, methods, seed=run.seed, chunk=ONE_CAMERA)
            rows.append({"fwhm": fwhm, "noise": noise, "number": number} | summary(found["network"]))
        run.write(formatted(rows))


if __name__ == "__main__":
    main()
