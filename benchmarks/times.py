"""Time the network, SEP, refinement and the No-U-Turn sampler on the same scenes, side by side on one core.

Scenes are of CANDELS F160W, 128 x 128 pixels, with one to fourteen sources; all methods are given the positions, but
SEP, which detects. The sampler is as in `benchmarks.references`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import published_scenes
from benchmarks._scenes import formatted, positions
from benchmarks.references import sampled_group
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.refinement.guide import SceneGuide
from probdeblend.refinement.model import SceneModel
from probdeblend.refinement.refiner import Refiner

__all__ = ["main"]

NUMBERS = (1, 2, 3, 5, 8, 14)


@benchmark("times", resume=False)
@sized_option("--count", 2, 32, help="Scenes of each number of sources.")
@sized_option("--refined", 1, 4, help="Scenes of up to three sources to refine.")
@sized_option("--draws", 0, 600, least=0, help="Draws of each of two chains of the sampler; 0 leaves it out.")
@weights_option
def main(run: Run, count: int, refined: int, draws: int, weights: Path | None) -> None:
    """Time each method per scene on one core: seconds of CPU, and how many times as long as the network it takes."""
    torch.set_num_threads(1)
    deblender = load(weights)
    run.asks(deblender)
    deblender.scenes(published_scenes(1, 1, seed=0))  # the first call loads libraries
    rows = []
    for number in NUMBERS:
        scene = published_scenes(number, count, seed=run.seed)

        def timed(method: Deblends, some: int, number: int = number, scene: object = scene) -> float:
            chosen = scene.select(slice(some))
            given = None if isinstance(method, SepDeblender) else positions(chosen)
            return _seconds(lambda: method.scenes(chosen, positions=given)) / len(chosen)

        network = timed(deblender, count)
        found = {"network": network, "SEP": timed(SepDeblender(), count)}
        if number <= 3:
            found["refinement"] = timed(Refiner(deblender), refined)
        if number == 1 and draws:
            guide = SceneGuide(deblender.network, SceneModel()).eval()
            found["No-U-Turn sampler"] = _seconds(lambda guide=guide: sampled_group(guide, 1, draws=draws, seed=0))
        rows += [
            {"sources": number, "method": name, "seconds": seconds, "over_network": seconds / network}
            for name, seconds in found.items()
        ]
    run.write(formatted(rows))


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
