"""A population from the posteriors of its members: the distribution of any quantities, with bands.

The posterior of blend i contains the prior pi that the network was trained under. A histogram of all draws, or of
their medians, is therefore neither the population nor the prior. The likelihood of blend i in cell k of the quantities
is the fraction of its draws that lie there over the fraction of the prior's: ``w_ik = q_i(k) / pi_k``. The
shares ``p_k`` of the population have the likelihood ``prod_i sum_k w_ik p_k`` (Laird 1978,
doi:10.1080/01621459.1978.10480103; Hogg, Myers & Bovy 2010, doi:10.1088/0004-637X/725/2/2166).

Its maximum is noisy where cells are narrower than errors. ``ln(p_k / pi_k)`` therefore has a Gaussian process as its
prior: what the data do not resolve stays smooth, and widens the bands. The mode is found by Newton's method with the
empirical information (Louis 1982, doi:10.1111/j.2517-6161.1982.tb01203.x), and Hamiltonian Monte Carlo (Neal 2011,
arXiv:1206.1901) samples around it, in coordinates in which the posterior is about a unit normal. Within a cell the
population is taken to be shaped as the prior: cells are to be narrower than errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import cholesky, solve_triangular

__all__ = ["Population", "agreement", "recover_population", "stack"]

AMPLITUDE = 3.0  # standard deviation of ln(population / prior)
LEAST_PRIOR_DRAWS = 20  # that a cell holds: its share of the prior is known to a fifth
NEGLIGIBLE = 1e-3  # variance of a mode of the Gaussian process that is left out
CHUNK = 256
MOST_STEPS = 200
SHORTEST = 1e-4
CONVERGED = 1e-3
WARM_UP = 50
LEAPS = 6
LEAP = 0.25


@dataclass(frozen=True, eq=False)
class Population:
    """Draws of a population: shares of cells, within which it is shaped as the prior."""

    shares: NDArray[np.float64]  # of each cell (sample, cell)
    prior_cell: NDArray[np.int64]  # number of the cell of each draw of the prior; -1 for none
    unused: int  # blends without a draw in any cell, which were left out
    accepted: float  # fraction of the steps of the Markov chain that were taken
    edges: tuple[NDArray[np.float64], ...]  # of the cells of each quantity
    number: NDArray[
        np.int64
    ]  # among the cells with shares, of each cell between the edges, and of those outside; or -1

    def histogram(self, values: ArrayLike, edges: ArrayLike) -> NDArray[np.float64]:
        """Return draws of the shares of bins ``(sample, bin)`` of any quantity, given for each draw of the prior."""
        values, edges = np.asarray(values, dtype=np.float64), _ascending(edges)
        if values.shape != self.prior_cell.shape:
            raise ValueError(f"values must have the shape {self.prior_cell.shape}, got {values.shape}")
        cells, bins = self.shares.shape[1], len(edges) - 1
        place = _cells(values[:, None], [edges])
        there = self.prior_cell >= 0
        inside = there & (place < bins)
        joint = np.bincount(place[inside] * cells + self.prior_cell[inside], minlength=bins * cells)
        return self.shares @ (joint.reshape(bins, cells) / np.bincount(self.prior_cell[there], minlength=cells)).T

    def weights(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities with which to take values ``(value, quantity)`` to imitate this population.

        They are the mean share of a value's cell over the number of values there.
        """
        cell = self.number[_cells(np.asarray(values, dtype=np.float64), self.edges)]
        inside = cell >= 0
        if not inside.any():
            raise ValueError("values must lie in cells of the population, got none that does")
        weight = np.zeros(len(cell))
        share, count = self.shares.mean(0), np.bincount(cell[inside], minlength=self.shares.shape[1])
        weight[inside] = share[cell[inside]] / count[cell[inside]]
        return weight / weight.sum()


