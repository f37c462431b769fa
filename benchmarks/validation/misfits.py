"""Beyond the training family: the ladder of misfits, GalSim's renderer, and training end to end."""

from __future__ import annotations

import copy
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.ladder import climb
from benchmarks.plot_validation import plot_ladder
from benchmarks.predictive import predictive_check, zero_point_error
from benchmarks.render import render_check
from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows
from probdeblend.metrics.pixels import iou
from probdeblend.metrics.reliability import Reliability
from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.losses import JointError
from probdeblend.plots.images import plot_stamps
from probdeblend.scene import Instrument
from probdeblend.simulation.conditions import training_batch
from probdeblend.simulation.prior import Prior
from probdeblend.training.fit import Schedule, fit
from probdeblend.training.streams import SimulatedStream
from probdeblend.training.trial import simulated_batches

__all__ = ["end_to_end_section", "galsim_section", "ladder_section"]

LADDER = (
    "rung",
    "state",
    "count",
    "galaxies",
    "coverage_68",
    "coverage_68_low",
    "coverage_68_high",
    "coverage_90",
    "width",
    "interval_score",
    "bias_mag",
    "nmad_mag",
    "unfamiliar",
    "outside_prior",
    "outside_calibration",
)
TUNING_BATCH = 16
TEST_BLENDS = 256
STAMPS = 6


def ladder_section(plan: Plan) -> Section:
    """Climb the ladder of misfits.

    Parameters
    ----------
    plan
        What to run.

    Returns
    -------
    Section
        Table and figure.
    """
    table = climb(plan.deblender, count=plan.rung, library=plan.library, **plan.sampling)
    real = "" if plan.library is not None else " No library of real galaxies was given, so that rung is missing."
    return Section(
        "The ladder of misfits",
        [
            f"{plan.rung} blends a rung. Each changes one thing against the published population at the depth of "
            "CANDELS: coverage says what the change does to the error bars, flags whether it is noticed." + real,
        ],
        {"Every rung": plain_rows(table, LADDER)},
        {"Coverage, width and flags": plot_ladder(table)},
    )


def galsim_section(plan: Plan) -> Section:
    """Compare posteriors and the torch renderer with GalSim.

    Parameters
    ----------
    plan
        What to run.

    Returns
    -------
    Section
        Tables and residual maps.
    """
    few = plan.galsim < 100
    grid = render_check(indices=(0.7, 1.0, 4.0), radii=(0.3, 0.6)) if few else render_check()
    by_index = [
        {
            "sersic_index": index,
            "worst peak error": grid["peak_error"][grid["sersic_index"] == index].max(),
            "worst flux error": grid["flux_error"][grid["sersic_index"] == index].max(),
        }
        for index in np.unique(grid["sersic_index"])
    ]
    found = predictive_check(plan.deblender, count=plan.galsim, **plan.sampling)
    models = [
        {"model": name, "mean": values.mean(), "median": np.median(values), "95 % quantile": np.quantile(values, 0.95)}
        for name, values in found.chi_square.items()
    ]
    covered = {"truth": found.covers_truth.mean(), "best fit with GalSim's shapes": found.covers_fit.mean()}
    rows = [
        {"68 % intervals hold the": name, "fraction": value, "galaxies": 2 * plan.galsim}
        for name, value in covered.items()
    ]
    drift = zero_point_error(plan.deblender, seed=plan.seed)
    images = [found.image[:STAMPS], Instrument.candels_f160w().sky_rms * found.residual[:STAMPS]]
    titles = [f"blend {i}" for i in range(len(images[0]))] + [f"residual {i}" for i in range(len(images[0]))]
    return Section(
        "Validation against GalSim",
        [
            f"{plan.galsim} blends drawn by GalSim. Chi-square is the mean squared residual over the noise of sky "
            "and photons inside the galaxies' footprints, of models that GalSim renders with the true shapes. The "
            "truth has 1; posteriors, which do not know the shapes, have more by what their fluxes are uncertain.",
            "Sources followed through the zero points 25.95 and 31.4 come out at the same magnitude within "
            f"{drift:.1e} mag.",
        ],
        {
            "Chi-square a pixel": plain_rows(models),
            "Coverage": plain_rows(rows),
            "The torch renderer against GalSim, by Sérsic index": plain_rows(by_index),
        },
        {"Images, and residuals of the median model": plot_stamps(np.concatenate(images), titles)},
    )


def end_to_end_section(plan: Plan) -> Section:
    """Train the network on, with the flux loss reaching the masks or not, and compare the masks.

    Parameters
    ----------
    plan
        What to run.

    Returns
    -------
    Section
        A table.
    """
    networks = {"before": plan.deblender.network}
    for name, end_to_end in (("after, masks apart", False), ("after, end to end", True)):
        networks[name] = _tuned(plan, end_to_end=end_to_end)
    rows = [{"masks": name} | _mask_numbers(network, plan) for name, network in networks.items()]
    return Section(
        "Masks before and after training end to end",
        [
            "The network that ships keeps its masks as probabilities: the flux loss does not reach the U-Net. Here it "
            f"is trained on for {plan.steps} batches with the paper's joint loss (JointError), once as it is, once "
            "end to end, as the paper does. Area is the sum of all probabilities over that of all true masks.",
        ],
        {"Masks": plain_rows(rows)},
    )


def _stream(seed: int) -> SimulatedStream:
    return SimulatedStream(Prior.default(), Instrument.candels_f160w(), batch_size=TUNING_BATCH, seed=seed)


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
    for blend in simulated_batches(TEST_BLENDS, seed=plan.seed + 302, progress=False):
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
