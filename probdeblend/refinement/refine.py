"""Refinement: from a guess of all unknowns of a blend to their posterior under the generative model.

Damped Gauss-Newton steps (`~probdeblend.refinement.mode`) lead from the guess to the mode; a Student-t distribution around
it, as wide as the curvature says or fitted (`~probdeblend.refinement.variational`), proposes draws; these are weighted by the
model's density over that of the proposal, with Pareto-smoothed weights (Vehtari et al. 2024, arXiv:1507.02646); and the
weighted moments make a second proposal. The draws of both are weighted as draws of their mixture (Veach & Guibas 1995,
doi:10.1145/218380.218498). What comes out is exact up to the weights' noise, *if the model is right*: importance
weights judge the proposal by the model, not the model by the sky.

Nor do weights know of a mode that nothing was drawn from. The light of galaxies closer than 1.5 FWHM of the PSF can
often be divided in several ways: from the first mode more climbs begin (`~probdeblend.refinement.mode.Modes`), and where they
end somewhere else the proposal is a mixture, which learns how heavy each part is.

The image does not say which galaxy is which: exchanged, they are as likely, and the prior alone, which has the central
one near the middle of the stamp, tells them apart. A draw therefore stands for all orders of its galaxies: its weight
is the density of these together over that of their being proposed, and its order is drawn as the prior says. Where it
does not say, as between two galaxies on either side of the middle, the posterior has a mode for each order, and
refinement from either finds both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from ..posterior.reweight import systematic
from ..scene import MASK_THRESHOLD, seed_of
from .mode import Modes
from .model import BlendModel, Observed, in_all_orders
from .proposal import Mixture, Proposal

__all__ = ["Fit", "Refined", "refine"]

Fit = Callable[[BlendModel, Observed, Tensor, Tensor], Proposal]
"""From the model, its images, the mode and the precision there to a proposal."""

LARGEST_K_HAT = 0.7
LEAST_POSSIBLE = 0.1  # of the draws, so that their weights have a tail
NOTHING = -700.0  # ln of a weight that is none
CHUNK = 64
LEAST_EVIDENCE = 1.0  # in ln, by which another proposal may fall behind
AXES = {"unknown": 1, "order": 1, "heaviest": 1, "log_weight": 1}  # of the blends; else the first
ENOUGH = 100.0  # effective draws


@dataclass(frozen=True, eq=False)
class Refined:
    """The posterior of all unknowns, as weighted draws, and how good it is.

    Parameters
    ----------
    unknown
        Draws ``(draw, blend, number)``, as ``BlendModel.split`` divides them: galaxies are in the order in which they
        were proposed.
    order
        Which order of the galaxies a draw is to be put in ``(draw, blend)``: a number of `itertools.permutations`.
    heaviest
        Probability that a draw is of the blend's heaviest mode ``(draw, blend)``: one where it has one.
    log_weight
        Smoothed and normalized ``(draw, blend)``: exponentials sum to one over the draws.
    k_hat
        Shape of the Pareto tail of the weights ``(blend,)``; `usable` compares it with the limit.
    effective
        Effective number of draws ``(blend,)``.
    chi_square
        Mean square of residuals over their standard deviation, at the mean of the heaviest mode, in the pixels where a
        galaxy is brighter than three times the sky noise ``(blend, galaxy)``; about one where the model is right, NaN
        where no pixel is. Galaxies are in the order of `moments`.
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
        """Which blends have weights that can be used ``(blend,)``: k-hat below ``min(1 - 1 / log10(draws), 0.7)``."""
        return self.k_hat < min(1 - 1 / math.log10(len(self.unknown)), LARGEST_K_HAT)

    @property
    def poor(self) -> NDArray[np.int64]:
        """Numbers of the blends that more work may help: weights cannot be used, or fewer than 100 draws are left."""
        return np.flatnonzero(~self.usable | (self.effective < ENOUGH))

    def select(self, blends: NDArray) -> Refined:
        """Take some of the blends.

        Parameters
        ----------
        blends
            Their numbers, or which of them.

        Returns
        -------
        Refined
            Of these alone.
        """
        kept = {name: np.moveaxis(value, AXES.get(name, 0), 0)[blends] for name, value in vars(self).items()}
        return Refined(**{name: np.moveaxis(value, 0, AXES.get(name, 0)) for name, value in kept.items()})

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weighted means and covariances of the heaviest mode, galaxies in the order of most of its draws.

        Returns
        -------
        mean, covariance
            ``(blend, number)`` and ``(blend, number, number)``.
        """
        weight, ordered = np.exp(self.log_weight) * self.heaviest, in_all_orders(torch.from_numpy(self.unknown)).numpy()
        likely = np.stack([(weight * (self.order == number)).sum(0) for number in range(len(ordered))]).argmax(0)
        return _moments(np.take_along_axis(ordered, likely[None, None, :, None], 0)[0], weight / weight.sum(0))

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
            ``(draw, blend, number)``, each in its own order; some come more than once.
        """
        rng = np.random.default_rng(seed)
        chosen = systematic(np.exp(self.log_weight).T, draws, rng=rng).T
        drawn, order = np.take_along_axis(self.unknown, chosen[..., None], 0), np.take_along_axis(self.order, chosen, 0)
        return np.take_along_axis(in_all_orders(torch.from_numpy(drawn)).numpy(), order[None, ..., None], 0)[0]