@dataclass(frozen=True, eq=False)
class _Model:
    """The posterior of ln(population / prior), as coefficients of the Gaussian process's modes ``(cell, mode)``."""

    likelihood: sparse.csr_array
    log_prior: NDArray[np.float64]
    modes: NDArray[np.float64]

    def shares(self, coefficients: NDArray) -> NDArray:
        exponent = self.log_prior + self.modes @ coefficients
        share = np.exp(exponent - exponent.max())
        return share / share.sum()

    def evaluate(self, coefficients: NDArray) -> tuple[float, NDArray]:
        """Return the logarithm of the posterior and its gradient; not finite where a blend has no likelihood."""
        share = self.shares(coefficients)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            evidence = self.likelihood @ share
            expected = share * (self.likelihood.T @ (1 / evidence))
            value = np.log(evidence).sum() - coefficients @ coefficients / 2
            return float(value), (expected - len(evidence) * share) @ self.modes - coefficients

    def information(self, coefficients: NDArray) -> NDArray:
        share = self.shares(coefficients)
        evidence = self.likelihood @ share
        responsible = sparse.diags_array(1 / evidence) @ self.likelihood @ sparse.diags_array(share)
        score = responsible @ self.modes
        score -= score.mean(0)
        return score.T @ score + np.eye(score.shape[1])


def recover_population(
    draws: ArrayLike,
    prior_draws: ArrayLike,
    edges: Sequence[ArrayLike],
    *,
    scale: float = 0.5,
    samples: int = 500,
    seed: int = 0,
) -> Population:
    """Recover the population from posteriors of its members.

    Posterior draws are ``(draw, blend, quantity)``, NaN or outside all cells where they are to be ignored; those of the
    prior that they were made under ``(prior draw, quantity)``. Cells lie between the edges of each quantity; those with
    fewer than 20 draws of the prior are left out: where the prior excludes all, posteriors tell nothing. The scale is
    the length over which ln(population / prior) is smooth, in the unit of the quantities.
    """
    draws, prior_draws = np.asarray(draws), np.asarray(prior_draws, dtype=np.float64)
    limits = [_ascending(values) for values in edges]
    _check(draws, prior_draws, limits, scale=scale, samples=samples)
    widths = [len(values) - 1 for values in limits]
    place = _cells(prior_draws, limits)
    count = np.bincount(place, minlength=np.prod(widths) + 1)[:-1]
    used = np.flatnonzero(count >= LEAST_PRIOR_DRAWS)
    number = np.full(len(count) + 1, -1)
    number[used] = np.arange(len(used))
    share = count[used] / len(prior_draws)
    likelihood = _counts(draws, limits, number, len(used)) @ sparse.diags_array(1 / share)
    known = np.diff(likelihood.indptr) > 0
    if not known.any():
        raise ValueError(f"blends must have draws in cells with {LEAST_PRIOR_DRAWS} draws of the prior, got none")
    middles = [(values[1:] + values[:-1]) / 2 for values in limits]
    centers = np.stack([m[i] for m, i in zip(middles, np.unravel_index(used, widths), strict=True)], -1)
    model = _Model(likelihood[known], np.log(share), _modes(centers / scale))
    chain, accepted = _sample(model, _mode(model), samples=samples, rng=np.random.default_rng(seed))
    shares = np.stack([model.shares(coefficients) for coefficients in chain])
    return Population(shares, number[place], int((~known).sum()), accepted, tuple(limits), number)


