"""Accuracy as the figures of the paper split it: by what SExtractor found, by magnitude difference, and by type.

Of every pair the fluxes ``(pair, 2)`` of both galaxies, the central one first; an estimate that is NaN is a galaxy that
was missed. The case of a pair is what SExtractor found in it: the central galaxy alone, the companion alone, both, or
more than two sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from probdeblend.metrics.accuracy import magnitude_error, point_accuracy
from probdeblend.metrics.arrays import over_finite
from probdeblend.metrics.coverage import in_bins
from probdeblend.scene import GALAXY_TYPES

__all__ = ["CASES", "published_results", "read_published", "summarize"]

CASES = ("central alone", "companion alone", "both", "more")
METHODS = {"blend2flux": "b2f", "blend2mask2flux": "b2m2f", "SExtractor, isophotal": "sex"}
ZERO_POINT, SEXTRACTOR_ZERO_POINT = 25.96, 25.67  # SExtractor's fluxes are at another one
DIFFERENCE_EDGES = np.linspace(-2, 2, 7)  # magnitudes
ERROR_EDGES = np.linspace(-1, 1, 41)  # magnitudes
RESULTS = Path(__file__).parent.parent / "data" / "results_boucaud2020.json"
NUMBERS = ("count", "detected", "mape", "bias_mag", "nmad_mag", "sd_mag", "outliers")
Rows = list[dict[str, object]]


def summarize(estimate: ArrayLike, truth: ArrayLike, kind: ArrayLike, case: ArrayLike) -> dict[str, object]:
    """Measure fluxes ``(pair, 2)`` as the paper's figures do.

    `kind` is the name of each galaxy's type, `case` the index into `CASES` of each pair. Returned are rows for all
    (``all``), by ``case`` (figure 6), by ``difference`` of magnitude for each galaxy (figures 7 and 8), by
    ``type_difference`` of the central galaxy (figure 9), and the histogram of ``errors`` in magnitudes.
    """
    estimate, truth = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    kind, case = np.asarray(kind), np.asarray(case)
    own = -2.5 * np.log10(truth)
    difference = own - own[:, ::-1]
    error = magnitude_error(estimate, truth)
    share = np.histogram(np.clip(error[np.isfinite(error)], -1, 1), ERROR_EDGES)[0] / error.size
    relative = (estimate - truth) / truth
    known = relative[np.isfinite(relative).all(1)]
    varied = len(known) > 2 and (np.ptp(known, axis=0) > 0).all()
    galaxies = {"each": slice(None), "central": slice(0, 1), "companion": slice(1, 2)}
    rows = [{"flux": name} | _row(estimate[:, part], truth[:, part]) for name, part in galaxies.items()]
    return {
        "all": [*rows, {"flux": "total"} | _row(estimate.sum(1), truth.sum(1))],
        "correlation": float(spearmanr(*known.T).statistic) if varied else None,
        "case": [
            {"case": name} | _row(estimate[case == number], truth[case == number]) for number, name in enumerate(CASES)
        ],
        "difference": [
            {"flux": name, "low": low, "high": high} | _row(estimate[:, part][inside], truth[:, part][inside])
            for name, part in galaxies.items()
            for low, high, inside in in_bins(difference[:, part], DIFFERENCE_EDGES)
        ],
        "type_difference": [
            {"type": name, "low": low, "high": high} | _row(estimate[:, 0][chosen], truth[:, 0][chosen])
            for name in GALAXY_TYPES
            for low, high, inside in in_bins(difference[:, 0], DIFFERENCE_EDGES)
            for chosen in [inside & (kind[:, 0] == name)]
        ],
        "errors": {"edges": ERROR_EDGES.round(6).tolist(), "fraction": share.round(5).tolist()},
    }


def _row(estimate: NDArray, truth: NDArray) -> dict[str, object]:
    """Return numbers that JSON can hold, to five digits; None for NaN."""
    found = point_accuracy(estimate, truth)
    found["sd_mag"] = over_finite(np.std, magnitude_error(estimate, truth))
    row = {name: float(f"{found[name]:.5g}") for name in NUMBERS}
    return {name: None if np.isnan(value) else value for name, value in row.items()} | {"count": int(found["count"])}


def read_published(path: Path) -> dict[str, dict]:
    """Measure the methods in the published table of pairs, a CSV file: by method, what `summarize` returns."""
    pairs = Table.read(path, format="ascii.csv")

    def both(name: str) -> NDArray:
        columns = [np.ma.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]
        return np.stack([np.ma.filled(c.astype(float), np.nan) if c.dtype.kind != "U" else c for c in columns], -1)

    kind, case, found = both("type").astype(str), np.asarray(pairs["detection"]), {}
    for name, short in METHODS.items():
        unit = 10 ** (0.4 * (ZERO_POINT - SEXTRACTOR_ZERO_POINT)) if short == "sex" else 1.0
        found[name] = summarize(unit * both(f"flux_{short}"), both("flux"), kind, case)
    return found


def published_results() -> Mapping[str, dict]:
    """Return what `read_published` found in the published table, from the file in ``benchmarks/data``."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))