def refine(
    model: BlendModel,
    observed: Observed,
    start: Tensor,
    *,
    draws: int = 400,
    steps: int = 40,
    rounds: int = 2,
    seed: int = 0,
    fits: Sequence[Fit | None] = (None,),
) -> Refined:
    """Find the posterior under the model.

    Parameters
    ----------
    model
        The generative model.
    observed
        Images of its size.
    start
        A guess of the unknowns ``(blend, number)``, such as the mean of a guide.
    draws
        Number of draws of each proposal.
    steps
        Most Gauss-Newton steps of a climb.
    rounds
        Number of proposals in turn, each from the draws of the one before.
    seed
        Seed of the draws; those of a blend depend on it and on its number in the batch alone.
    fits
        What makes the first proposal, such as `~probdeblend.refinement.variational.fit_elbo`; the curvature alone if None, which
        is what blends of several modes begin with in any case. Blends of which little comes go on to the next one, as
        many rounds again: from what they have learned if that is the curvature once more.

    Returns
    -------
    Refined
        Of each blend the draws of the `rounds` that made most of it.

    Raises
    ------
    ValueError
        If images have another size than the model, the start another shape, a pixel or an unknown of it is not finite,
        or a number is not positive.
    """
    _check(model, observed, start, draws=draws, steps=steps, rounds=rounds)
    parts, numbers = [], []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for first in range(0, len(start), CHUNK):
            part = Observed(*(value[first : first + CHUNK] for value in observed))
            modes = Modes.find(model, part, start[first : first + CHUNK], steps=steps)
            for blends in modes.alike():
                some = Observed(*(value[blends] for value in part))
                settings = {"draws": draws, "rounds": rounds, "seed": (seed, first), "fits": fits}
                parts.append(_refined(model, some, modes.select(blends), blends=blends, **settings))
                numbers.append(first + blends)
    whole = {name: np.concatenate([vars(part)[name] for part in parts], AXES.get(name, 0)) for name in vars(parts[0])}
    return Refined(**whole).select(np.argsort(np.concatenate(numbers)))


