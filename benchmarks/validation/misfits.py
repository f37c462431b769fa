"""Beyond the training family: the ladder of misfits, GalSim's renderer, and training end to end."""

from __future__ import annotations

import copy
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.ladder import ladder_table, plot_ladder
from benchmarks.predictive import plot_predictive, predictive_check, predictive_table, zero_point_error
from benchmarks.render import compare_profiles
from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows
from probdeblend.metrics.masks import Reliability, iou
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.losses import JointError
from probdeblend.simulation.conditions import training_batch
from probdeblend.training.fit import Schedule, fit
from probdeblend.training.streams import EndlessStream, Mixture

__all__ = ["end_to_end_section", "galsim_section", "ladder_section"]

ANSWERS = ("rung", "state", "count", "galaxies", "coverage_68", "coverage_68_low", "coverage_68_high", "coverage_90")
LADDER = (*ANSWERS, "width", "interval_score", "bias_mag", "nmad_mag")
FLAGS = ("unfamiliar", "outside_prior", "outside_calibration")
TUNING_BATCH = 16
TEST_BLENDS = 256


def ladder_section(plan: Plan) -> Section:
    """Measure posteriors on every rung of the ladder of misfits."""
    table = ladder_table(plan.deblender, count=plan.rung, library=plan.library, **plan.sampling)
    real = "" if plan.library is not None else " No library of real galaxies was given, so that rung is missing."
    return Section(
        "The ladder of misfits",
        [
            f"{plan.rung} blends on each rung. Each changes one thing against the published population at the depth of "
            "CANDELS: coverage tells what the change does to the error bars, flags whether it is noticed." + real,
        ],
        {"Every rung": plain_rows(table, (*LADDER, *FLAGS))},
        {"Coverage, width and flags": plot_ladder(table)},
    )


def galsim_section(plan: Plan) -> Section:
    """Compare posteriors and the torch renderer with GalSim."""
    small = {"indices": (0.7, 1.0, 4.0), "radii": (0.3, 0.6)} if plan.galsim < 100 else {}
    grid = compare_profiles(**small, rng=np.random.default_rng(0))
    by_index = [
        {
            "sersic_index": index,
            "worst peak error": grid["peak_error"][grid["sersic_index"] == index].max(),
            "worst flux error": grid["flux_error"][grid["sersic_index"] == index].max(),
        }
        for index in np.unique(grid["sersic_index"])
    ]
    found = predictive_check(plan.deblender, count=plan.galsim, **plan.sampling)
    drift = zero_point_error(plan.deblender, seed=plan.seed)
    return Section(
        "Validation against GalSim",
        [
            f"{plan.galsim} blends drawn by GalSim. Chi-square is the mean squared residual over the noise of sky "
            "and photons inside the galaxies' footprints, of models that GalSim renders with the true shapes. The "
            "truth has 1; posteriors, which do not know the shapes, have more by what their fluxes are uncertain. "
            f"Coverage is that of the true fluxes, and of the best fit, by the 68 % intervals of {2 * plan.galsim} "
            "galaxies.",
            "Sources followed through the zero points 25.95 and 31.4 come out at the same magnitude within "
            f"{drift:.1e} mag.",
        ],
        {
            "Chi-square per pixel": plain_rows(predictive_table(found)),
            "The torch renderer against GalSim, by Sérsic index": plain_rows(by_index),
        },
        {"Images, and residuals of the median model": plot_predictive(found)},
    )


def end_to_end_section(plan: Plan) -> Section:
    """Train the network further, with the flux loss reaching the masks or not, and compare the masks."""
    networks = {"before": plan.deblender.network}
    for name, end_to_end in (("after, masks apart", False), ("after, end to end", True)):
        networks[name] = _tuned(plan, end_to_end=end_to_end)
    rows = [{"masks": name} | _mask_numbers(network, plan) for name, network in networks.items()]
    return Section(
        "Masks before and after training end to end",
        [
            "The network that ships keeps its masks as probabilities: the flux loss does not reach the U-Net. Here it "
            f"is trained for {plan.steps} more batches with the paper's joint loss (JointError), once as it is, once "
            "end to end, as the paper does. Area is the sum of all probabilities over that of all true masks.",
        ],
        {"Masks": plain_rows(rows)},
    )


def _stream(seed: int) -> EndlessStream:
    return Mixture().stream(batch_size=TUNING_BATCH, seed=seed)


def _tuned(plan: Plan, *, end_to_end: bool) -> Blend2Mask2Flux:
    network = copy.deepcopy(plan.deblender.network).train().requires_grad_(True)
    network.end_to_end = end_to_end
    torch.manual_seed(plan.seed)
    stream = _stream(plan.seed + 300)

    def batches(first: int) -> DataLoader:
        stream.first = first
        return DataLoader(stream, batch_size=None, num_workers=1)

    schedule = Schedule(plan.steps, learning_rate=3e-4, validate_every=plan.steps)
    validation = list(islice(_stream(plan.seed + 301), 2))
    fit(JointError(network), batches, validation, schedule=schedule)
    return network.eval()


def _mask_numbers(network: Blend2Mask2Flux, plan: Plan) -> dict[str, float]:
    area, overlap, sums = [], [], None
    for blend in Mixture().blends(TEST_BLENDS, seed=plan.seed + 302, progress=False):
        batch = training_batch(blend)
        with torch.no_grad():
            probability = network(batch.image).mask.float().sigmoid().numpy()
        mask = blend.mask.numpy()
        snr = batch.light.sum(1).numpy()
        faint = np.broadcast_to(((snr > 0.5) & (snr < 10))[:, None], mask.shape)
        measured = Reliability.measure(probability[faint], mask[faint])
        sums = measured if sums is None else sums + measured
        area.append([probability.sum(), mask.sum()])
        overlap.append(iou(probability, mask))
    total = np.sum(area, axis=0)
    mean = float(np.concatenate(overlap).mean())
    return {"area": total[0] / total[1], "IoU": mean, "ECE of faint pixels": sums.calibration_error}
