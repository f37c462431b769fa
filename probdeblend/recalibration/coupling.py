"""How tightly the two fluxes of a pair are tied, repaired so that their sum, and both jointly, are right.

What one galaxy gains the other loses, more strictly than the draws may say: then the total flux is better known than
its posterior tells, though each flux is right. Draws are exchanged between the ranks of each galaxy, which leaves both
marginal posteriors as they are (as the Schaake shuffle does: Clark et al. 2004,
doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2). In normal scores of the ranks, the sum of the two is scaled
against their difference, and its tails are drawn in: draws of single fluxes have heavy tails, which the total does not
share. One factor cannot make the total flux and the joint region of the pair exactly right at once: it is the one at
which their coverages are right on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ..calibration import joint_pit

__all__ = ["Coupling"]

LEVEL = 0.68
FACTORS = (0.02, 4.0)
STEPS = 9
DRAWS = 250
TAIL = 5.0  # standard deviations beyond which the sum grows no more


@dataclass(frozen=True)
class Coupling:
    """Exchanges draws between ranks.

    Parameters
    ----------
    factor
        What the sum of the normal scores is scaled with; below 1 for a total flux that is better known.
    """

    factor: float

    @classmethod
    def fit(cls, flux: NDArray[np.float64], truth: NDArray[np.float64]) -> Coupling:
        """Find the factor with which 68 % regions of the total and of the pair hold 68 % of the truths, on average.

        Parameters
        ----------
        flux
            Draws ``(blend, galaxy, draw)``, whose marginals are right.
        truth
            True fluxes ``(blend, galaxy)``.

        Returns
        -------
        Coupling
            Found by bisection, as both regions widen with the factor.
        """
        scores, ordered = _prepared(flux[..., :: max(1, flux.shape[-1] // DRAWS)])
        transform = np.log if (ordered > 0).all() and (truth > 0).all() else np.asarray
        low, high = np.log(FACTORS)
        for _ in range(STEPS):
            middle = (low + high) / 2
            tied = cls(float(np.exp(middle)))._exchanged(scores, ordered)
            ends = np.quantile(tied.sum(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
            total = ((ends[0] <= truth.sum(1)) & (truth.sum(1) <= ends[1])).mean()
            joint = (joint_pit(transform(tied).transpose(2, 0, 1), transform(truth)) <= LEVEL).mean()
            low, high = (low, middle) if (total + joint) / 2 > LEVEL else (middle, high)
        return cls(float(np.round(np.exp((low + high) / 2), 4)))

    def __call__(self, flux: NDArray[np.float64]) -> NDArray[np.float64]:
        """Exchange draws.

        Parameters
        ----------
        flux
            Draws ``(blend, galaxy, draw)``.

        Returns
        -------
        NDArray
            The same numbers for each galaxy; those of the central one stay in their place, and those of the other are
            in another order.
        """
        exchanged = self._exchanged(*_prepared(flux))
        partners = np.take_along_axis(exchanged[:, 1], exchanged[:, 0].argsort(-1, kind="stable"), -1)
        return np.stack([flux[:, 0], np.take_along_axis(partners, _ranks(flux[:, 0]), -1)], 1)

    def _exchanged(self, scores: NDArray[np.float32], ordered: NDArray[np.float64]) -> NDArray[np.float64]:
        total, difference = scores.sum(1), scores[:, 0] - scores[:, 1]
        reach = TAIL * np.maximum(total.std(-1, keepdims=True), np.finfo(np.float32).tiny)
        total = (np.float32(self.factor) * total / np.hypot(1, total / reach)).astype(np.float32)
        place = np.stack([total + difference, total - difference], 1).argsort(-1)
        exchanged = np.empty_like(ordered)
        np.put_along_axis(exchanged, place, ordered, -1)
        return exchanged


def _prepared(flux: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return normal scores of the ranks, and the draws in order."""
    ranks = _ranks(flux)
    levels = ndtri((np.arange(flux.shape[-1]) + 0.5) / flux.shape[-1]).astype(np.float32)
    return levels[ranks], np.sort(flux, axis=-1)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return values.argsort(-1, kind="stable").argsort(-1, kind="stable")
