"""Deblend fresh scenes of one to many sources: coverage at every number, and the scatter beside SEP's.

Sources are clustered, of all types and brightnesses, and taken by any camera that networks are trained for. The true
positions are given to the network, or it finds its sources, as SEP does: each then belongs to the nearest true one
within 10 pixels. Network and SEP are compared on those that SEP finds.
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
FOUND = ("coverage_68", "joint_68", "total_68")


@benchmark("crowding")
@sized_option("--count", 32, 1600, help="Sources of each number per scene, about.")
@click.option("--number", "numbers", type=click.IntRange(1), multiple=True, help="Sources per scene.  [default: six]")
@weights_option
def main(run: Run, count: int, numbers: tuple[int, ...], weights: Path | None) -> None:
    """Deblend fresh scenes of one to many sources: coverage of sources, groups and totals, and the scatter.

    Columns that begin with `found_` are those of the sources that the network finds itself, of all that there are. The
    last ones are the scatter of the sources that SEP finds: SEP's, and the network's of the same ones.
    """
    deblender = load(weights)
    methods = {"network": answered(deblender), "auto": answered(deblender, kind="auto")}
    methods |= {"found": answered(deblender, given=False)}
    methods |= {"sep": answered(SepDeblender(), kind="auto")}
    rows = []
    with run.unfinished(deblender=deblender, count=count) as kept:
        for number in numbers or NUMBERS:
            draw = partial(crowded_scenes, number)
            scenes = -(-count // number)
            found = compare(kept, f"sources-{number:02d}", scenes, draw, methods, seed=run.seed, chunk=ONE_CAMERA)
            seen = np.isfinite(found["sep"]["estimate"])
            same = {name: summary(found[name], seen)["nmad_mag"] for name in ("sep", "auto")}
            own = summary(found["found"])
            row = {"number": number} | summary(found["network"])
            row |= {"found": own["detected"]} | {f"found_{name}": own[name] for name in FOUND}
            row |= {"seconds": found["network"]["scene_seconds"].mean(), "sep_detected": seen.mean()}
            rows.append(row | {"sep_nmad_mag": same["sep"], "same_nmad_mag": same["auto"]})
        run.write(formatted(rows))


if __name__ == "__main__":
    main()
