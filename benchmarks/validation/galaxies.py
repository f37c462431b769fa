"""Real galaxies, blended after the fact: five folds by galaxy, for the network and for SEP."""

from __future__ import annotations

import numpy as np
from astropy.table import Table, vstack

from benchmarks.validation.plan import Plan
from benchmarks.validation.section import Section, plain_rows
from probdeblend.plots.calibration import plot_coverage
from probdeblend.posterior.groups import estimated_features
from probdeblend.scene import Instrument
from probdeblend.training.calibrate import FOLDS, fit_calibrator, pairs_in_folds
from probdeblend.training.evaluation import compare

__all__ = ["real_section"]

LEAST = 20
COVERAGE = ("coverage_68", "coverage_68_low", "coverage_68_high", "coverage_90", "coverage_95")
COLUMNS = ("method", "state", "quantity", "count", "galaxies", *COVERAGE, "interval_score", "width")


def real_section(plan: Plan) -> Section:
    """Calibrate posteriors of blends of real galaxies on other real galaxies, and test them."""
    blends, folds_by_identity = pairs_in_folds(
        plan.library, plan.real, instrument=Instrument.candels_f160w(), seed=plan.seed
    )
    deblender = plan.deblender
    trial = compare(blends, deblender, calibrator=deblender.calibrator, **plan.sampling)
    folds = folds_by_identity(trial.truth["identity"])
    answers = {
        "network": (trial.network, trial.truth["flux"]),
        "SEP, Kron": (trial.sep["auto"], trial.truth["auto_flux"]),
    }
    tables = []
    for method, (posterior, truth) in answers.items():
        for repair in ("floor", "conformal"):
            fit = fit_calibrator(posterior, trial, truth=truth, least=LEAST, repair=repair, folds=folds)
            tables.append(_named(fit.tested, f"{method}, {repair}"))
    card = vstack(tables)
    galaxies = len(np.unique(trial.truth["identity"]))
    snr = np.exp(np.nanmedian(estimated_features(trial.network)[..., 0]))
    return Section(
        "Real galaxies, blended after the fact",
        [
            f"{len(trial.network)} blends of {galaxies} real isolated galaxies in {FOLDS} folds: galaxies are blended "
            "within their fold, and each fold is corrected by a calibrator fitted on the other four. Bands are "
            f"95 % bootstrap bands over galaxies. The median estimated S/N is {snr:.0f}.",
            'So few galaxies constrain one number: an error added in quadrature ("floor"), which weighs most where '
            'noise is lowest; a whole quantile map ("conformal") is coarse. '
            "SEP's quoted errors are corrected in the same way. The network is scored on corrected total fluxes, "
            "SEP on the AUTO fluxes of the isolated galaxies.",
        ],
        {"Before and after calibration": plain_rows(card, COLUMNS)},
        {
            f"Coverage: {method}": plot_coverage(card[card["method"] == method])[0].figure
            for method in dict.fromkeys(card["method"])
        },
    )


def _named(table: Table, method: str) -> Table:
    table.add_column([method] * len(table), name="method", index=0)
    return table
