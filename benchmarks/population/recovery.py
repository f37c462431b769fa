"""Counts and flux ratios of a population of blends, recovered from posteriors that were made under another one.

Posteriors that are calibrated on average over the prior can be biased by a percent in a part of it; for a population
concentrated there these biases accumulate. What was recovered is therefore simulated, deblended and recovered once
more: its error, with its scatter, is subtracted (indirect inference: Gouriéroux, Monfort & Renault 1993,
doi:10.1002/jae.3950080507).

The tested population differs from the training prior in magnitudes alone: its galaxies gather within 0.2 mag of 23.3,
about as closely as the errors of two galaxies that overlap. The two galaxies of a pair are not independent draws, so
that the deconvolution is given both: the magnitude of the two together, which is known best, and the difference.
Networks see images in units of the sky noise: their prior is that of flux over noise, over all depths of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table, vstack
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.population.deconvolution import Population, agreement, recover_population, stack
from benchmarks.population.reweighting import Imitation, concentrated
from probdeblend._files import kept_arrays
from probdeblend.deblending.deblender import Deblender
from probdeblend.scene import LN_FLUX_UNIT, seed_of
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior
from probdeblend.training.evaluation import compare, log_fluxes
from probdeblend.training.streams import Mixture

__all__ = ["CELLS", "WIDE_CELLS", "Recovered", "population_table", "recover", "shares_table", "summarize"]

LEVELS = (0.68, 0.95)
TESTED = {"center": 23.3, "width": 0.2}
SKY_RMS = 4e-3  # the middle of the training's, in e-/s
EXPOSURE = 3200.0
CELLS = (0.05, 0.1)  # of the magnitude of both together, which is known best, and of the difference
WIDE_CELLS = (0.1, 0.2)  # no wider than errors, and fast
PAIRS = 50  # of the prior for each blend, so that their noise is small beside that of the blends
DEPTHS = 8  # at which each of them is used
CHUNK = 50_000
MAGNITUDES = (22.0, 22.75, 22.9, 23.05, 23.2, 23.35, 23.5, 23.65, 23.8, 25.0)
LOG_RATIOS = (-1.8, -0.6, -0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.8)
BINS = {"magnitude": MAGNITUDES, "ln flux ratio": LOG_RATIOS}
METHODS = ("recovered", "uncorrected", "medians", "draws")
BOOTSTRAPS = 500


@dataclass(frozen=True, eq=False)
class Recovered:
    """What posteriors tell of the population of their blends.

    The posterior draws themselves, as `magnitudes` ``(draw, blend, galaxy)``; the distribution `found` of the magnitude
    of both galaxies together and of the difference; and `histograms` by quantity, draws of the share of each bin
    ``(sample, bin)``.
    """

    magnitudes: NDArray[np.float64]
    found: Population
    histograms: dict[str, NDArray[np.float64]]


def recover(magnitudes: NDArray, prior: ArrayLike, *, cells: Sequence[float] = CELLS, seed: int = 0) -> Recovered:
    """Recover a population from posterior magnitudes ``(draw, blend, galaxy)`` of its pairs, all of one depth.

    The prior is that of the network at this depth, as pairs of magnitudes ``(pair, galaxy)``.
    """
    prior = _pairs("prior", prior)
    coordinates = _coordinates(prior)
    edges = [
        np.arange(np.floor(low), np.ceil(high) + width, width)
        for low, high, width in zip(coordinates.min(0), coordinates.max(0), cells, strict=True)
    ]
    found = recover_population(_coordinates(magnitudes), coordinates, edges, seed=seed)
    counts = (found.histogram(prior[:, 0], MAGNITUDES) + found.histogram(prior[:, 1], MAGNITUDES)) / 2
    ratios = found.histogram(_log_ratio(prior), LOG_RATIOS)
    return Recovered(magnitudes, found, dict(zip(BINS, (counts, ratios), strict=True)))


def shares_table(
    recovered: Recovered,
    truth: ArrayLike,
    *,
    again: Recovered | None = None,
    imitated: ArrayLike | None = None,
    seed: int = 0,
) -> Table:
    """Compare a population, given as pairs of magnitudes, with what was recovered of it, and with stacking.

    `again` is what was recovered from blends that were simulated from what was first recovered, the pairs `imitated`:
    the difference, the method's own error, is subtracted from the recovered shares, with its scatter. One row per bin,
    with the ends of the bands; the metadata holds by quantity the ``p_values`` of the four estimates.
    """
    truth = _shares(_pairs("truth", truth))
    error = dict.fromkeys(BINS, 0.0)
    if again is not None:
        known = _shares(_pairs("imitated", imitated))
        error = {quantity: again.histograms[quantity] - known[quantity] for quantity in BINS}
    magnitudes = recovered.magnitudes
    draws = dict(zip(BINS, (magnitudes, _log_ratio(magnitudes)), strict=True))
    rows = []
    for quantity, edges in BINS.items():
        histograms = {"uncorrected": recovered.histograms[quantity]} | _stacked(draws[quantity], edges, seed=seed)
        corrected = np.maximum(histograms["uncorrected"] - error[quantity], 0)
        corrected *= histograms["uncorrected"].sum(1, keepdims=True) / corrected.sum(1, keepdims=True)
        rows.append(_rows(quantity, {"recovered": corrected} | histograms, truth[quantity]))
    table = vstack(rows, metadata_conflicts="silent")
    for name in table.colnames[3:]:
        table[name].info.format = ".4f"
    table.meta = {"blends": magnitudes.shape[1], "unused": recovered.found.unused, "p_values": table.meta}
    return table


def summarize(table: Table) -> Table:
    """Return one row per quantity and estimate: the fraction in the wrong bin, the p-value, bins in the 95 % band."""
    rows = []
    for quantity, p_values in table.meta["p_values"].items():
        bins = table[table["quantity"] == quantity]
        inside = np.mean((bins["low_95"] <= bins["truth"]) & (bins["truth"] <= bins["high_95"]))
        for name in METHODS:
            wrong = np.abs(bins[name] - bins["truth"]).sum() / 2
            within = inside if name == "recovered" else np.nan
            rows.append((quantity, name, wrong, p_values[name], within))
    names = ("quantity", "estimate", "misplaced", "p_value", "inside_95")
    summary = Table(rows=rows, names=names)
    for name in names[2:]:
        summary[name].info.format = ".3g"
    return summary


def _shares(magnitudes: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the share of each bin, by quantity, among pairs of magnitudes."""
    values = dict(zip(BINS, (magnitudes, _log_ratio(magnitudes)), strict=True))
    return {
        quantity: np.histogram(values[quantity], edges)[0] / values[quantity].size for quantity, edges in BINS.items()
    }


