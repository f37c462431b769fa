"""The table of pairs that Boucaud et al. (2020, doi:10.1093/mnras/stz3056) published: its methods, and its population.

One row per pair; of each galaxy ``g1`` and ``g2`` the columns ``_id``, ``_mag``, ``_rad`` (half-light radius in pixels
of 0.06 arcsec), ``_type``, its true ``_flux`` and that of each method, such as ``_flux_b2f``; of the pair ``distance``
in pixels and ``detection``, what SExtractor found: the central galaxy alone (0), the companion alone (1), both (2), or
more than two sources (3).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np
from astropy.table import Table

from benchmarks._command import FILE
from benchmarks.boucaud2020.statistics import read_published
from probdeblend._files import whole_file
from probdeblend.scene import GALAXY_TYPES
from probdeblend.simulation.mixtures import nested_tuples
from probdeblend.simulation.population import Population

__all__ = ["continued", "fit_population", "main", "read_galaxies"]

PIXEL_SCALE = 0.06  # arcsec
FITTED = ("type_probabilities", "weights", "means", "covariances", "magnitude_range")
COLUMNS = ("id", "mag", "rad", "type")
LEAST = 30  # galaxies of a type, to fit its distribution
FAINT_FRACTION, FAINTEST = 0.3, 26.0  # of the galaxies that are continued, and magnitude to which they are
FAINT_MAGNITUDES = ((23.6, 0.6), (24.9, 0.6))  # mean and standard deviation of the Gaussians of the continuation

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing file.")


def read_galaxies(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return types, AB magnitudes and major-axis half-light radii in arcsec of the table's distinct galaxies."""
    try:
        pairs = Table.read(path, format="ascii.csv")
    except ValueError as error:
        raise ValueError(f"{path}: not a CSV table") from error
    wanted = [f"g{galaxy}_{name}" for galaxy in (1, 2) for name in COLUMNS]
    if missing := [name for name in wanted if name not in pairs.colnames]:
        raise ValueError(f"{path}: the table lacks {', '.join(missing)}")
    both = {name: np.concatenate([np.asarray(pairs[f"g{galaxy}_{name}"]) for galaxy in (1, 2)]) for name in COLUMNS}
    first = np.sort(np.unique(both["id"], return_index=True)[1])
    return both["type"][first], both["mag"][first], PIXEL_SCALE * both["rad"][first]


def fit_population(types: np.ndarray, magnitudes: np.ndarray, radii: np.ndarray, *, seed: int = 0) -> Population:
    """Fit types, magnitudes and radii to distinct galaxies, as `read_galaxies` returns them.

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
    fields = numbers | {"magnitude_range": limits}
    return Population(**{name: nested_tuples(value) for name, value in fields.items()})


def continued(population: Population) -> Population:
    """Continue a fraction of the galaxies to magnitude 26, along the relation of size and magnitude."""
    weights, means, covariances = [], [], []
    for w, m, c in zip(population.weights, population.means, population.covariances, strict=True):
        share = np.array(w)[:, None]
        mean = (share * np.array(m)).sum(0)
        spread = np.array(m) - mean
        total = (share[..., None] * (np.array(c) + spread[:, :, None] * spread[:, None, :])).sum(0)
        slope = float(total[0, 1] / total[0, 0])
        scatter = float(total[1, 1] - slope * total[0, 1])
        added = [(mag, float(mean[1] + slope * (mag - mean[0]))) for mag, _ in FAINT_MAGNITUDES]
        variances = [sd**2 for _, sd in FAINT_MAGNITUDES]
        weights.append((*[x * (1 - FAINT_FRACTION) for x in w], *[FAINT_FRACTION / len(added)] * len(added)))
        means.append((*m, *added))
        covariances.append((*c, *[((v, slope * v), (slope * v, slope**2 * v + scatter)) for v in variances]))
    limits = (population.magnitude_range[0], FAINTEST)
    mixture = {"weights": tuple(weights), "means": tuple(means), "covariances": tuple(covariances)}
    return population.replace(**mixture, magnitude_range=limits)


@click.group("python -m benchmarks.published")
def main() -> None:
    """Fit the population to the published table of pairs, or measure the methods in it."""


@main.command("fit")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="prior.json", show_default=True, help="File to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same fit.")
@overwrite_option
def fit_command(table: Path, output: Path, seed: int, overwrite: bool) -> None:
    """Fit types, magnitudes and radii to the distinct galaxies in TABLE, a CSV file."""
    with whole_file(output, overwrite=overwrite) as temporary:
        galaxies = read_galaxies(table)
        population = fit_population(*galaxies, seed=seed)
        both = {"prior": population, "extended": continued(population)}
        described = {key: {name: getattr(own, name) for name in FITTED} for key, own in both.items()}
        described["galaxies"] = len(galaxies[0])
        temporary.write_text(json.dumps(described, indent=1), encoding="utf-8")
    click.echo(f"population of {described['galaxies']} galaxies written to {output}")


@main.command("summarize")
@click.argument("table", type=FILE)
@click.option("--output", type=FILE, default="results.json", show_default=True, help="File to write.")
@overwrite_option
def summarize_command(table: Path, output: Path, overwrite: bool) -> None:
    """Measure the methods in TABLE, a CSV file, for `benchmarks.boucaud2020` to compare with."""
    with whole_file(output, overwrite=overwrite) as temporary:
        results = read_published(table)
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for method, numbers in results.items():
        flux = numbers["all"][0]
        rest = f"{flux['nmad_mag']:.3f} mag NMAD, {flux['outliers']:.2%} beyond 0.75 mag"
        click.echo(f"{method}: MAPE {flux['mape']:.1f} %, {rest}, {flux['detected']:.1%} detected")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
