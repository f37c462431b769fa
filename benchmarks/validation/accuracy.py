"""Accuracy as in the figures of Boucaud et al. (2020, doi:10.1093/mnras/stz3056), beside the published numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.flux_accuracy import blending_excess
from benchmarks.published import accuracy_summary, published_results
from benchmarks.validation.figures import plot_accuracy, plot_bars, plot_errors, plot_magnitudes
from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows
from probdeblend.metrics.accuracy import accuracy_table
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import GALAXY_TYPES, Instrument
from probdeblend.simulation.galsim import render_torch, simulate_blends
from probdeblend.simulation.prior import Prior
from probdeblend.training.evaluation import Comparison, compare

__all__ = ["accuracy_section"]

SEP_KINDS = {"auto": "SEP, Kron", "mirrored": "SEP, Kron mirrored", "isophotal": "SEP, isophotal"}
COLUMNS = ("method", "quantity", "detected", "mape", "median_ape", "bias_mag", "nmad_mag", "sd_mag", "outliers")
UNCERTAIN = ("method", "coverage_68", "coverage_90", "width", "crps_ln", "pull_mean", "pull_sd", "residual_correlation")


def accuracy_section(plan: Plan) -> Section:
    """Measure the network and SEP on simulated blends of the published joint distribution."""
    instrument = Instrument.candels_f160w()
    drawn = {"prior": Prior.published(), "instrument": instrument, "seed": plan.seed, "render": render_torch}
    blends = simulate_blends(plan.accuracy, **drawn)
    deblender = plan.deblender
    trial = compare(blends, deblender, calibrator=deblender.calibrator, sep=tuple(SEP_KINDS), **plan.sampling)
    posteriors = {"network": trial.calibrated} | {name: trial.sep[kind] for kind, name in SEP_KINDS.items()}
    truths = {name: trial.truth["flux" if name == "network" else "auto_flux"] for name in posteriors}
    summaries = _summaries(posteriors, truths, trial)
    everyone = summaries | published_results()
    pairs = [{"method": name} | row for name, numbers in everyone.items() for row in numbers["pair"]]
    uncertain = accuracy_table({name: found.flux for name, found in posteriors.items()}, truths)
    matched = {
        name: _magnitude(found, instrument) - _offset(truths[name], truths["network"])
        for name, found in posteriors.items()
    }
    errors = {name: tuple(numbers["errors"].values()) for name, numbers in everyone.items()}
    truth = instrument.zero_point - 2.5 * np.log10(truths["network"][..., 0])
    return Section(
        "Accuracy beside the published networks",
        [
            f"{plan.accuracy} blends drawn from the joint distribution of the published test set, rendered by the "
            "torch renderer, with correlated and photon noise. The published networks and SExtractor were measured on "
            "blends of real galaxies: their rows are recomputed from the published table and are not a comparison of "
            "like with like.",
            "The network is scored on total fluxes, SEP on the AUTO fluxes of the isolated galaxies, which it "
            "measures. A galaxy that is missed counts as an outlier. Point estimates are medians.",
        ],
        {
            "Accuracy": plain_rows(pairs, COLUMNS),
            "Uncertainties": plain_rows(uncertain, UNCERTAIN),
            "Excess scatter of ln flux in the blend over the same galaxy alone": plain_rows([_excess(trial)]),
            "IoU of the masks by type": _iou_rows(trial),
        },
        {
            "Estimated against true magnitude, and the error with its histogram": plot_magnitudes(truth, matched),
            "Distribution of magnitude errors": plot_errors(errors),
            "Error against the difference to the other galaxy's magnitude": plot_accuracy(
                {name: numbers["magnitude_difference"] for name, numbers in everyone.items()},
                label="magnitude minus that of the other galaxy",
            ),
            "Error against separation": plot_accuracy(
                {name: numbers["separation"] for name, numbers in everyone.items()}, label="separation [pixel]"
            ),
            "Scatter by type": plot_bars(_by_type(everyone, "nmad_mag"), label="NMAD [mag]"),
            "Bias by type": plot_bars(_by_type(everyone, "bias_mag"), label="median error [mag]"),
            "IoU by type": plot_bars(_iou(trial), label="mean IoU"),
        },
    )


def _summaries(posteriors: dict[str, Posterior], truths: dict[str, NDArray], trial: Comparison) -> dict[str, dict]:
    kind = np.array(GALAXY_TYPES)[trial.truth["galaxy_type"]]
    x, y = trial.truth["x"], trial.truth["y"]
    separation = np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0])
    return {
        name: accuracy_summary(np.median(found.draws("blend", "galaxy", "band"), -1), truths[name], separation, kind)
        for name, found in posteriors.items()
    }


def _magnitude(posterior: Posterior, instrument: Instrument) -> NDArray[np.float64]:
    median = np.median(posterior.draws("blend", "galaxy", "band"), -1)[..., 0]
    return instrument.zero_point - 2.5 * np.log10(np.where(median > 0, median, np.nan))


def _offset(truth: NDArray, total: NDArray) -> NDArray[np.float64]:
    """Magnitudes by which a method's own true flux is fainter than the total one."""
    return -2.5 * np.log10(truth / total)[..., 0]


def _excess(trial: Comparison) -> dict[str, object]:
    """Excess of SEP, whose estimate of the isolated galaxy is its AUTO flux."""
    kron = np.median(trial.sep["auto"].draws("blend", "galaxy", "band"), -1)
    alone = trial.truth["auto_flux"]
    return {"method": SEP_KINDS["auto"]} | blending_excess(kron, alone, trial.truth["flux"])


def _by_type(everyone: dict[str, dict], column: str) -> dict[str, dict[str, float]]:
    return {name: {row["category"]: row[column] for row in found["type"]} for name, found in everyone.items()}


def _iou(trial: Comparison) -> dict[str, dict[str, float]]:
    kind = trial.truth["galaxy_type"]
    return {
        method: {name: float(values[kind == i].mean()) for i, name in enumerate(GALAXY_TYPES) if (kind == i).any()}
        for method, values in trial.iou.items()
    }


def _iou_rows(trial: Comparison) -> list[dict]:
    everything = {method: float(values.mean()) for method, values in trial.iou.items()}
    return plain_rows([{"method": name, "all": everything[name]} | by_type for name, by_type in _iou(trial).items()])
