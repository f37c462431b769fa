"""Refinement: from a guess of all unknowns of a blend to their posterior under the generative model.

Damped Gauss-Newton steps (`~probdeblend.refinement.mode`) lead from the guess to the mode. A Student-t distribution
about it, as wide as the curvature there, proposes draws, which are weighted by the model's density over that of the
proposal, with Pareto-smoothed weights (Vehtari et al. 2024, arXiv:1507.02646). The weighted moments make a second
proposal; the draws of both are weighted as draws of their mixture (Veach & Guibas 1995, doi:10.1145/218380.218498).
Blends with poor weights start again from the last proposal. The result is exact up to the noise of the weights, *if the
model is right*: importance weights test the proposal against the model, not the model against the sky.

Nor can weights reveal a mode that the proposal never samples. The light of galaxies closer than 1.5 FWHM of the PSF can
often be divided in several ways: more climbs start from the first mode (`~probdeblend.refinement.mode.find_modes`), and
where they end somewhere else the proposal is a mixture, which learns the weight of each mode.

The likelihood is the same if the galaxies are exchanged; only the prior, which puts the central galaxy near the center
of the stamp, breaks the symmetry. A draw therefore stands for all orders of its galaxies: its weight
is the density of these together over that of their being proposed, and its order is drawn from the prior. Where the
prior does not decide, as between two galaxies on either side of the middle, the posterior has a mode for each order,
and refinement from either finds both.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from ..posterior.reweight import systematic
from ..scene import MASK_THRESHOLD, seed_of
from .mode import find_modes
from .model import BlendModel, Observed, in_all_orders
from .proposal import Mixture

__all__ = ["Refined", "import_arviz", "refine", "weighted_draws"]

LARGEST_K_HAT = 0.7
LEAST_POSSIBLE = 0.1  # of the draws, so that their weights have a tail
NOTHING = -700.0  # ln of a weight that counts as zero
ROUNDS = 2  # proposals in each attempt
CHUNK = 64
LEAST_EVIDENCE = 1.0  # in ln, by which another attempt may fall behind
AXES = {"unknown": 1, "order": 1, "heaviest": 1, "log_weight": 1}  # of the blends; else the first
ENOUGH = 100.0  # effective draws


@dataclass(frozen=True, eq=False)
class Refined:
    """The posterior of all unknowns as weighted draws, and how good they are.

    Parameters
    ----------
    unknown
        Draws ``(draw, blend, number)``, as ``BlendModel.split`` divides them, with galaxies in the order in which they
        were proposed.
    order
        The order that the galaxies of each draw are to be put in ``(draw, blend)``, as an index into
        `itertools.permutations`.
    heaviest
        Probability that a draw belongs to the heaviest mode of its blend ``(draw, blend)``: one if there is one mode.
    log_weight
        Smoothed and normalized ``(draw, blend)``: exponentials sum to one over the draws.
    k_hat
        Shape of the Pareto tail of the weights ``(blend,)``; `usable` compares it with its limit.
    effective
        Effective number of draws ``(blend,)``.
    chi_square
        Mean square of residuals over their standard deviation, at the mean of the heaviest mode, in the pixels where a
        galaxy is brighter than three times the sky noise ``(blend, galaxy)``; about one if the model is right, NaN if
        there are no such pixels. Galaxies are in the order of `moments`.
    log_evidence, log_evidence_error
        Natural logarithm of the mean weight, and its standard error ``(blend,)``.
    """

    unknown: NDArray[np.float64]
    order: NDArray[np.int64]
    heaviest: NDArray[np.float64]
    log_weight: NDArray[np.float64]
    k_hat: NDArray[np.float64]
    effective: NDArray[np.float64]
    chi_square: NDArray[np.float64]
    log_evidence: NDArray[np.float64]
    log_evidence_error: NDArray[np.float64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which blends have reliable weights ``(blend,)``: k-hat below ``min(1 - 1 / log10(draws), 0.7)``."""
        return self.k_hat < min(1 - 1 / math.log10(len(self.unknown)), LARGEST_K_HAT)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return moments of the heaviest mode, with galaxies in the order of most of its draws.

        Returns
        -------
        mean, covariance
            ``(blend, number)`` and ``(blend, number, number)``.
        """
        weight, ordered = np.exp(self.log_weight) * self.heaviest, in_all_orders(torch.from_numpy(self.unknown)).numpy()
        likely = np.stack([(weight * (self.order == number)).sum(0) for number in range(len(ordered))]).argmax(0)
        values = np.take_along_axis(ordered, likely[None, None, :, None], 0)[0]
        weight = weight / weight.sum(0)
        mean = np.einsum("dbn,db->bn", values, weight)
        offset = values - mean
        return mean, np.einsum("dbn,dbm,db->bnm", offset, offset, weight)

    def resampled(self, draws: int, *, seed: int = 0) -> NDArray[np.float64]:
        """Return draws without weights, by systematic resampling.

        Parameters
        ----------
        draws
            Number of draws.
        seed
            Same seed, same draws.

        Returns
        -------
        NDArray
            ``(draw, blend, number)``, each with its galaxies in order; some occur more than once.
        """
        rng = np.random.default_rng(seed)
        chosen = systematic(np.exp(self.log_weight).T, draws, rng=rng).T
        drawn, order = np.take_along_axis(self.unknown, chosen[..., None], 0), np.take_along_axis(self.order, chosen, 0)
        return np.take_along_axis(in_all_orders(torch.from_numpy(drawn)).numpy(), order[None, ..., None], 0)[0]


def refine(
    model: BlendModel, observed: Observed, start: Tensor, *, draws: int = 400, attempts: int = 5, seed: int = 0
) -> Refined:
    """Sample the posterior under the generative model.

    Parameters
    ----------
    model
        The generative model.
    observed
        Images of its size.
    start
        A guess of the unknowns ``(blend, number)``, such as the mean of a guide.
    draws
        Number of draws of each of the two proposals of an attempt.
    attempts
        Most attempts: blends with unreliable weights, or fewer than 100 effective draws, go on from what was learned.
    seed
        Seed of the draws; those of a blend depend on it and on the blend's number in the batch alone.

    Returns
    -------
    Refined
        For each blend the draws of its best attempt.

    Raises
    ------
    ValueError
        If images have another size than the model, `start` is of another shape or not finite, or a number is too small.
    """
    _check(model, observed, start, draws=draws, attempts=attempts)
    parts = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for first in range(0, len(start), CHUNK):
            part = observed.select(slice(first, first + CHUNK))
            place, precision, share = find_modes(model, part, start[first : first + CHUNK])
            proposal = Mixture(place, torch.linalg.inv(precision), share)
            parts.append(weighted_draws(model, part, proposal, draws=draws, attempts=attempts, seed=(seed, first)))
    whole = {name: np.concatenate([vars(part)[name] for part in parts], AXES.get(name, 0)) for name in vars(parts[0])}
    return Refined(**whole)


def _check(model: BlendModel, observed: Observed, start: Tensor, *, draws: int, attempts: int) -> None:
    shape, wanted = tuple(observed.image.shape), (len(observed.image), model.numbers)
    if not len(observed.image) or shape[1:] != (model.size, model.size):
        raise ValueError(f"image must hold stamps of the model's {model.size} x {model.size} pixels, got shape {shape}")
    if tuple(start.shape) != wanted:
        raise ValueError(f"start must have the shape (blend, number) {wanted}, got {tuple(start.shape)}")
    for name, value in (("image", observed.image), ("start", start)):
        wrong = int((~torch.isfinite(value).flatten(1).all(1)).sum())
        if wrong:
            raise ValueError(f"{name} must be finite, got NaN or infinity in {wrong} of {len(value)} blends")
    for name, value, least in (("draws", draws, 100), ("attempts", attempts, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def weighted_draws(
    model: BlendModel, observed: Observed, proposal: Mixture, *, draws: int, attempts: int, seed: tuple[int, int]
) -> Refined:
    """Draw from a proposal, and from better ones in turn; blends with poor weights go on from what was learned."""
    chosen, found = np.arange(len(observed.image)), None
    for attempt in range(attempts):
        some, rounds = observed.select(chosen), []
        for number in range(attempt * ROUNDS, (attempt + 1) * ROUNDS):
            if rounds:
                proposal = _moved(proposal, rounds[-1:])
            seeds = [seed_of(*seed, number, blend) for blend in chosen.tolist()]
            rounds.append(_round(model, some, proposal, draws=draws, seeds=seeds))
        weighted = _weighted(model, some, rounds)
        proposal = _moved(proposal, rounds)
        found = weighted if found is None else _replaced(found, chosen, weighted)
        poor = (~found.usable | (found.effective < ENOUGH))[chosen]
        chosen, proposal = chosen[poor], proposal.select(poor)
        if not len(chosen):
            break
    return found


class _Round(NamedTuple):
    """Draws ``(draw, blend, number)``, the order each is to be put in, and the density of all orders together."""

    proposal: Mixture
    unknown: Tensor
    order: Tensor
    log_density: Tensor


def _round(model: BlendModel, observed: Observed, proposal: Mixture, *, draws: int, seeds: list[int]) -> _Round:
    unknown = proposal.draw(draws, seeds)
    log_prior = model.log_prior(in_all_orders(unknown).float(), observed).double()
    order = torch.stack([_drawn_order(log_prior[:, :, blend], seed) for blend, seed in enumerate(seeds)], 1)
    pieces = unknown.float().split(max(1, CHUNK // unknown.shape[1]))
    log_likelihood = torch.cat([model.log_likelihood(piece, observed) for piece in pieces]).double()
    return _Round(proposal, unknown, order, log_prior.logsumexp(0) + log_likelihood)


def _drawn_order(log_prior: Tensor, seed: int) -> Tensor:
    """Draw an order of the galaxies for each draw of a blend, from prior densities ``(order, draw)``."""
    share = (log_prior - log_prior.max(0).values.clamp(min=NOTHING)).exp()
    torch.manual_seed(seed_of(seed, 1))
    return (torch.rand(share.shape[1]) * share.sum(0) > share.cumsum(0)).sum(0).clamp(max=len(share) - 1)


def _weights(rounds: list[_Round]) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return all draws, ln of their weights as draws of the mixture of all proposals, these smoothed, and k-hat."""
    unknown, log_density = (torch.cat([getattr(part, name) for part in rounds]) for name in ("unknown", "log_density"))
    ordered = in_all_orders(unknown)
    mixture = torch.cat([part.proposal.log_prob(ordered) for part in rounds]).logsumexp(0) - math.log(len(rounds))
    log_weight = (log_density - mixture).nan_to_num(*[-math.inf] * 3).numpy()
    return unknown, log_weight, *_smoothed(log_weight)


