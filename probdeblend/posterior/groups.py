"""Galaxies that are repaired alike: groups of what a posterior itself says of them.

Groups are divided at the median of estimated signal-to-noise ratio, separation and flux ratio in turn, as long as both
halves hold enough galaxies, so that none is too thin to learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics.arrays import ONE_SIGMA
from .draws import Posterior
from .maps import QuantileMap
from .pairs import PairMap

__all__ = [
    "FEATURES",
    "LEAST_GALAXIES",
    "Group",
    "effective_galaxies",
    "estimated_features",
    "flux_owners",
    "pair_features",
]

FEATURES = ("snr", "separation", "ratio", "brightness", "correlation")
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
        log-fluxes, from the other galaxy to this one; logarithm of the median flux over the noise of a pixel of sky (0
        where that is not known); correlation of the pair's fluxes (0 where the other galaxy has none). NaN for
        abstentions.

    Raises
    ------
    ValueError
        If the posterior is not of pairs.
    """
    if posterior.dataset.sizes["galaxy"] != 2:
        raise ValueError(f"posterior must be of pairs, got {posterior.dataset.sizes['galaxy']} galaxies")
    draws = posterior.draws("blend", "galaxy", "band")
    low, median, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.log(np.maximum(median, 0) / np.maximum((high - low) / 2, 1e-30))
        brightness = np.log(np.maximum(median, 0))
        ratio = np.nan_to_num(brightness - brightness[:, ::-1], nan=0.0, posinf=10.0, neginf=-10.0)
    separation = np.zeros(median.shape)
    if "x" in posterior.dataset and "y" in posterior.dataset:
        x, y = posterior.dataset["x"].values, posterior.dataset["y"].values
        separation += np.nan_to_num(np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]))[:, None, None]
    over_noise = np.zeros(median.shape)
    if "sky_rms" in posterior.dataset:
        over_noise += np.nan_to_num(
            brightness - np.log(posterior.dataset["sky_rms"].values)[:, None, None], neginf=-10.0
        )
    tied = np.broadcast_to(_correlation(draws)[:, None], median.shape)
    features = np.stack([np.clip(snr, -10, 20), separation, ratio, over_noise, tied], -1)
    return np.where(np.isfinite(median)[..., None], features, np.nan)


