"""Galaxies that are repaired alike: groups of what a posterior itself says of them.

Groups are divided at the median of estimated signal-to-noise ratio, separation and flux ratio in turn, as long as both
halves hold enough galaxies, so that none is too thin to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..posterior import Posterior
from .maps import Method, QuantileMap

__all__ = ["FEATURES", "LEAST_GALAXIES", "Group", "effective_galaxies", "estimated_features"]

FEATURES = ("snr", "separation", "ratio")
LEAST_GALAXIES = 200


def estimated_features(posterior: Posterior) -> NDArray[np.float64]:
    """Return what a posterior itself says of each galaxy; no truth is needed.

    Parameters
    ----------
    posterior
        Posterior of pairs.

    Returns
    -------
    NDArray
        ``(blend, galaxy, band, feature)`` in the order of `FEATURES`: logarithm of the ratio of median flux to half
        the width of the 68 % interval; separation in pixels (0 where it is not known); difference of the pair's
        log-fluxes, from the other galaxy to this one. NaN for abstentions.

    Raises
    ------
    ValueError
        If the posterior is not of pairs.
    """
    if posterior.dataset.sizes["galaxy"] != 2:
        raise ValueError(f"posterior must be of pairs, got {posterior.dataset.sizes['galaxy']} galaxies")
    low, median, high = np.quantile(posterior.draws("blend", "galaxy", "band"), (0.16, 0.5, 0.84), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.log(np.maximum(median, 0) / np.maximum((high - low) / 2, 1e-30))
        brightness = np.log(np.maximum(median, 0))
        ratio = np.nan_to_num(brightness - brightness[:, ::-1], nan=0.0, posinf=10.0, neginf=-10.0)
    separation = np.zeros(median.shape)
    if "x" in posterior.dataset and "y" in posterior.dataset:
        x, y = posterior.dataset["x"].values, posterior.dataset["y"].values
        separation += np.nan_to_num(np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]))[:, None, None]
    features = np.stack([np.clip(snr, -10, 20), separation, ratio], -1)
    return np.where(np.isfinite(median)[..., None], features, np.nan)


def effective_galaxies(owner: NDArray[np.int64]) -> float:
    """Return how many galaxies, each as often as any other, would teach as much as these.

    Parameters
    ----------
    owner
        Which galaxy each value belongs to.

    Returns
    -------
    float
        ``(sum n)^2 / sum n^2`` over galaxies that occur n times (Kish 1965): their number where all are distinct.
    """
    times = np.unique(owner, return_counts=True)[1].astype(np.float64)
    return float(times.sum() ** 2 / (times**2).sum()) if len(times) else 0.0


@dataclass(frozen=True)
class Group:
    """Galaxies that are repaired alike, or a division of them in two.

    Parameters
    ----------
    galaxies
        Effective number of galaxies that it was fitted on.
    moved
        For a group: its map.
    feature, threshold, below, above
        For a division: index into `FEATURES`, and the groups of galaxies below the threshold and from it on.
    """

    galaxies: int
    moved: QuantileMap | None = None
    feature: int = -1
    threshold: float = 0.0
    below: Group | None = None
    above: Group | None = None

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float64],
        values: NDArray[np.float64],
        truth: NDArray[np.float64],
        owner: NDArray[np.int64],
        *,
        least: int,
        method: Method,
        first: int = 0,
    ) -> Group:
        """Divide galaxies as long as both halves hold enough, and fit a map to what is left.

        Parameters
        ----------
        features
            Estimated features ``(galaxy, feature)``.
        values
            Draws ``(galaxy, draw)``.
        truth, owner
            True value of each, and which galaxy it is ``(galaxy,)``.
        least
            Effective number of galaxies that a group holds at least.
        method
            How maps are fitted.
        first
            The feature at which to divide first.

        Returns
        -------
        Group
            A tree.
        """
        for step in range(len(FEATURES)):
            feature = (first + step) % len(FEATURES)
            threshold = float(np.round(np.median(features[:, feature]), 5))
            below = features[:, feature] < threshold
            if min(effective_galaxies(owner[side]) for side in (below, ~below)) >= least:
                sides = [
                    cls.fit(
                        features[side],
                        values[side],
                        truth[side],
                        owner[side],
                        least=least,
                        method=method,
                        first=feature + 1,
                    )
                    for side in (below, ~below)
                ]
                total = sides[0].galaxies + sides[1].galaxies
                return cls(total, feature=feature, threshold=threshold, below=sides[0], above=sides[1])
        count = round(effective_galaxies(owner))
        return cls(count, QuantileMap.fit(values, truth, method=method, galaxies=count))

    def leaves(self) -> list[Group]:
        """Return the groups that are not divided.

        Returns
        -------
        list of Group
            From below to above.
        """
        return [self] if self.below is None else self.below.leaves() + self.above.leaves()

    def members(self, features: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """Say which galaxies are in which of `leaves`.

        Parameters
        ----------
        features
            Estimated features ``(galaxy, feature)``.

        Returns
        -------
        list of NDArray
            Numbers of galaxies, a leaf each.
        """
        if self.below is None:
            return [np.arange(len(features))]
        is_below = features[:, self.feature] < self.threshold
        found = []
        for side, part in ((self.below, np.flatnonzero(is_below)), (self.above, np.flatnonzero(~is_below))):
            found += [part[rows] for rows in side.members(features[part])]
        return found

    def plain(self) -> dict[str, object]:
        """Return the tree as what JSON can hold.

        Returns
        -------
        dict
            Nested.
        """
        if self.below is None:
            return {"galaxies": self.galaxies, "moved": vars(self.moved)}
        sides = {"below": self.below.plain(), "above": self.above.plain()}
        return {"galaxies": self.galaxies, "feature": self.feature, "threshold": self.threshold} | sides

    @classmethod
    def of_plain(cls, plain: dict) -> Group:
        """Make a tree of what `plain` returned.

        Parameters
        ----------
        plain
            Nested.

        Returns
        -------
        Group
            The tree.
        """
        if "below" not in plain:
            moved = {name: tuple(value) if isinstance(value, list) else value for name, value in plain["moved"].items()}
            return cls(plain["galaxies"], QuantileMap(**moved))
        sides = {side: cls.of_plain(plain[side]) for side in ("below", "above")}
        return cls(plain["galaxies"], feature=plain["feature"], threshold=plain["threshold"], **sides)
