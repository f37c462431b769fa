"""The table of pairs that Boucaud et al. (2020, doi:10.1093/mnras/stz3056) published: its methods, and its prior.

One row per pair; of each galaxy ``g1`` and ``g2`` the columns ``_id``, ``_mag``, ``_rad`` (half-light radius in pixels
of 0.06 arcsec), ``_type``, its true ``_flux`` and that of each method, such as ``_flux_b2f``; of the pair ``distance``
in pixels and ``detection``, the number of sources that SExtractor found.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np
from astropy.table import Table

from benchmarks.flux_accuracy import (
    MAGNITUDE_DIFFERENCE_EDGES,
    SEPARATION_EDGES,
    accuracy_by,
    binned_accuracy,
    magnitude_difference,
    pair_accuracy,
)
from benchmarks.validation.section import plain_rows
from probdeblend._files import whole_file
from probdeblend.cli.options import FILE
from probdeblend.cli.options import overwrite as overwrite_option
from probdeblend.cli.options import seed as seed_option
from probdeblend.metrics.accuracy import magnitude_error
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation.prior import Prior

__all__ = ["accuracy_summary", "fit_prior", "main", "published_results", "read_blends_table", "read_galaxies"]

PIXEL_SCALE = 0.06  # arcsec
FITTED = ("type_probabilities", "weights", "means", "covariances", "magnitude_range")
COLUMNS = ("id", "mag", "rad", "type")
METHODS = {"blend2flux": "b2f", "blend2mask2flux": "b2m2f", "SExtractor, isophotal": "sex"}
ZERO_POINT, SEXTRACTOR_ZERO_POINT = 25.96, 25.67  # SExtractor's fluxes are at another one
ERROR_EDGES = np.linspace(-1, 1, 41)
LEAST = 30  # galaxies of a type, to fit its distribution
RESULTS = Path(__file__).parent / "data" / "results_boucaud2020.json"


def read_galaxies(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return types, AB magnitudes and major-axis half-light radii in arcsec of the table's distinct galaxies."""
    both = _both(_read_pairs(path))
    first = np.sort(np.unique(both["id"], return_index=True)[1])
    return both["type"][first], both["mag"][first], PIXEL_SCALE * both["rad"][first]


def read_blends_table(path: Path) -> dict[str, np.ndarray]:
    """Return the table's columns under the names that sets of blends have.

    Of both galaxies of every pair ``magnitude``, ``half_light_radius`` (arcsec) and ``type``; of the pair
    ``separation`` (pixels) and ``detected``, the number of sources found.
    """
    pairs = _read_pairs(path, "distance", "detection")
    both = _both(pairs)
    return {
        "magnitude": both["mag"].astype(float),
        "half_light_radius": PIXEL_SCALE * both["rad"].astype(float),
        "type": both["type"],
        "separation": np.asarray(pairs["distance"], dtype=float),
        "detected": np.asarray(pairs["detection"], dtype=int),
    }


def _read_pairs(path: Path, *others: str) -> Table:
    try:
        pairs = Table.read(path, format="ascii.csv")
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV table") from error
    wanted = [f"g{galaxy}_{name}" for galaxy in (1, 2) for name in COLUMNS] + list(others)
    if missing := [name for name in wanted if name not in pairs.colnames]:
        raise ValueError(f"{path}: the table lacks {', '.join(missing)}")
    return pairs


def _both(pairs: Table) -> dict[str, np.ndarray]:
    """Return the columns of all first galaxies, then of all second ones."""
    return {name: np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS}