def _refined(
    model: BlendModel,
    observed: Observed,
    modes: Modes,
    *,
    blends: NDArray[np.int64],
    draws: int,
    rounds: int,
    seed: tuple[int, int],
    fits: Sequence[Fit | None],
) -> Refined:
    """Propose and weigh; that of which little comes goes on, from what was learned or with another kind of proposal."""
    chosen = np.arange(len(blends))
    found, learned = None, None
    for number, fit in enumerate(fits):
        some, part = Observed(*(value[chosen] for value in observed)), modes.select(chosen)
        make = _curvature if fit is None or len(part.place) > 1 else fit
        if learned is None or make is not _curvature:
            parts = [make(model, some, *mode) for mode in zip(*part[:2], strict=True)]
            learned = Mixture(parts, part.share)
        tried = range(number * rounds, (number + 1) * rounds)
        better, learned = _weigh(model, some, learned, blends=blends[chosen], draws=draws, rounds=tried, seed=seed)
        found = better if found is None else _replaced(found, chosen, _better(found.select(chosen), better))
        poor = np.isin(chosen, found.poor)
        chosen, learned = chosen[poor], learned.select(poor) if make is _curvature else None
        if not len(chosen):
            break
    return found


def _curvature(_model: BlendModel, _observed: Observed, mode: Tensor, precision: Tensor) -> Proposal:
    return Proposal(mode, torch.linalg.inv(precision))