def _ascending(edges: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(edges, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
        raise ValueError(f"edges must be at least two finite numbers that ascend, got {values}")
    return values


def _check(draws: NDArray, prior_draws: NDArray, limits: list[NDArray], *, scale: float, samples: int) -> None:
    if draws.ndim != 3 or 0 in draws.shape:
        raise ValueError(f"draws must have the axes (draw, blend, quantity), got shape {draws.shape}")
    if prior_draws.ndim != 2 or prior_draws.shape[1] != draws.shape[2]:
        raise ValueError(f"prior_draws must have the shape (draw, {draws.shape[2]}), got {prior_draws.shape}")
    if len(limits) != draws.shape[2]:
        raise ValueError(f"edges must be given for each of {draws.shape[2]} quantities, got {len(limits)}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")


def _cells(values: NDArray, limits: Sequence[NDArray]) -> NDArray[np.int64]:
    """Return the number of the cell of values ``(..., quantity)``, and the number of cells for those in none."""
    cell, inside = np.zeros(values.shape[:-1], dtype=np.int64), np.ones(values.shape[:-1], dtype=bool)
    for axis, ends in enumerate(limits):
        place = np.searchsorted(ends, values[..., axis], side="right") - 1
        inside &= (place >= 0) & (place < len(ends) - 1)
        cell = cell * (len(ends) - 1) + place
    return np.where(inside, cell, np.prod([len(ends) - 1 for ends in limits]))


def _counts(draws: NDArray, limits: Sequence[NDArray], number: NDArray, cells: int) -> sparse.csr_array:
    """Return the number of draws in each cell ``(blend, cell)``, some blends at a time."""
    parts = []
    for start in range(0, draws.shape[1], CHUNK):
        cell = number[_cells(draws[:, start : start + CHUNK], limits)]
        blend = np.broadcast_to(np.arange(cell.shape[1]), cell.shape)
        inside = cell >= 0
        part = (np.ones(inside.sum()), (blend[inside], cell[inside]))
        parts.append(sparse.coo_array(part, shape=(cell.shape[1], cells)).tocsr())
    return sparse.vstack(parts, format="csr") / len(draws)


def _modes(centers: NDArray) -> NDArray[np.float64]:
    """Return modes of a Gaussian process over cells, each as large as its standard deviation ``(cell, mode)``."""
    squared = (centers**2).sum(1)
    distance = squared[:, None] + squared - 2 * centers @ centers.T
    variance, vectors = np.linalg.eigh(AMPLITUDE**2 * np.exp(-distance / 2))
    kept = variance > NEGLIGIBLE
    return vectors[:, kept] * np.sqrt(variance[kept])


def _mode(model: _Model) -> NDArray[np.float64]:
    place = np.zeros(model.modes.shape[1])
    value, gradient = model.evaluate(place)
    for _ in range(MOST_STEPS):
        direction, length = np.linalg.solve(model.information(place), gradient), 1.0
        ahead = model.evaluate(place + direction)
        while not ahead[0] >= value and length > SHORTEST:
            length /= 2
            ahead = model.evaluate(place + length * direction)
        if not ahead[0] - value > CONVERGED:
            break
        place = place + length * direction
        value, gradient = ahead
    return place


def _sample(
    model: _Model, mode: NDArray, *, samples: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.float64]], float]:
    root = cholesky(model.information(mode), lower=True)
    spread = solve_triangular(root, np.eye(len(mode)), lower=True).T
    place, (value, gradient), chain, taken = mode, model.evaluate(mode), [], 0
    for number in range(WARM_UP + samples):
        velocity = rng.normal(size=len(mode))
        energy, leap = value - velocity @ velocity / 2, LEAP * rng.uniform(0.8, 1.2)
        ahead, slope = place, gradient
        velocity = velocity + leap / 2 * (spread.T @ slope)
        for left in reversed(range(LEAPS)):
            ahead = ahead + leap * (spread @ velocity)
            reached, slope = model.evaluate(ahead)
            velocity = velocity + (leap if left else leap / 2) * (spread.T @ slope)
        if np.log(rng.random()) < reached - velocity @ velocity / 2 - energy:
            place, value, gradient = ahead, reached, slope
            taken += number >= WARM_UP
        if number >= WARM_UP:
            chain.append(place)
    return chain, taken / samples


def stack(draws: ArrayLike, edges: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each blend adds ``(blend, bin)`` to the histogram of medians, and to that of all draws.

    Draws are ``(draw, blend)``, or ``(draw, blend, galaxy)``. Neither histogram is the population.
    """
    values, limits = np.asarray(draws), [_ascending(edges)]
    if values.ndim not in (2, 3):
        raise ValueError(f"draws must have the axes (draw, blend) or (draw, blend, galaxy), got shape {values.shape}")
    values = values.reshape(*values.shape[:2], -1)
    number = np.append(np.arange(len(limits[0]) - 1), -1)

    def added(found: NDArray) -> NDArray:
        rows = found.transpose(0, 2, 1).reshape(-1, found.shape[1], 1)
        return _counts(rows, limits, number, len(number) - 1).toarray()

    return added(np.median(values, 0)[None]), added(values)


def agreement(draws: ArrayLike, truth: ArrayLike) -> float:
    """Return a p-value: the fraction of draws of a histogram that are as far from their mean as the truth.

    Distances are summed squares in units of each bin's scatter.
    """
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    error = np.vstack([truth, draws]) - draws.mean(0)
    scatter = np.maximum(draws.std(0), np.finfo(float).eps)
    distance = ((error / scatter) ** 2).sum(1)
    return float((distance >= distance[0]).mean())
