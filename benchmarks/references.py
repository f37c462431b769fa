"""Compare refinement with posteriors that the No-U-Turn sampler finds, for groups of one, two and three sources.

Scenes are the generative model's own, cut to the middle around their sources. Both answers are of the same unknowns, so
that means, standard deviations and correlations of the ln fluxes can be compared one by one. Groups that refinement
cannot bring to reliable weights are counted and left out, and so are chains that have not converged.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._nuts import sample_reference
from benchmarks._scenes import formatted
from benchmarks.refinement import model_scenes
from probdeblend.deblending.weights import load
from probdeblend.refinement.guide import SceneGuide
from probdeblend.refinement.importance import refine
from probdeblend.refinement.model import SceneModel, listed_scenes
from probdeblend.scene import Scene, seed_of

__all__ = ["compare", "main", "sampled_group"]

MARGIN = 16  # pixels around the sources
LARGEST_DIFFERENCE = 0.3  # of means, in standard deviations
LEAST_RATIO, LARGEST_RATIO = 0.75, 1.33  # of standard deviations
LARGEST_CORRELATION = 0.15  # difference of the correlations of two ln fluxes
REFINING = 1000  # draws of each proposal


@benchmark("references")
@sized_option("--count", 1, 4, help="Groups of each number of sources.")
@sized_option("--most", 1, 3, help="Largest number of sources in a group.")
@sized_option("--draws", 50, 600, least=50, help="Draws of each of two chains.")
@weights_option
def main(run: Run, count: int, most: int, draws: int, weights: Path | None) -> None:
    """Compare refinement with the No-U-Turn sampler: five minutes to half an hour per group.

    Columns: the largest differences of means of ln fluxes in units of the reference's standard deviation, the least and
    largest ratio of standard deviations, the largest difference of correlations; k-hat of refinement and the worst
    r-hat of the chains; and whether all are within 0.3, 0.75 to 1.33, and 0.15.
    """
    deblender, rows = load(weights), []
    guide = SceneGuide(deblender.network, SceneModel()).eval()
    with run.unfinished(deblender=deblender, count=count, draws=draws) as kept:
        for number in range(1, most + 1):
            for group in tqdm(range(count), desc=f"groups of {number}", leave=False):
                make = partial(sampled_group, guide, number, draws=draws, seed=seed_of(run.seed, number, group))
                found = kept_arrays(kept / f"group-{number}-{group:03d}.npz", make)
                rows.append({"sources": number, "group": group} | compare(**found))
        run.write(formatted(rows))


def sampled_group(guide: SceneGuide, number: int, *, draws: int, seed: int) -> dict[str, NDArray]:
    """Return draws of ln fluxes, refined ``(draw, source)`` and sampled ``(chain, draw, source)``, and quality."""
    scene, _ = model_scenes(number, 1, seed)
    listed = listed_scenes(_cut(scene))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 2))
        unknowns, guesses = guide.guesses(listed)
        refined = refine(unknowns, guesses, draws=REFINING, seed=seed % 2**31)
    fluxes = unknowns.fluxes[:, 0].numpy()
    quality = {"k_hat": np.array(refined.k_hat), "usable": np.array(refined.usable)}
    own = refined.resampled(2 * REFINING, seed=0)[:, fluxes]
    if not refined.usable:
        return quality | {"refined": own, "sampled": np.full((2, draws, number), np.nan), "r_hat": np.array(np.nan)}
    reference = sample_reference(unknowns, refined, draws=draws, seed=seed % 2**31, progress=False)
    return quality | {
        "refined": own,
        "sampled": reference.vector[..., fluxes],
        "r_hat": np.array(reference.r_hat.max()),
    }


def _cut(scene: Scene) -> Scene:
    """Cut the middle out of one scene, with a margin around its sources."""
    corner, end = [], []
    for place, size in ((scene.y, scene.image.shape[-2]), (scene.x, scene.image.shape[-1])):
        low = max(int(place.min()) - MARGIN, 0)
        corner.append(low)
        end.append(min(int(place.max()) + MARGIN + 2, size))
    rows, columns = (slice(a, b) for a, b in zip(corner, end, strict=True))
    pixels = {name: getattr(scene, name)[..., rows, columns] for name in ("image", "light")}
    return replace(scene, x=scene.x - corner[1], y=scene.y - corner[0], **pixels)


def compare(
    refined: NDArray, sampled: NDArray, k_hat: NDArray, usable: NDArray, r_hat: NDArray
) -> dict[str, float | bool]:
    """Compare draws of ln fluxes: refined ``(draw, source)`` and sampled ones ``(chain, draw, source)``."""
    drawn = sampled.reshape(-1, sampled.shape[-1])
    means, spreads = ([values.mean(0) for values in (refined, drawn)], [values.std(0) for values in (refined, drawn)])
    correlations = [np.atleast_2d(np.corrcoef(values, rowvar=False)) for values in (refined, drawn)]
    ratio = spreads[0] / spreads[1]
    row = {
        "mean": float((np.abs(means[0] - means[1]) / spreads[1]).max()),
        "ratio_least": float(ratio.min()),
        "ratio_largest": float(ratio.max()),
        "correlation": float(np.abs(correlations[0] - correlations[1]).max()),
        "k_hat": float(k_hat),
        "r_hat": float(r_hat),
    }
    within = row["ratio_least"] >= LEAST_RATIO and row["ratio_largest"] <= LARGEST_RATIO
    within &= row["mean"] <= LARGEST_DIFFERENCE and row["correlation"] <= LARGEST_CORRELATION
    return row | {"within": bool(within and usable)}


if __name__ == "__main__":
    main()
