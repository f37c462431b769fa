"""Compare refinement with the bound on what can be known of a group of sources, and with the network.

No estimator scatters less, on average over the prior, than the inverse of the information of image and prior together
(van Trees 1968, "Detection, Estimation, and Modulation Theory", I). The image's is the Fisher information at the true
unknowns, with the noise and the nuisances of the generative model; the prior counts as a normal distribution of the
same covariance, which is less informative than the prior, so that the bound is slightly high.

Galaxies are single Sérsic profiles, as the generative model has them, or have bulges, arms and knots: there importance
weights stay healthy while the intervals are far too narrow, and it counts how many of the errors are flagged.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._populations import published_scenes
from benchmarks._scenes import column, compare, formatted, measure, positions, summary
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.weights import load
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.mode import linearized
from probdeblend.refinement.model import Listed, SceneModel, listed_scenes
from probdeblend.refinement.refiner import Refiner
from probdeblend.refinement.unknowns import Unknowns
from probdeblend.scene import SOURCE_TYPES, Scene, seed_of

__all__ = ["main", "model_scenes", "van_trees_bound"]

NUMBERS = (1, 2, 3)  # sources per scene
PLACED = ("position", "shape")
FAR = 3.0  # half-widths of the 68 % interval
STAR = SOURCE_TYPES.index("star")


@benchmark("refinement")
@sized_option("--count", 2, 200, help="Scenes of each kind of galaxies and number of sources.")
@weights_option
def main(run: Run, count: int, weights: Path | None) -> None:
    """Refine scenes of CANDELS F160W, and compare with the bound and with the network.

    Columns: accuracy and coverage as in the other benchmarks; `over_bound`, the scatter of ln flux over the bound, of
    Sérsic profiles alone; the fraction of sources that are `refined`; and the fraction `far` of sources more than three
    half-widths of their interval off.
    """
    deblender, rows = load(weights), []
    methods = {name: partial(_answered, of) for name, of in (("network", deblender), ("refined", Refiner(deblender)))}
    with run.unfinished(deblender=deblender, count=count) as kept:
        for (galaxies, make), number in product(GALAXIES.items(), NUMBERS):
            name, draw = f"{list(GALAXIES).index(galaxies)}-{number}", partial(make, number)
            found = compare(kept, name, count, draw, methods, seed=run.seed)
            rows += [
                {"galaxies": galaxies, "number": number, "method": method} | _row(arrays)
                for method, arrays in found.items()
            ]
        run.write(formatted(rows))


def _answered(deblender: Deblends, drawn: tuple[Scene, NDArray]) -> dict[str, NDArray]:
    scene, bound = drawn
    began = time.process_time()
    posterior = deblender.scenes(scene, positions=positions(scene))
    seconds = (time.process_time() - began) / len(scene)
    found = measure(scene, posterior, row=np.arange(len(scene.scene)))
    refined = (column(posterior, "flags").astype(int) & int(Flag.NOT_REFINED)) == 0
    return found | {
        "refined": refined & (posterior.dataset.attrs["method"] == "refined"),
        "bound": bound,
        "scene_seconds": np.full(len(scene), seconds),
    }


def _row(found: dict[str, NDArray]) -> dict[str, float]:
    error = np.log(found["estimate"] / found["flux"])
    over = error / found["bound"]
    known = np.isfinite(over)
    return summary(found) | {
        "over_bound": 1.4826 * float(np.median(np.abs(over[known]))) if known.any() else np.nan,
        "refined": float(found["refined"].mean()),
        "far": float((np.abs(error) > FAR * found["width"]).mean()),
        "seconds": float(found["scene_seconds"].mean()),
    }


def _knotty_scenes(number: int, count: int, seed: int) -> tuple[Scene, NDArray[np.float64]]:
    """Draw scenes of the simulator, without a bound."""
    return published_scenes(number, count, seed=seed), np.full(number * count, np.nan)


def model_scenes(number: int, count: int, seed: int) -> tuple[Scene, NDArray[np.float64]]:
    """Draw scenes from the generative model, where the simulator puts sources; returned too is the bound ``(source,)``.

    The bound is the least scatter of ln total flux that `van_trees_bound` finds.
    """
    placed, model = published_scenes(number, count, seed=seed), SceneModel()
    listed = listed_scenes(placed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed_of(seed, 1))
        trace = pyro.poutine.trace(model).get_trace(listed, observed=False)
        values = {name: trace.nodes[name]["value"] for name in ("star", "position", "shape", "log_flux", "image")}
        values["log_flux"], image = values["log_flux"][:, 0], values.pop("image")[:, 0]
        light, bound = [], []
        for scene in range(count):
            one = Listed(*(v[scene : scene + 1] for v in listed[:-1]), listed.pixel_scale)
            unknowns = Unknowns(model, one, values["star"][scene])
            true = (values["log_flux"][scene : scene + 1, ..., 1], *(values[n][scene : scene + 1] for n in PLACED))
            vector = unknowns.vector(*true)
            light.append(unknowns.light(vector.float())[0])
            bound.append(van_trees_bound(unknowns, vector[0]))
    scale = placed.sky_rms[placed.scene]
    auto, total = (values["log_flux"][..., kind].flatten(0, 1).exp() * scale for kind in (0, 1))
    scene = replace(
        placed,
        image=image * placed.sky_rms[..., None, None],
        x=placed.x + values["position"][..., 0].flatten(),
        y=placed.y + values["position"][..., 1].flatten(),
        flux=total,
        auto_flux=auto,
        light=torch.cat(light) * scale[..., None, None],
        source_type=torch.where(values["star"].flatten() > 0, STAR, 1),
    )
    return scene, np.concatenate(bound)


def van_trees_bound(unknowns: Unknowns, vector: torch.Tensor) -> NDArray[np.float64]:
    """Return the least scatter ``(source,)`` of ln total flux in the first band, at the true unknowns ``(number,)``."""
    _, rows = linearized(unknowns, vector.double())
    covariance = torch.linalg.inv((rows @ rows.T).double() + unknowns.prior[1])
    return covariance.diagonal().sqrt()[unknowns.fluxes[:, 0]].numpy()


GALAXIES = {"one Sérsic profile": model_scenes, "bulges and knots": _knotty_scenes}


if __name__ == "__main__":
    main()
