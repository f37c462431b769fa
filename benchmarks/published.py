"""The table of pairs that Boucaud et al. (2020, doi:10.1093/mnras/stz3056) published, and its prior."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path

import numpy as np
from astropy.table import Table

from probdeblend.metrics.accuracy import (
    MAGNITUDE_DIFFERENCE_EDGES,
    SEPARATION_EDGES,
    accuracy_by,
    binned_accuracy,
    magnitude_difference,
    pair_accuracy,
)
from probdeblend.metrics.fluxes import magnitude_error
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation.prior import Prior

__all__ = [
    "accuracy_summary",
    "describe_fit",
    "fit_prior",
    "published_results",
    "read_blends_table",
    "read_galaxies",
    "summarize_results",
]

PIXEL_SCALE = 0.06
FITTED = ("type_probabilities", "weights", "means", "covariances", "magnitude_range")
COLUMNS = ("id", "mag", "rad", "type")
METHODS = {"blend2flux": "b2f", "blend2mask2flux": "b2m2f", "SExtractor, isophotal": "sex"}
ZERO_POINT, SEXTRACTOR_ZERO_POINT = 25.96, 25.67
ERROR_EDGES = np.linspace(-1, 1, 41)
RESULTS = "results_boucaud2020.json"


def read_galaxies(path: str | PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the distinct galaxies of a table of pairs.

    Parameters
    ----------
    path
        CSV file with the columns ``g1_id``, ``g1_mag``, ``g1_rad`` (half-light radius in pixels of 0.06
        arcsec) and ``g1_type``, and the same for ``g2``, a row a pair.

    Returns
    -------
    tuple of numpy.ndarray
        Types, AB magnitudes and major-axis half-light radii in arcsec, one a galaxy.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CSV table, or columns are missing.
    """
    pairs = _read_pairs(path)
    columns = (np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS)
    number, magnitude, radius, kind = columns
    first = np.sort(np.unique(number, return_index=True)[1])
    return kind[first], magnitude[first], PIXEL_SCALE * radius[first]