def _pairs(name: str, value: ArrayLike) -> NDArray[np.float64]:
    pairs = np.asarray(value, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"{name} must be pairs of magnitudes (pair, 2), got shape {pairs.shape}")
    return pairs


def _coordinates(magnitudes: NDArray) -> NDArray[np.float64]:
    """Return the magnitude of both galaxies together, and the difference of their magnitudes ``(..., 2)``."""
    total = -LN_FLUX_UNIT * np.logaddexp(-magnitudes[..., 0] / LN_FLUX_UNIT, -magnitudes[..., 1] / LN_FLUX_UNIT)
    return np.stack([total, magnitudes[..., 0] - magnitudes[..., 1]], -1)


def _log_ratio(magnitudes: NDArray) -> NDArray:
    return (magnitudes[..., 0] - magnitudes[..., 1]) / LN_FLUX_UNIT


def _stacked(draws: NDArray, edges: Sequence[float], *, seed: int) -> dict[str, NDArray]:
    """Return histograms of stacked medians and draws, of bootstrapped blends."""
    rng, histograms = np.random.default_rng((seed, len(edges))), {}
    for name, added in zip(("medians", "draws"), stack(draws, edges), strict=True):
        blends = len(added)
        histograms[name] = rng.multinomial(blends, np.full(blends, 1 / blends), size=BOOTSTRAPS) / blends @ added
    return histograms


