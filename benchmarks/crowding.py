"""Deblend fresh scenes of one to many sources: coverage at every number, and the scatter beside SEP's.

Sources are clustered, of all types and brightnesses, and taken by any camera that networks are trained for; positions
are given to the network. SEP finds its own sources, each of which belongs to the nearest true one within 10 pixels, and
both are compared on those that it finds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import crowded_scenes
from benchmarks._scenes import ONE_CAMERA, answered, compare, formatted, summary
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load

__all__ = ["NUMBERS", "main"]

NUMBERS = (1, 2, 3, 5, 8, 14)


@benchmark("crowding")
@sized_option("--count", 32, 1600, help="Sources of each number per scene, about.")
@click.option("--number", "numbers", type=click.IntRange(1), multiple=True, help="Sources per scene.  [default: six]")
@weights_option
def main(run: Run, count: int, numbers: tuple[int, ...], weights: Path | None) -> None:
    """Deblend fresh scenes of one to many sources: coverage of sources, groups and totals, and the scatter.

    The last columns are the scatter of the sources that SEP finds: SEP's, and the network's of the same ones.
    """
    deblender = load(weights)
    methods = {"network": answered(deblender), "auto": answered(deblender, kind="auto")}
    methods |= {"sep": answered(SepDeblender(), kind="auto")}
    rows = []
    with run.unfinished(deblender=deblender, count=count) as kept:
        for number in numbers or NUMBERS:
            draw = partial(crowded_scenes, number)
            scenes = -(-count // number)
            found = compare(kept, f"sources-{number:02d}", scenes, draw, methods, seed=run.seed, chunk=ONE_CAMERA)
            seen = np.isfinite(found["sep"]["estimate"])
            same = {name: summary(found[name], seen)["nmad_mag"] for name in ("sep", "auto")}
            row = {"number": number} | summary(found["network"])
            row |= {"seconds": found["network"]["scene_seconds"].mean(), "sep_detected": seen.mean()}
            rows.append(row | {"sep_nmad_mag": same["sep"], "same_nmad_mag": same["auto"]})
        run.write(formatted(rows))


if __name__ == "__main__":
    main()