def read_blends_table(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Read what is known of the pairs of the table, for comparison with a set of blends.

    Parameters
    ----------
    path
        CSV file as for `read_galaxies`, with the columns ``distance`` in pixels and ``detection``, the number of
        sources that SExtractor found.

    Returns
    -------
    dict
        ``magnitude``, ``half_light_radius`` (arcsec) and ``type`` of both galaxies of every pair, and
        ``separation`` (pixels) and ``detected`` (number of sources found) a pair.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CSV table, or columns are missing.
    """
    pairs = _read_pairs(path, "distance", "detection")
    both = {name: np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS}
    return {
        "magnitude": both["mag"].astype(float),
        "half_light_radius": PIXEL_SCALE * both["rad"].astype(float),
        "type": both["type"],
        "separation": np.asarray(pairs["distance"], dtype=float),
        "detected": np.asarray(pairs["detection"], dtype=int),
    }


def _read_pairs(path: str | PathLike[str], *others: str) -> Table:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        pairs = Table.read(path, format="ascii.csv")
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV table") from error
    wanted = [f"g{galaxy}_{name}" for galaxy in (1, 2) for name in COLUMNS] + list(others)
    if missing := [name for name in wanted if name not in pairs.colnames]:
        raise ValueError(f"{path}: the table must have the columns of both galaxies, it lacks {', '.join(missing)}")
    return pairs


def describe_fit(types: np.ndarray, magnitudes: np.ndarray, radii: np.ndarray, *, seed: int = 0) -> tuple[str, int]:
    """Fit the prior and describe it as the JSON that ships with the package.

    Parameters
    ----------
    types, magnitudes, radii, seed
        As for `~benchmarks.published.fit_prior`.

    Returns
    -------
    tuple
        The text, and the number of galaxies.

    Raises
    ------
    ValueError
        As by `~benchmarks.published.fit_prior`.
    """
    prior = fit_prior(types, magnitudes, radii, seed=seed)
    numbers = {name: getattr(prior, name) for name in FITTED}
    return json.dumps({"prior": numbers, "galaxies": len(types)}, indent=1), len(types)


def summarize_results(path: str | PathLike[str]) -> dict[str, dict]:
    """Measure the methods that the published table compares.

    Parameters
    ----------
    path
        CSV file as for `read_blends_table`, with the true fluxes ``g1_flux`` and ``g2_flux`` and those of each method,
        such as ``g1_flux_b2f``; SExtractor's are isophotal, at a zero point of 25.67 instead of 25.96.

    Returns
    -------
    dict
        By method: what `accuracy_summary` returns.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no CSV table, or columns are missing.
    """
    columns = [
        f"g{galaxy}_flux{end}" for galaxy in (1, 2) for end in ("", *(f"_{short}" for short in METHODS.values()))
    ]
    pairs = _read_pairs(path, "distance", *columns)

    def fluxes(end: str = "") -> np.ndarray:
        parts = [np.ma.filled(np.ma.asarray(pairs[f"g{galaxy}_flux{end}"], dtype=float), np.nan) for galaxy in (1, 2)]
        return np.stack(parts, -1)[..., None]

    kind = np.stack([np.asarray(pairs[f"g{galaxy}_type"]).astype(str) for galaxy in (1, 2)], -1)
    found = {}
    for name, short in METHODS.items():
        unit = 10 ** (0.4 * (ZERO_POINT - SEXTRACTOR_ZERO_POINT)) if short == "sex" else 1.0
        found[name] = accuracy_summary(unit * fluxes(f"_{short}"), fluxes(), np.asarray(pairs["distance"], float), kind)
    return found


def accuracy_summary(estimate: np.ndarray, truth: np.ndarray, separation: np.ndarray, kind: np.ndarray) -> dict:
    """Measure fluxes as the figures 5 to 9 of the paper show them.

    Parameters
    ----------
    estimate, truth
        Fluxes ``(blend, galaxy, band)``.
    separation
        Of the pair in pixels ``(blend,)``.
    kind
        Name of the type of each galaxy ``(blend, galaxy)``.

    Returns
    -------
    dict
        Rows of `~probdeblend.metrics.accuracy.pair_accuracy` (``pair``), of `~probdeblend.metrics.accuracy.binned_accuracy` by
        ``magnitude_difference`` and ``separation``, of `~probdeblend.metrics.accuracy.accuracy_by` by ``type``, and the
        ``errors`` in magnitudes: edges of bins, and the fraction of galaxies in each.
    """
    error = magnitude_error(estimate, truth)
    share = np.histogram(np.clip(error[np.isfinite(error)], *ERROR_EDGES[[0, -1]]), ERROR_EDGES)[0] / error.size
    difference = binned_accuracy(estimate, truth, magnitude_difference(truth), MAGNITUDE_DIFFERENCE_EDGES)
    return {
        "pair": _rows(pair_accuracy(estimate, truth)),
        "magnitude_difference": _rows(difference),
        "separation": _rows(binned_accuracy(estimate, truth, separation, SEPARATION_EDGES)),
        "type": _rows(accuracy_by(estimate, truth, kind)),
        "errors": {"edges": ERROR_EDGES.round(6).tolist(), "fraction": share.round(5).tolist()},
    }


def _rows(table: Table) -> list[dict]:
    """Return plain rows, numbers to five digits, None for NaN."""

    def plain(value: object) -> object:
        if isinstance(value, np.str_ | str):
            return str(value)
        number = float(value)
        if not np.isfinite(number):
            return None
        return int(number) if isinstance(value, np.integer) else float(f"{number:.5g}")

    return [{name: plain(row[name]) for name in table.colnames} for row in table]


def published_results() -> dict[str, dict]:
    """Return what `summarize_results` said of the published table; its numbers ship with the package.

    Returns
    -------
    dict
        By method.
    """
    return json.loads((Path(__file__).parent / "data" / RESULTS).read_text())


def fit_prior(types: np.ndarray, magnitudes: np.ndarray, radii: np.ndarray, *, seed: int = 0) -> Prior:
    """Fit the prior's types, magnitudes and radii to a sample of distinct galaxies.

    For each type a Gaussian mixture of one to three components, chosen by the Bayesian information criterion
    (scikit-learn).

    Parameters
    ----------
    types
        Names out of `GALAXY_TYPES`, one a galaxy.
    magnitudes
        AB magnitudes.
    radii
        Major-axis half-light radii in arcsec.
    seed
        Seed of the fit's starting points.

    Returns
    -------
    Prior
        The fitted prior, with the sample's range of magnitudes rounded outwards to whole ones.

    Raises
    ------
    ValueError
        If a type is unknown, has fewer than 30 galaxies, or a value is not finite or positive.
    """
    from sklearn.mixture import GaussianMixture

    types, magnitudes, radii = np.asarray(types), np.asarray(magnitudes, float), np.asarray(radii, float)
    unknown = sorted(set(types.tolist()) - set(GALAXY_TYPES))
    if unknown:
        raise ValueError(f"types must be among {', '.join(GALAXY_TYPES)}, got {', '.join(map(str, unknown))}")
    if not (np.isfinite(magnitudes).all() and np.isfinite(radii).all() and (radii > 0).all()):
        raise ValueError("magnitudes must be finite and radii finite and positive")
    fits = []
    for name in GALAXY_TYPES:
        sample = np.column_stack([magnitudes, np.log(radii)])[types == name]
        if len(sample) < 30:
            raise ValueError(f"at least 30 galaxies of each type are needed, got {len(sample)} of type {name}")
        trials = [GaussianMixture(k, n_init=5, random_state=seed, reg_covar=1e-3).fit(sample) for k in (1, 2, 3)]
        fits.append(min(trials, key=lambda fit, sample=sample: fit.bic(sample)))
    most = max(fit.n_components for fit in fits)
    weights, means, covariances = [], [], []
    for fit in fits:
        spare = most - fit.n_components
        weights.append([*np.round(fit.weights_, 4), *[0.0] * spare])
        means.append([*np.round(fit.means_, 4), *[fit.means_[0].round(4)] * spare])
        covariances.append([*np.round(fit.covariances_, 5), *[fit.covariances_[0].round(5)] * spare])
    share = [round(float((types == name).mean()), 4) for name in GALAXY_TYPES]
    nested = {"weights": weights, "means": means, "covariances": covariances}
    numbers = {name: np.array(value).tolist() for name, value in nested.items()} | {"type_probabilities": share}
    limits = (math.floor(magnitudes.min()), math.ceil(magnitudes.max()))
    return Prior.parse(json.dumps(numbers | {"magnitude_range": limits}))