def _rows(quantity: str, histograms: dict[str, NDArray], share: NDArray) -> Table:
    """Return the rows of a quantity, with its p-values as metadata."""
    edges, recovered = BINS[quantity], histograms["recovered"]
    columns = {"quantity": [quantity] * len(share), "low": edges[:-1], "high": edges[1:], "truth": share}
    columns["recovered"] = recovered.mean(0)
    for level in LEVELS:
        ends = np.quantile(recovered, ((1 - level) / 2, (1 + level) / 2), axis=0)
        columns |= {f"{name}_{100 * level:g}": end for name, end in zip(("low", "high"), ends, strict=True)}
    columns |= {name: histograms[name].mean(0) for name in METHODS[1:]}
    return Table(columns, meta={quantity: {name: agreement(found, share) for name, found in histograms.items()}})


def population_table(
    deblender: Deblender, *, count: int, cells: Sequence[float] = CELLS, kept: Path | None = None, **sampling: int
) -> Table:
    """Simulate blends of a population unlike the training prior, deblend them, and recover the population.

    The deblender is one that was trained on `Prior.default` at the depths of `Conditions`, as the weights that ship.
    """
    seed, trained, zero_point = sampling["seed"], Prior.default(), deblender.instrument.zero_point
    tested = concentrated(trained, **TESTED)
    depth = Conditions(sky_rms=(SKY_RMS, SKY_RMS), exposure=(EXPOSURE, EXPOSURE))
    pairs = max(PAIRS * count, CHUNK)
    pool = _sampled(trained, pairs, seed=seed_of(seed, 1))
    prior = _at_depths(_magnitudes(pool), seed=seed_of(seed, 2))

    def deblended(population: Prior | Imitation, number: int) -> dict[str, NDArray]:
        simulated = {"prior": population, "conditions": depth, "instrument": deblender.instrument}
        blends = Mixture(**simulated).blends(count, seed=seed_of(seed, number))
        drawn = sampling | {"seed": seed + number}
        trial = compare(blends, deblender, calibrator=deblender.calibrator, sep=(), **drawn)
        log_flux, _ = log_fluxes(trial.calibrated, trial.truth["flux"], trial.truth["sky_rms"])
        return {"magnitudes": zero_point - LN_FLUX_UNIT * log_flux}

    def recovered(population: Prior | Imitation, name: str, number: int) -> Recovered:
        arrays = kept_arrays(kept and kept / f"{name}.npz", lambda: deblended(population, number))
        return recover(arrays["magnitudes"], prior, cells=cells, seed=seed + number)

    first = recovered(tested, "first", 0)
    imitation = _imitation(first.found, trained, pool, seed=seed_of(seed, 6))
    again = recovered(imitation, "again", 4)
    imitated = _magnitudes(imitation.sample(pairs, seed=seed_of(seed, 5)))
    truth = _magnitudes(_sampled(tested, pairs, seed=seed_of(seed, 3)))
    return shares_table(first, truth, again=again, imitated=imitated, seed=seed)


def _imitation(found: Population, prior: Prior, pool: dict[str, Tensor], *, seed: int) -> Imitation:
    """Return the recovered population, made of pairs drawn around it, so that few come twice."""
    magnitudes = _magnitudes(pool)
    weights = found.weights(_coordinates(magnitudes)) @ np.stack([magnitudes, magnitudes**2]).sum(-1).T / 2
    center, width = weights[0], 2 * np.sqrt(weights[1] - weights[0] ** 2)
    near = _sampled(concentrated(prior, center=center, width=width), len(magnitudes), seed=seed)
    return Imitation(prior, near, found.weights(_coordinates(_magnitudes(near))))


def _sampled(prior: Prior, count: int, *, seed: int) -> dict[str, Tensor]:
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    drawn = [prior.sample(size, seed=seed_of(seed, number)) for number, size in enumerate(sizes)]
    return {name: torch.cat([pairs[name] for pairs in drawn]) for name in drawn[0]}


def _magnitudes(pairs: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return pairs["magnitude"].numpy().astype(np.float64)


def _at_depths(magnitudes: NDArray, *, seed: int) -> NDArray[np.float64]:
    """Return the magnitudes, at the depth of the test, of galaxies that look as these do at those of the training."""
    low, high = np.log(Conditions().sky_rms)
    pairs = np.tile(magnitudes, (DEPTHS, 1))
    rms = np.random.default_rng(seed).uniform(low, high, size=(len(pairs), 1))
    return pairs + LN_FLUX_UNIT * (rms - np.log(SKY_RMS))