def _moved(proposal: Mixture, rounds: list[_Round]) -> Mixture:
    unknown, _, smoothed, k_hat = _weights(rounds)
    return proposal.moved(unknown, torch.from_numpy(np.exp(smoothed) * np.isfinite(k_hat)))  # else equal, meaningless


def _weighted(model: BlendModel, observed: Observed, rounds: list[_Round]) -> Refined:
    unknown, log_weight, smoothed, k_hat = _weights(rounds)
    each = rounds[-1].proposal.divided(unknown, torch.ones_like(unknown[..., 0]))
    heaviest = (each * torch.from_numpy(np.exp(smoothed))).sum(1).argmax(0)
    effective = np.where(np.isfinite(k_hat), 1 / np.exp(2 * smoothed).sum(0), 1.0)
    found = Refined(
        unknown=unknown.numpy(),
        order=torch.cat([part.order for part in rounds]).numpy(),
        heaviest=each[heaviest, :, torch.arange(len(heaviest))].T.numpy(),
        log_weight=smoothed,
        k_hat=k_hat,
        effective=effective,
        chi_square=np.empty((len(k_hat), model.galaxies)),
        log_evidence=logsumexp(log_weight, axis=0) - math.log(len(unknown)),
        log_evidence_error=np.sqrt(np.maximum(1 / effective - 1 / len(unknown), 0)),
    )
    latents, sky_level, growth = model.split(torch.from_numpy(found.moments()[0]).float())
    light = model.light(latents, growth)
    residual = model.noisy(light.sum(1), sky_level, observed).residual(observed.image)[:, None]
    inside = (light > MASK_THRESHOLD).float()
    chi_square = (residual.square() * inside).sum((-2, -1)) / inside.sum((-2, -1))
    return replace(found, chi_square=chi_square.double().numpy())