def _check(model: BlendModel, observed: Observed, start: Tensor, *, draws: int, steps: int, rounds: int) -> None:
    if tuple(observed.image.shape[1:]) != (model.size, model.size):
        raise ValueError(f"image must have the model's {model.size} pixels a side, got {tuple(observed.image.shape)}")
    if not len(observed.image):
        raise ValueError("image must hold at least one stamp, got none")
    wanted = (len(observed.image), model.numbers)
    if tuple(start.shape) != wanted:
        raise ValueError(f"start must have the shape (blend, number) {wanted}, got {tuple(start.shape)}")
    for name, value in (("image", observed.image), ("start", start)):
        wrong = int((~torch.isfinite(value).flatten(1).all(1)).sum())
        if wrong:
            raise ValueError(f"{name} must be finite, got NaN or infinity in {wrong} of {len(value)} blends")
    for name, value, least in (("draws", draws, 100), ("steps", steps, 1), ("rounds", rounds, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _weigh(
    model: BlendModel,
    observed: Observed,
    proposal: Mixture,
    *,
    blends: NDArray[np.int64],
    draws: int,
    rounds: range,
    seed: tuple[int, int],
) -> tuple[Refined, Mixture]:
    """Draw from a proposal, and from better ones in turn; weigh all draws together, and return what is learned."""
    parts: list[_Round] = []
    for number in rounds:
        if parts:
            proposal = _moved(proposal, _weighted(model, observed, parts[-1:]))
        seeds = [seed_of(*seed, number, blend) for blend in blends.tolist()]
        parts.append(_round(model, observed, proposal, draws=draws, seeds=seeds))
    found = _weighted(model, observed, parts)
    return found, _moved(proposal, found)


def _moved(proposal: Mixture, found: Refined) -> Mixture:
    weight = np.exp(found.log_weight) * np.isfinite(found.k_hat)  # else even, and of no meaning
    return proposal.moved(torch.from_numpy(found.unknown), torch.from_numpy(weight))


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
    log_density = log_prior.logsumexp(0) + _in_pieces(model, unknown.float(), observed)
    return _Round(proposal, unknown, order, log_density)


def _weighted(model: BlendModel, observed: Observed, rounds: list[_Round]) -> Refined:
    """Weigh the draws of some proposals as those of their mixture."""
    unknown, order, log_density = (torch.cat(values) for values in list(zip(*rounds, strict=True))[1:])
    ordered = in_all_orders(unknown)
    mixture = torch.cat([proposal.log_prob(ordered) for proposal, *_ in rounds]).logsumexp(0) - math.log(len(rounds))
    log_weight = (log_density - mixture).nan_to_num(*[-math.inf] * 3).numpy()
    smoothed, k_hat = _smoothed(log_weight)
    effective = np.where(np.isfinite(k_hat), 1 / np.exp(2 * smoothed).sum(0), 1.0)
    found = Refined(
        unknown=unknown.numpy(),
        order=order.numpy(),
        heaviest=_heaviest(rounds[-1].proposal, unknown, torch.from_numpy(np.exp(smoothed))).numpy(),
        log_weight=smoothed,
        k_hat=k_hat,
        effective=effective,
        chi_square=np.empty((len(k_hat), model.galaxies)),
        log_evidence=logsumexp(log_weight, axis=0) - math.log(len(unknown)),
        log_evidence_error=np.sqrt(np.maximum(1 / effective - 1 / len(unknown), 0)),
    )
    return replace(found, chi_square=_chi_square(model, observed, torch.from_numpy(found.moments()[0]).float()))


def _heaviest(proposal: Mixture, unknown: Tensor, weight: Tensor) -> Tensor:
    """Return the probability that a draw is of the heaviest part ``(draw, blend)``."""
    each = proposal.divided(unknown, torch.ones_like(weight))
    heaviest = (each * weight).sum(1).argmax(0)
    return each[heaviest, :, torch.arange(len(heaviest))].T


def _drawn_order(log_prior: Tensor, seed: int) -> Tensor:
    """Draw an order of the galaxies for each draw of a blend, from ``(order, draw)``."""
    share = (log_prior - log_prior.max(0).values.clamp(min=NOTHING)).exp()
    torch.manual_seed(seed_of(seed, 1))
    return (torch.rand(share.shape[1]) * share.sum(0) > share.cumsum(0)).sum(0).clamp(max=len(share) - 1)


def _in_pieces(model: BlendModel, unknown: Tensor, observed: Observed) -> Tensor:
    each = max(1, CHUNK // unknown.shape[1])
    return torch.cat([model.log_likelihood(piece, observed) for piece in unknown.split(each)]).double()


def _smoothed(log_weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Pareto-smoothed, normalized log-weights ``(draw, blend)``, and the shapes of their tails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    usable = np.isfinite(log_weight).mean(0) > LEAST_POSSIBLE
    finite = np.where(np.isfinite(log_weight), log_weight, log_weight.max(0) - 1e3)
    finite = np.where(usable, finite, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smoothed, k_hat = arviz.psislw(finite.T)
    smoothed = np.where(usable, np.asarray(smoothed).T, -np.log(len(log_weight)))
    smoothed = np.maximum(smoothed - logsumexp(smoothed, axis=0), NOTHING)
    return smoothed, np.where(usable, np.asarray(k_hat), np.inf)


def _chi_square(model: BlendModel, observed: Observed, unknown: Tensor) -> NDArray[np.float64]:
    latents, sky_level, growth = model.split(unknown)
    light = model.light(latents, growth)
    residual = model.noisy(light.sum(1), sky_level, observed).residual(observed.image)[:, None]
    inside = (light > MASK_THRESHOLD).float()
    return ((residual.square() * inside).sum((-2, -1)) / inside.sum((-2, -1))).double().numpy()


def _better(first: Refined, second: Refined) -> Refined:
    improved = (second.effective > first.effective) & (second.k_hat < np.maximum(first.k_hat, 0.7))
    improved &= second.log_evidence > first.log_evidence - LEAST_EVIDENCE  # what has less has missed something
    return _replaced(first, np.flatnonzero(improved), second.select(improved))


def _replaced(found: Refined, rows: NDArray[np.int64], others: Refined) -> Refined:
    """Put other answers in the place of those of some blends."""
    values = {name: value.copy() for name, value in vars(found).items()}
    for name, value in values.items():
        np.moveaxis(value, AXES.get(name, 0), 0)[rows] = np.moveaxis(vars(others)[name], AXES.get(name, 0), 0)
    return Refined(**values)


def _moments(values: NDArray, weight: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = np.einsum("dbn,db->bn", values, weight)
    offset = values - mean
    return mean, np.einsum("dbn,dbm,db->bnm", offset, offset, weight)