def _correlation(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of two fluxes ``(blend, band)``, 0 where one has none."""
    offset = draws - draws.mean(-1, keepdims=True)
    size = np.sqrt(np.square(offset).mean(-1).prod(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(offset.prod(1).mean(-1) / size, posinf=0.0, neginf=0.0)


def flux_owners(draws: NDArray, truth: NDArray, galaxies: ArrayLike | None) -> NDArray[np.int64]:
    """Say which galaxy each flux is of.

    Parameters
    ----------
    draws
        Draws ``(blend, galaxy, band, draw)``.
    truth
        True fluxes ``(blend, galaxy, band)``.
    galaxies
        Numbers of galaxies ``(blend, galaxy)``, where they repeat; all are distinct if None.

    Returns
    -------
    NDArray
        ``(blend, galaxy, band)``.

    Raises
    ------
    ValueError
        If shapes disagree, or a true flux is not positive and finite.
    """
    if truth.shape != draws.shape[:3]:
        raise ValueError(f"truth must have the shape (blend, galaxy, band) {draws.shape[:3]}, got {truth.shape}")
    if not (np.isfinite(truth) & (truth > 0)).all():
        raise ValueError("truth must be positive and finite for every galaxy")
    owner = np.arange(truth[..., 0].size).reshape(truth.shape[:2]) if galaxies is None else np.asarray(galaxies)
    if owner.shape != truth.shape[:2]:
        raise ValueError(f"galaxies must have the shape (blend, galaxy) {truth.shape[:2]}, got {owner.shape}")
    return np.broadcast_to(owner[..., None], truth.shape)


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


def pair_features(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is estimated of a blend from what is of its galaxies.

    Parameters
    ----------
    features
        What `estimated_features` returns ``(blend, galaxy, band, feature)``.

    Returns
    -------
    NDArray
        ``(blend, band, feature)``: difference of the log-fluxes, correlation of the fluxes, difference of ln S/N from
        the fainter galaxy to the brighter, mean ln S/N, separation, absolute difference of the log-fluxes, logarithm of
        the total flux over the noise.
    """
    snr, separation, ratio, brightness, correlation = np.moveaxis(features, -1, 0)
    with np.errstate(invalid="ignore"):  # abstentions
        total = np.logaddexp(brightness[:, 0], brightness[:, 1])
    ratio = ratio[:, 0]
    contrast = np.where(ratio < 0, -1, 1) * (snr[:, 0] - snr[:, 1])
    parts = [ratio, correlation[:, 0], contrast, snr.mean(1), separation[:, 0], np.abs(ratio), total]
    return np.stack(parts, -1)


@dataclass(frozen=True)
class Group:
    """Galaxies, or blends, that are repaired alike, or a division of them in two.

    Parameters
    ----------
    galaxies
        Effective number of galaxies that it was fitted on.
    repair
        For a group: what moves its draws.
    feature, threshold, below, above
        For a division: index into the features that `fit` was given, and the groups below the threshold and from it on.
    """

    galaxies: int
    repair: QuantileMap | PairMap | None = None
    feature: int = -1
    threshold: float = 0.0
    below: Group | None = None
    above: Group | None = None

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float64],
        owner: NDArray[np.int64],
        learn: Callable[[NDArray[np.int64], int], QuantileMap | PairMap],
        *,
        least: int,
    ) -> Group:
        """Divide rows as long as both halves hold enough galaxies, and learn from each group.

        Parameters
        ----------
        features
            Estimated features ``(row, feature)``.
        owner
            Which galaxies each row is of ``(row, ...)``.
        learn
            Called with the rows of a group and its effective number of galaxies.
        least
            Effective number of galaxies that a group holds at least.

        Returns
        -------
        Group
            A tree.
        """

        def grow(rows: NDArray[np.int64], first: int) -> Group:
            for step in range(features.shape[1]):
                feature = (first + step) % features.shape[1]
                threshold = float(np.round(np.median(features[rows, feature]), 5))
                below = features[rows, feature] < threshold
                parts = rows[below], rows[~below]
                if min(effective_galaxies(owner[part]) for part in parts) >= least:
                    sides = [grow(part, feature + 1) for part in parts]
                    total = sides[0].galaxies + sides[1].galaxies
                    return cls(total, feature=feature, threshold=threshold, below=sides[0], above=sides[1])
            count = round(effective_galaxies(owner[rows]))
            return cls(count, learn(rows, count))

        return grow(np.arange(len(features)), 0)

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

    def apply(self, values: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Repair each row as its group does.

        Parameters
        ----------
        values
            Draws ``(row, ..., draw)``.
        features
            Estimated features ``(row, feature)``.

        Returns
        -------
        NDArray
            Moved draws.
        """
        moved = values.copy()
        for leaf, rows in zip(self.leaves(), self.members(features), strict=True):
            moved[rows] = leaf.repair(values[rows])
        return moved

    def plain(self) -> dict[str, object]:
        """Return the tree as what JSON can hold.

        Returns
        -------
        dict
            Nested.
        """
        if self.below is None:
            return {"galaxies": self.galaxies, "repair": asdict(self.repair)}
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
            return cls(plain["galaxies"], _repair(plain["repair"]))
        sides = {side: cls.of_plain(plain[side]) for side in ("below", "above")}
        return cls(plain["galaxies"], feature=plain["feature"], threshold=plain["threshold"], **sides)


def _repair(plain: dict) -> QuantileMap | PairMap:
    if "places" in plain:
        total, ratio = (_repair(plain[name]) for name in ("total", "ratio"))
        places = tuple(map(tuple, plain["places"]))
        return PairMap(total, ratio, *(plain[name] for name in ("logarithmic", "tie", "kept")), places)
    return QuantileMap.of_plain(plain)