def summarize_results(path: Path) -> dict[str, dict]:
    """Measure the methods that the table compares: by method, what `accuracy_summary` returns."""
    ends = ("", *(f"_{short}" for short in METHODS.values()))
    pairs = _read_pairs(path, "distance", *(f"g{galaxy}_flux{end}" for galaxy in (1, 2) for end in ends))

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
    """Measure fluxes ``(blend, galaxy, band)`` as figures 5 to 9 of the paper show them.

    Rows of accuracy for all (``pair``), by ``magnitude_difference``, ``separation`` (pixels) and ``type`` (the name of
    each galaxy's), and the ``errors`` in magnitudes: edges of bins, and the fraction of galaxies in each.
    """
    error = magnitude_error(estimate, truth)
    share = np.histogram(np.clip(error[np.isfinite(error)], *ERROR_EDGES[[0, -1]]), ERROR_EDGES)[0] / error.size
    difference = binned_accuracy(estimate, truth, magnitude_difference(truth), MAGNITUDE_DIFFERENCE_EDGES)
    return {
        "pair": plain_rows(pair_accuracy(estimate, truth)),
        "magnitude_difference": plain_rows(difference),
        "separation": plain_rows(binned_accuracy(estimate, truth, separation, SEPARATION_EDGES)),
        "type": plain_rows(accuracy_by(estimate, truth, kind)),
        "errors": {"edges": ERROR_EDGES.round(6).tolist(), "fraction": share.round(5).tolist()},
    }


def published_results() -> dict[str, dict]:
    """Return what `summarize_results` found in the published table, from the file beside this module."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def fit_prior(types: np.ndarray, magnitudes: np.ndarray, radii: np.ndarray, *, seed: int = 0) -> Prior:
    """Fit the prior's types, magnitudes and radii to distinct galaxies, as `read_galaxies` returns them.

    Of each type, ln radius and magnitude are a Gaussian mixture of one to three components, chosen by the Bayesian
    information criterion; the range of magnitudes is rounded outwards to whole ones.
    """
    from sklearn.mixture import GaussianMixture

    types, magnitudes, radii = np.asarray(types), np.asarray(magnitudes, float), np.asarray(radii, float)
    if unknown := sorted(set(types.tolist()) - set(GALAXY_TYPES)):
        raise ValueError(f"types must be among {', '.join(GALAXY_TYPES)}, got {', '.join(map(str, unknown))}")
    if not (np.isfinite(magnitudes).all() and np.isfinite(radii).all() and (radii > 0).all()):
        raise ValueError("magnitudes must be finite and radii finite and positive")
    fits = []
    for name in GALAXY_TYPES:
        sample = np.column_stack([magnitudes, np.log(radii)])[types == name]
        if len(sample) < LEAST:
            raise ValueError(f"at least {LEAST} galaxies of each type are needed, got {len(sample)} of type {name}")
        mixtures = [GaussianMixture(k, n_init=5, random_state=seed, reg_covar=1e-3).fit(sample) for k in (1, 2, 3)]
        fits.append(min(mixtures, key=lambda fit, sample=sample: fit.bic(sample)))
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


@click.group("python -m benchmarks.published")
def main() -> None:
    """Fit the prior to the published table of pairs, or measure the methods in it."""


@main.command("fit-prior")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="prior.json", show_default=True, help="File to write.")
@seed_option
@overwrite_option
def fit_prior_command(table: Path, output: Path, seed: int, overwrite: bool) -> None:
    """Fit the prior of types, magnitudes and radii to the distinct galaxies in TABLE, a CSV file."""
    with whole_file(output, overwrite=overwrite) as temporary:
        galaxies = read_galaxies(table)
        prior = fit_prior(*galaxies, seed=seed)
        described = {"prior": {name: getattr(prior, name) for name in FITTED}, "galaxies": len(galaxies[0])}
        temporary.write_text(json.dumps(described, indent=1), encoding="utf-8")
    click.echo(f"prior of {described['galaxies']} galaxies written to {output}")


@main.command("summarize")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="results.json", show_default=True, help="File to write.")
@overwrite_option
def summarize_command(table: Path, output: Path, overwrite: bool) -> None:
    """Measure the methods in TABLE, a CSV file, for the validation report to compare with."""
    with whole_file(output, overwrite=overwrite) as temporary:
        results = summarize_results(table)
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for method, numbers in results.items():
        flux = numbers["pair"][0]
        rest = f"{flux['nmad_mag']:.3f} mag NMAD, {flux['outliers']:.2%} beyond 0.75 mag"
        click.echo(f"{method}: MAPE {flux['mape']:.1f} %, {rest}, {flux['detected']:.1%} detected")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