def _smoothed(log_weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Pareto-smoothed, normalized log-weights ``(draw, blend)``, and the shapes of their tails."""
    usable = np.isfinite(log_weight).mean(0) > LEAST_POSSIBLE
    finite = np.where(np.isfinite(log_weight), log_weight, np.where(usable, log_weight.max(0), 0.0) - 1e3)
    arviz = import_arviz()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smoothed, k_hat = arviz.psislw(finite.T)
    smoothed = np.where(usable, np.asarray(smoothed).T, -np.log(len(log_weight)))
    smoothed = np.maximum(smoothed - logsumexp(smoothed, axis=0), NOTHING)
    return smoothed, np.where(usable, np.asarray(k_hat), np.inf)


def import_arviz() -> ModuleType:
    """Import ArviZ, which takes seconds and announces its next major version once per day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    return arviz


def _replaced(found: Refined, rows: NDArray[np.int64], others: Refined) -> Refined:
    """Put another attempt at some of the blends in the place of the first where it is better."""
    effective, k_hat, log_evidence = found.effective[rows], found.k_hat[rows], found.log_evidence[rows]
    better = (others.effective > effective) & (others.k_hat < np.maximum(k_hat, LARGEST_K_HAT))
    better &= others.log_evidence > log_evidence - LEAST_EVIDENCE  # less evidence: something was missed
    values = {name: value.copy() for name, value in vars(found).items()}
    for name, value in values.items():
        first, second = (np.moveaxis(array, AXES.get(name, 0), 0) for array in (value, vars(others)[name]))
        first[rows[better]] = second[better]
    return Refined(**values)
