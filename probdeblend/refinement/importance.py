"""Refinement: from a guess of all unknowns of a scene to their posterior under the generative model.

Damped Gauss-Newton steps (`~probdeblend.refinement.mode`) lead from the guess to the mode. A Student-t distribution
about it, as wide as the curvature there, proposes draws, which are weighted by the model's density over that of the
proposal, with Pareto-smoothed weights (Vehtari et al. 2024, arXiv:1507.02646). The weighted moments make a second
proposal; the draws of both are weighted as draws of their mixture (Veach & Guibas 1995, doi:10.1145/218380.218498).
A proposal learns from its weighted draws: each draw is divided among the modes in proportion to their densities there,
and modes take on the shares and moments of their draws (Cappé et al. 2008, doi:10.1007/s11222-008-9059-x).
Scenes with poor weights start again from the last proposal. The result is exact up to the noise of the weights, *if the
model is right*: importance weights test the proposal against the model, not the model against the sky. Nor can they
reveal a mode that the proposal never samples, so the proposal is a mixture about all modes that were found.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from ..posterior.moments import import_arviz
from ..scene import check_least, seeded
from .mode import find_modes
from .unknowns import Unknowns

__all__ = ["Mixture", "Refined", "refine"]

LARGEST_K_HAT = 0.7
LEAST_POSSIBLE = 0.1  # of the draws, so that their weights have a tail
NOTHING = -700.0  # ln of a weight that counts as zero
ROUNDS = 2  # proposals in each attempt
ENOUGH = 0.125  # of the draws are effective
DEGREES = 6.0  # of freedom
OWN = 50.0  # effective draws that the present moments are worth beside those of the weighted draws
LEAST = 1e-300  # keeps weights that add up to zero from dividing by it


@dataclass(frozen=True, eq=False)
class Mixture:
    """Student-t distributions of six degrees of freedom.

    Each mode has a mean ``(mode, number)``, a covariance ``(mode, number, number)`` and a share ``(mode,)``; shares add
    up to one.
    """

    mean: Tensor
    covariance: Tensor
    share: Tensor

    @cached_property
    def _scale(self) -> Tensor:
        """Lower triangular factors ``(mode, number, number)``."""
        return torch.linalg.cholesky(self.covariance * (DEGREES - 2) / DEGREES)

    def draw(self, draws: int) -> Tensor:
        """Draw vectors ``(draw, number)`` from torch's generator, as many of each mode as its share."""
        place = (torch.arange(draws) + torch.rand(())) / draws
        mode = (place[:, None] > self.share.cumsum(0)).sum(-1).clamp(max=len(self.share) - 1)
        normal = torch.randn(draws, self.mean.shape[-1], dtype=torch.float64)
        stretch = (DEGREES / torch.distributions.Chi2(DEGREES).sample((draws, 1))).double().sqrt()
        return self.mean[mode] + stretch * (self._scale[mode] @ normal[..., None])[..., 0]

    def log_prob(self, vector: Tensor) -> Tensor:
        """Return the density of vectors ``(draw, number)``."""
        return self._each(vector).logsumexp(0)

    def _each(self, vector: Tensor) -> Tensor:
        """Return the density under each mode times its share ``(mode, draw)``."""
        degrees = torch.tensor(DEGREES).double()
        modes = dist.MultivariateStudentT(degrees, self.mean[:, None], self._scale[:, None], validate_args=False)
        return modes.log_prob(vector) + self.share.log()[:, None]

    def moved(self, vector: Tensor, weight: Tensor) -> "Mixture":
        """Update toward the weighted moments of draws; the step grows with their effective number.

        Weights ``(draw,)`` add up to one, or are all zero, which moves nothing.
        """
        each = weight * self._each(vector).softmax(0)
        part, trust = each / each.sum(1, keepdim=True).clamp(min=LEAST), _trust(each)[:, None]
        mean = part @ vector
        offset = vector - mean[:, None]
        covariance = torch.einsum("mdi,mdj,md->mij", offset, offset, part)
        share = torch.lerp(self.share, each.sum(1), _trust(weight))
        return Mixture(
            torch.lerp(self.mean, mean, trust),
            torch.lerp(self.covariance, covariance, trust[..., None]),
            share / share.sum(),
        )


def _trust(weight: Tensor) -> Tensor:
    """Return how far to go toward weighted draws ``(..., draw)``, from 0 to 1."""
    effective = weight.sum(-1).square() / weight.square().sum(-1).clamp(min=LEAST)
    return effective / (effective + OWN)


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
    if bad := int((~torch.isfinite(starts)).sum()):
        raise ValueError(f"starts must be finite, got NaN or infinity in {bad} numbers")
    check_least(100, draws=draws)
    check_least(1, attempts=attempts)
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
    arviz = import_arviz()
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        if hasattr(arviz, "psislw"):
            smoothed, k_hat = arviz.psislw(finite)
        else:  # ArviZ 1.x, for log-likelihoods
            smoothed, k_hat = import_module("arviz_stats.base").array_stats.psislw(-finite)
    smoothed = np.asarray(smoothed)
    return np.maximum(smoothed - logsumexp(smoothed), NOTHING), float(k_hat)
