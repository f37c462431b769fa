"""How tightly the two fluxes of a pair are tied, repaired so that their sum is right.

What one galaxy gains the other loses, more strictly than the draws may say: then the total flux is better known than
its posterior tells, though each flux is right. Draws are exchanged between the ranks of each galaxy, which leaves both
marginal posteriors as they are (as the Schaake shuffle does: Clark et al. 2004,
doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2). In normal scores of the ranks, the sum of the two is scaled
against their difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["Coupling"]

LEVEL = 0.68
FACTORS = (0.02, 4.0)
STEPS = 9
DRAWS = 250


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
        """Find the factor with which the total's 68 % interval holds 68 % of the true totals.

        Parameters
        ----------
        flux
            Draws ``(blend, galaxy, draw)``, whose marginals are right.
        truth
            True fluxes ``(blend, galaxy)``.

        Returns
        -------
        Coupling
            Found by bisection, as the interval widens with the factor.
        """
        scores, ordered = _prepared(flux[..., :: max(1, flux.shape[-1] // DRAWS)])
        low, high = np.log(FACTORS)
        for _ in range(STEPS):
            middle = (low + high) / 2
            total = cls(float(np.exp(middle)))._exchanged(scores, ordered).sum(1)
            ends = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
            covered = ((ends[0] <= truth.sum(1)) & (truth.sum(1) <= ends[1])).mean()
            low, high = (low, middle) if covered > LEVEL else (middle, high)
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
            The same numbers for each galaxy, in another order.
        """
        return self._exchanged(*_prepared(flux))

    def _exchanged(self, scores: NDArray[np.float32], ordered: NDArray[np.float64]) -> NDArray[np.float64]:
        total, difference = np.float32(self.factor) * scores.sum(1), scores[:, 0] - scores[:, 1]
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
