"""Calibration groups, defined by features estimated from the posterior itself.

Groups are divided at the median of estimated signal-to-noise ratio, separation and flux ratio in turn, as long as both
halves hold enough galaxies to learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics.arrays import ONE_SIGMA
from .draws import Posterior
from .maps import PairMap, QuantileMap

__all__ = ["FEATURES", "LEAST_GALAXIES", "Group", "effective_galaxies", "estimated_features", "pair_features"]

FEATURES = ("snr", "separation", "ratio", "brightness", "correlation")
LEAST_GALAXIES = 200


def estimated_features(posterior: Posterior) -> NDArray[np.float64]:
    """Return the features of each galaxy by which a calibrator groups them, from the posterior alone.

    Parameters
    ----------
    posterior
        Posterior of pairs.

    Returns
    -------
    NDArray
        ``(blend, galaxy, band, feature)``: logarithm of the signal-to-noise ratio (median flux over half the width of
        the 68 % interval); separation in pixels (0 if unknown); ln flux ratio of this galaxy to the other one;
        logarithm of the median flux over the noise of a sky pixel (0 if unknown); correlation of the two fluxes (0 if
        the other galaxy has no draws). NaN for non-detections.

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
        offset = draws - draws.mean(-1, keepdims=True)
        tied = offset.prod(1).mean(-1) / np.sqrt(np.square(offset).mean(-1).prod(1))  # (blend, band)
    separation, over_noise = np.zeros(median.shape), np.zeros(median.shape)
    if "x" in posterior.dataset and "y" in posterior.dataset:
        x, y = posterior.dataset["x"].values, posterior.dataset["y"].values
        separation += np.nan_to_num(np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]))[:, None, None]
    if "sky_rms" in posterior.dataset:
        noise = np.log(posterior.dataset["sky_rms"].values)[:, None, None]
        over_noise += np.nan_to_num(brightness - noise, neginf=-10.0)
    correlation = np.broadcast_to(np.nan_to_num(tied, posinf=0.0, neginf=0.0)[:, None], median.shape)
    features = np.stack([np.clip(snr, -10, 20), separation, ratio, over_noise, correlation], -1)
    return np.where(np.isfinite(median)[..., None], features, np.nan)


def effective_galaxies(owner: NDArray[np.int64]) -> float:
    """Return the effective number of galaxies, ``(sum n)^2 / sum n^2`` if they occur n times (Kish 1965)."""
    times = np.unique(owner, return_counts=True)[1].astype(np.float64)
    return float(times.sum() ** 2 / (times**2).sum()) if len(times) else 0.0


def pair_features(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return features of blends ``(blend, band, feature)`` from those of their galaxies.

    They are ln flux ratio, correlation of the fluxes, difference of ln S/N from the fainter galaxy to the brighter one,
    mean ln S/N, separation, absolute ln flux ratio, and logarithm of the total flux over the noise.
    """
    snr, separation, ratio, brightness, correlation = np.moveaxis(features, -1, 0)
    with np.errstate(invalid="ignore"):  # non-detections
        total = np.logaddexp(brightness[:, 0], brightness[:, 1])
    ratio = ratio[:, 0]
    contrast = np.where(ratio < 0, -1, 1) * (snr[:, 0] - snr[:, 1])
    parts = [ratio, correlation[:, 0], contrast, snr.mean(1), separation[:, 0], np.abs(ratio), total]
    return np.stack(parts, -1)


@dataclass(frozen=True)
class Group:
    """A node of the tree of groups: the map (`repair`) of its galaxies or blends, or a split at a threshold."""

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
        """Divide rows ``(row, feature)`` while both halves hold `least` galaxies, and learn from each group.

        `owner` tells which galaxies each row is of ``(row, ...)``; `learn` is called with the rows of a group and its
        effective number of galaxies.
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
        """Return the groups that are not divided."""
        return [self] if self.below is None else self.below.leaves() + self.above.leaves()

    def apply(self, values: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move draws ``(row, ..., draw)`` with the maps of their groups."""
        if self.below is None:
            return self.repair(values)
        moved, below = np.empty_like(values), features[:, self.feature] < self.threshold
        for side, rows in ((self.below, below), (self.above, ~below)):
            moved[rows] = side.apply(values[rows], features[rows])
        return moved

    @classmethod
    def of_plain(cls, plain: dict) -> Group:
        """Return the tree of nested dictionaries, as JSON holds it."""
        if plain.get("below") is None:
            return cls(plain["galaxies"], _repair(plain["repair"]))
        return cls(**plain | {side: cls.of_plain(plain[side]) for side in ("below", "above")})


def _repair(plain: dict) -> QuantileMap | PairMap:
    if "places" in plain:
        maps = {name: _repair(plain[name]) for name in ("total", "ratio")}
        return PairMap(**plain | maps | {"places": tuple(map(tuple, plain["places"]))})
    return QuantileMap(plain["method"], tuple(plain["given"]), tuple(plain["wanted"]))
