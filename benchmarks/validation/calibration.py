"""Calibration on fresh blends of the training family, before and after the calibrator."""

from __future__ import annotations

import warnings

import numpy as np
from astropy.table import Table, vstack
from numpy.typing import NDArray

from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows
from probdeblend.metrics.coverage import THIN, binned_table, quantile_edges
from probdeblend.metrics.masks import Reliability
from probdeblend.metrics.ranks import joint_pit, pit, tarp
from probdeblend.plots.calibration import plot_coverage, plot_ranks, plot_reliability
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.groups import estimated_features
from probdeblend.scene import GALAXY_TYPES, Instrument
from probdeblend.training.calibrate import compare_as_trained
from probdeblend.training.evaluation import REGIONS, Comparison, log_fluxes, scorecard

__all__ = ["calibration_section"]

COVERAGE = tuple(f"coverage_{level}" for level in (50, 68, 90, 95))
SHOWN = ("state", "quantity", "count", *COVERAGE, "pull_mean", "pull_sd", "within_1", "within_2", "within_3", "width")
SCORES = ("interval_score", "energy_score", "log_score", "correlation", "rank_p")
BINNED = ("feature", "low", "high", "count", *COVERAGE, "coverage_68_low", "coverage_68_high", "pull_sd", "width")
FRESH = 7919  # keeps the blends apart from those that the calibrator was fitted on
RANKS_DRAWS = 250
SEPARATIONS = (0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0)


def calibration_section(plan: Plan) -> Section:
    """Test the posteriors of fresh blends, drawn as the training set was."""
    deblender, description = plan.deblender, plan.deblender.description
    masks = max(plan.calibration // 4, 1)
    trial = compare_as_trained(deblender, plan.calibration, masks, fresh=FRESH, **plan.sampling)
    states = {"network": trial.network}
    if deblender.calibrator is not None:
        states["calibrated"] = trial.calibrated
    truth, floor = trial.truth["flux"], trial.truth["sky_rms"]
    cards = []
    for state, posterior in states.items():
        card = scorecard(posterior, truth, floor=floor, seed=plan.seed)
        card.add_column([state] * len(card), name="state", index=0)
        cards.append(card)
    card = vstack(cards)
    last = list(states)[-1]
    return Section(
        "Calibration on the training family",
        [
            f"{plan.calibration} fresh blends of the family that the network was trained on: all magnitudes, depths "
            f"and PSFs of the training, {description.close_fraction:.0%} of the batches close pairs, other galaxies. "
            "The calibrator was fitted on other blends. Masks are tested on blends such as those that the encoder, "
            f"which they come from, was trained on: {description.encoder_close_fraction:.0%} close pairs.",
            "Numbers are those of ln flux. Binomial bands of 95 % surround each level; those of each flux count "
            "blends, as the errors of a pair are tied, and its ranks are tested for each galaxy of the pair by itself. "
            "Bands are those of an exact posterior: the scatter of a calibrator, which was fitted on a finite set, "
            f"comes on top. Bins with fewer than {THIN} galaxies tell little.",
        ],
        {
            "Coverage and pulls": plain_rows(card, SHOWN),
            "Scores and ranks": plain_rows(card, ("state", "quantity", *SCORES)),
            "Masks": _mask_rows(trial.masks, states),
            f"In bins ({last})": plain_rows(_binned(states[last], trial)),
        },
        {
            "Coverage against the probability of the interval": plot_coverage(card)[0].figure,
            "Ranks of the truth among the draws of each flux": _ranks_figure(states, trial),
            "Ranks of the pair: Mahalanobis distance, total flux, TARP": _joint_figure(states[last], trial),
            "Reliability of the masks, before and after": plot_reliability(
                {name: sums for name, sums in trial.masks.items() if len(states) > 1 or name in REGIONS}
            ).figure,
        },
    )


def _mask_rows(masks: dict[str, Reliability], states: dict[str, Posterior]) -> list[dict]:
    rows = []
    for region in REGIONS:
        for state in states:
            sums = masks[f"{region} calibrated" if state == "calibrated" else region]
            scores = {"ECE": sums.calibration_error, "Brier": sums.brier_score}
            rows.append({"state": state, "pixels": region, "count": int(sums.count.sum())} | scores)
    return plain_rows(rows)


def _binned(posterior: Posterior, trial: Comparison) -> Table:
    """Rows of bins by what is estimated, and by blendedness, separation and type, which are true ones."""
    draws, truth = log_fluxes(posterior, trial.truth["flux"], trial.truth["sky_rms"])
    snr, separation, ratio = np.moveaxis(estimated_features(posterior)[:, :, 0, :3], -1, 0)
    fwhm = Instrument.candels_f160w().fwhm
    features = {
        "estimated S/N": np.exp(snr),
        "estimated separation over FWHM": separation / fwhm,
        "estimated ln flux ratio": ratio,
        "blendedness": trial.truth["blendedness"],
    }
    tables = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # thin bins: the section says which they are
        for name, values in features.items():
            table = binned_table(draws, truth, values, quantile_edges(values))
            table.add_column([name] * len(table), name="feature", index=0)
            tables.append(table)
        apart = np.hypot(*(np.diff(trial.truth[name], axis=1)[:, 0] for name in "xy")) / fwhm
        table = binned_table(draws, truth, np.stack([apart, apart], -1), np.array(SEPARATIONS))
        table.add_column(["true separation over FWHM"] * len(table), name="feature", index=0)
        tables.append(table)
        edges = np.arange(len(GALAXY_TYPES) + 1) - 0.5
        table = binned_table(draws, truth, trial.truth["galaxy_type"], edges)
        names = [GALAXY_TYPES[round(low + 0.5)] for low in table["low"]]
        table.add_column([f"type {name}" for name in names], name="feature", index=0)
    return vstack([*tables, table])[list(BINNED)]


def _ranks_figure(states: dict[str, Posterior], trial: Comparison) -> object:
    found = {}
    for state, posterior in states.items():
        draws, truth = log_fluxes(posterior, trial.truth["flux"], trial.truth["sky_rms"])
        found[state] = pit(draws, truth)
    return plot_ranks(found).figure


def _joint_figure(posterior: Posterior, trial: Comparison) -> object:
    draws, truth = log_fluxes(posterior, trial.truth["flux"], trial.truth["sky_rms"])
    some: NDArray = draws[:: max(1, len(draws) // RANKS_DRAWS)]
    total = np.log(np.exp(draws).sum(-1)), np.log(np.exp(truth).sum(-1))
    found = {"distance": joint_pit(draws, truth), "total flux": pit(*total), "TARP": tarp(some, truth)}
    return plot_ranks(found).figure
