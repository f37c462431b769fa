"""Refinement: from a guess of all unknowns of a scene to their posterior under the generative model.

Damped Gauss-Newton steps (`~probdeblend.refinement.mode`) lead from the guess to the mode. A Student-t distribution
about it, as wide as the curvature there, proposes draws, which are weighted by the model's density over that of the
proposal, with Pareto-smoothed weights (Vehtari et al. 2024, arXiv:1507.02646). The weighted moments make a second
proposal; the draws of both are weighted as draws of their mixture (Veach & Guibas 1995, doi:10.1145/218380.218498).
Scenes with poor weights start again from the last proposal. The result is exact up to the noise of the weights, *if the
model is right*: importance weights test the proposal against the model, not the model against the sky. Nor can they
reveal a mode that the proposal never samples, so the proposal is a mixture about all modes that were found.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from ..posterior.moments import import_arviz
from ..scene import seeded
from .mode import find_modes
from .proposal import Mixture
from .unknowns import Unknowns

__all__ = ["Refined", "refine"]

LARGEST_K_HAT = 0.7
LEAST_POSSIBLE = 0.1  # of the draws, so that their weights have a tail
NOTHING = -700.0  # ln of a weight that counts as zero
ROUNDS = 2  # proposals in each attempt
ENOUGH = 0.125  # of the draws are effective


@dataclass(frozen=True, eq=False)
class Refined:
    """The posterior of all unknowns of a scene as weighted draws, and how good they are.

    Parameters
    ----------
    vector
        Draws ``(draw, number)``, as `Unknowns` has them.
    log_weight
        Smoothed and normalized ``(draw,)``: exponentials sum to one.
    k_hat
        Shape of the Pareto tail of the weights; `usable` compares it with its limit.
    effective
        Effective number of draws.
    """

    vector: NDArray[np.float64]
    log_weight: NDArray[np.float64]
    k_hat: float
    effective: float

    @property
    def usable(self) -> bool:
        """Whether the weights are reliable: k-hat below ``min(1 - 1 / log10(draws), 0.7)``."""
        return self.k_hat < min(1 - 1 / math.log10(len(self.vector)), LARGEST_K_HAT)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean ``(number,)`` and covariance of the draws.

        Returns
        -------
        mean, covariance
            Weighted moments.
        """
        weight = np.exp(self.log_weight)
        mean = weight @ self.vector
        offset = self.vector - mean
        return mean, (offset * weight[:, None]).T @ offset

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
            ``(draw, number)``, in random order; some occur more than once.
        """
        rng = np.random.default_rng(seed)
        edges = np.cumsum(np.exp(self.log_weight))
        place = (np.arange(draws) + rng.random()) / draws * edges[-1]
        return rng.permutation(self.vector[np.searchsorted(edges, place).clip(max=len(edges) - 1)])


def refine(unknowns: Unknowns, starts: Tensor, *, draws: int = 400, attempts: int = 5, seed: int = 0) -> Refined:
    """Sample the posterior of a scene under the generative model.

    Parameters
    ----------
    unknowns
        The scene and its model.
    starts
        Guesses ``(guess, number)``, the best one first, such as mean and draws of the guide.
    draws
        Number of draws of each of the two proposals of an attempt.
    attempts
        Most attempts: if weights are unreliable, or less than an eighth of the draws are effective, another one goes on
        from what was learned.
    seed
        Same seed, same draws.

    Returns
    -------
    Refined
        The draws of the best attempt.

    Raises
    ------
    ValueError
        If `starts` is of another shape or not finite, or a number is too small.
    """
    numbers = int(unknowns.free.sum())
    if starts.ndim != 2 or not len(starts) or starts.shape[1] != numbers:
        raise ValueError(f"starts must have the shape (guess, {numbers}), got {tuple(starts.shape)}")
    if not bool(torch.isfinite(starts).all()):
        raise ValueError(
            f"starts must be finite, got NaN or infinity in {int((~torch.isfinite(starts)).sum())} numbers"
        )
    for name, value, least in (("draws", draws, 100), ("attempts", attempts, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    with torch.no_grad(), seeded(seed), np.errstate(all="ignore"):
        places, curvatures, share = find_modes(unknowns, starts)
        proposal, tried = Mixture(places, torch.linalg.inv(curvatures), share), []
        for _ in range(attempts):
            rounds: list[tuple[Mixture, Tensor, Tensor]] = []
            for _ in range(ROUNDS):
                vector = proposal.draw(draws)
                rounds.append((proposal, vector, unknowns.log_joint(vector).double()))
                found = _weighted(rounds)
                if math.isfinite(found.k_hat):  # else weights are equal and meaningless
                    weight = torch.from_numpy(np.exp(found.log_weight))
                    proposal = proposal.moved(torch.from_numpy(found.vector), weight)
            tried.append(found)
            best = max(tried, key=lambda one: (one.usable, one.effective))
            if best.usable and best.effective >= ENOUGH * ROUNDS * draws:
                break
    return best


def _weighted(rounds: list[tuple[Mixture, Tensor, Tensor]]) -> Refined:
    """Weight all draws as draws of the mixture of all proposals."""
    vector, log_joint = (torch.cat([part[number] for part in rounds]) for number in (1, 2))
    mixture = torch.stack([proposal.log_prob(vector) for proposal, *_ in rounds]).logsumexp(0) - math.log(len(rounds))
    raw = (log_joint - mixture).nan_to_num(*[-math.inf] * 3).numpy()
    smoothed, k_hat = _smoothed(raw)
    effective = float(1 / np.exp(2 * smoothed).sum()) if math.isfinite(k_hat) else 1.0
    return Refined(vector.numpy(), smoothed, k_hat, effective)


def _smoothed(log_weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return Pareto-smoothed, normalized log-weights ``(draw,)``, and the shape of their tail."""
    possible = np.isfinite(log_weight)
    if possible.mean() <= LEAST_POSSIBLE:
        return np.full(len(log_weight), -math.log(len(log_weight))), math.inf
    finite = np.where(possible, log_weight, log_weight[possible].max() - 1e3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smoothed, k_hat = import_arviz().psislw(finite)
    smoothed = np.asarray(smoothed)
    return np.maximum(smoothed - logsumexp(smoothed), NOTHING), float(k_hat)
