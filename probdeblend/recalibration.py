"""Repair of uncertainties: widths that galaxies of known flux have shown to be right.

Errors in units of the posterior's own width, ``(ln flux - median) / half-width of the 68 % interval``, are collected
from posteriors with known truths, in groups of *estimated* quantities: signal-to-noise ratio, separation, flux ratio.
In each group the quantiles of these errors say where the quantiles of the draws should be, and every draw is moved by
that monotone map. Draws keep their order, so that the pair keeps its rank correlation. This is split conformal
prediction on scaled residuals (Lei et al. 2018, doi:10.1080/01621459.2017.1307116; Romano et al. 2019,
arXiv:1905.03222), at all levels at once.

What is guaranteed is marginal: if a new galaxy is exchangeable with those of a group, an interval at one of the levels
holds its flux as often as it says, to within one over the number of galaxies and the differences in shape among the
group's posteriors. Nothing is promised for a population that differs, nor for each galaxy alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .io import whole_file
from .posterior import Flag, Posterior

__all__ = ["FEATURES", "NODES", "Calibrator", "Group", "estimated_features"]

FORMAT = "probdeblend calibrator"
VERSION = 1
FEATURES = ("snr", "separation", "ratio")
NODES = (0.01, 0.025, 0.05, 0.1, 0.16, 0.25, 0.35, 0.5, 0.65, 0.75, 0.84, 0.9, 0.95, 0.975, 0.99)
LEAST_GALAXIES = 200
MARGIN = 0.1  # by which a feature may be beyond those that were fitted, in units of their range


@dataclass(frozen=True)
class Group:
    """Galaxies that are repaired alike, or a division of them in two.

    Parameters
    ----------
    galaxies
        Number of distinct galaxies that it was fitted on.
    drawn, true
        For a group: scaled errors of draws, and of truths, at `NODES`.
    feature, threshold, below, above
        For a division: index into `FEATURES`, and the groups of galaxies below the threshold and from it on.
    """

    galaxies: int
    drawn: tuple[float, ...] = ()
    true: tuple[float, ...] = ()
    feature: int = -1
    threshold: float = 0.0
    below: Group | None = None
    above: Group | None = None

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


@dataclass(frozen=True)
class Calibrator:
    """Moves draws to where truths have shown that they should be.

    Parameters
    ----------
    root
        The groups.
    low, high
        Range of each of `FEATURES` among the galaxies that it was fitted on.
    logarithmic
        Whether errors are those of ln flux; else of flux, for posteriors with draws that are not positive.
    flux_kind, method
        Of the posterior that it was fitted on.
    fitted_on
        In words, what it was fitted on.
    """

    root: Group
    low: tuple[float, ...]
    high: tuple[float, ...]
    logarithmic: bool
    flux_kind: str
    method: str
    fitted_on: str = ""

    @classmethod
    def fit(
        cls,
        posterior: Posterior,
        truth: ArrayLike,
        *,
        galaxies: ArrayLike | None = None,
        fitted_on: str = "",
        least: int = LEAST_GALAXIES,
    ) -> Calibrator:
        """Learn from posteriors whose truths are known.

        Parameters
        ----------
        posterior
            Answers for blends that were not trained on.
        truth
            True fluxes ``(blend, galaxy, band)``, of the posterior's kind and in its unit.
        galaxies
            Which galaxy each is ``(blend, galaxy)``, where they repeat; all are distinct if None.
        fitted_on
            What the blends are, in words.
        least
            Number of distinct galaxies that a group holds at least; groups are divided as long as both halves do.

        Returns
        -------
        Calibrator
            What moves draws of such posteriors.

        Raises
        ------
        ValueError
            If shapes disagree, a true flux is not positive and finite, or there are fewer than `least` galaxies.
        """
        draws, truth = posterior.draws("blend", "galaxy", "band"), np.asarray(truth, dtype=np.float64)
        if truth.shape != draws.shape[:3]:
            raise ValueError(f"truth must have the shape (blend, galaxy, band) {draws.shape[:3]}, got {truth.shape}")
        if not (np.isfinite(truth) & (truth > 0)).all():
            raise ValueError("truth must be positive and finite for every galaxy")
        owner = np.arange(truth[..., 0].size).reshape(truth.shape[:2]) if galaxies is None else np.asarray(galaxies)
        if owner.shape != truth.shape[:2]:
            raise ValueError(f"galaxies must have the shape (blend, galaxy) {truth.shape[:2]}, got {owner.shape}")
        owner = np.broadcast_to(owner[..., None], truth.shape)
        known = np.isfinite(draws).all(-1)
        logarithmic = bool((draws[known] > 0).all())
        features = estimated_features(posterior)[known]
        distinct = len(np.unique(owner[known]))
        if distinct < least:
            raise ValueError(f"at least {least} galaxies with an answer are needed to fit, got {distinct}")
        drawn, true = _scaled(draws[known], truth[known], logarithmic=logarithmic)
        root = _grouped(features, drawn, true, owner[known], least=least)
        bounds = (tuple(end(features, axis=0).tolist()) for end in (np.min, np.max))
        named = posterior.dataset.attrs
        return cls(root, *bounds, logarithmic, named["flux_kind"], named["method"], fitted_on)

    def __call__(self, posterior: Posterior) -> Posterior:
        """Repair a posterior.

        Parameters
        ----------
        posterior
            Of the kind of flux and the method that this was fitted on.

        Returns
        -------
        Posterior
            The same with moved draws; galaxies beyond what was fitted on have `Flag.OUTSIDE_CALIBRATION`.

        Raises
        ------
        ValueError
            If the posterior is of another kind of flux or method.
        """
        for name in ("flux_kind", "method"):
            given, fitted = posterior.dataset.attrs[name], getattr(self, name)
            if given != fitted:
                raise ValueError(f"the calibrator was fitted on the {name} {fitted!r}, got {given!r}")
        draws = posterior.draws("blend", "galaxy", "band")
        known = np.isfinite(draws).all(-1)
        features = estimated_features(posterior)
        moved = draws.copy()
        rows = np.argwhere(known)
        for leaf, members in zip(self.root.leaves(), self.root.members(features[known]), strict=True):
            place = tuple(rows[members].T)
            moved[place] = _moved(draws[place], leaf, logarithmic=self.logarithmic)
        sizes = posterior.flux.sizes
        shape = (*draws.shape[:3], sizes["chain"], sizes["draw"])
        flux = moved.reshape(shape).transpose(3, 4, 0, 1, 2).astype(posterior.flux.dtype)
        room = MARGIN * (np.array(self.high) - np.array(self.low))
        beyond = ((features < np.array(self.low) - room) | (features > np.array(self.high) + room)).any((-2, -1))
        flags = posterior.flags.values | Flag.OUTSIDE_CALIBRATION * beyond.astype(np.int64)
        dataset = posterior.dataset.assign(
            flux=(posterior.flux.dims, flux, posterior.flux.attrs), flags=(("blend", "galaxy"), flags)
        )
        dataset = dataset.drop_vars(["flux_variance_within", "flux_variance_between"], errors="ignore")
        return Posterior(dataset.assign_attrs(calibrated=self.fitted_on or "yes"))

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write a JSON file, whole or not at all.

        Parameters
        ----------
        path
            The file.
        overwrite
            Whether a file that exists may be replaced.
        """
        with whole_file(path, overwrite=overwrite) as temporary:
            temporary.write_text(self.describe(), encoding="utf-8")

    def describe(self) -> str:
        """Return everything as JSON.

        Returns
        -------
        str
            One object.
        """
        numbers = vars(self) | {"root": _plain(self.root), "features": FEATURES, "nodes": NODES}
        return json.dumps({"format": FORMAT, "version": VERSION} | numbers)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Calibrator:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Calibrator
            The calibrator.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no calibrator, or of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Calibrator:
        """Make a calibrator of the JSON that `describe` returns.

        Parameters
        ----------
        text
            The JSON.

        Returns
        -------
        Calibrator
            The calibrator.

        Raises
        ------
        ValueError
            If it is no calibrator, or of another version.
        """
        try:
            numbers = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError("not a calibrator written by probdeblend") from error
        if not isinstance(numbers, dict) or numbers.pop("format", None) != FORMAT:
            raise ValueError("not a calibrator written by probdeblend")
        if (version := numbers.pop("version", None)) != VERSION:
            raise ValueError(f"a calibrator of version {version}, this probdeblend reads version {VERSION}")
        if tuple(numbers.pop("features")) != FEATURES or tuple(numbers.pop("nodes")) != NODES:
            raise ValueError("a calibrator of other features or levels than this probdeblend has")
        for name in ("low", "high"):
            numbers[name] = tuple(numbers[name])
        return cls(root=_group(numbers.pop("root")), **numbers)


def _scaled(
    draws: NDArray[np.float64], truth: NDArray[np.float64], *, logarithmic: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scaled errors of draws at the nodes ``(galaxy, node)``, and of the truth ``(galaxy,)``."""
    values, true = (np.log(draws), np.log(truth)) if logarithmic else (draws, truth)
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84), axis=-1)
    width = np.maximum((high - low) / 2, np.finfo(float).tiny)
    nodes = np.quantile(values, NODES, axis=-1).T
    return (nodes - middle[:, None]) / width[:, None], (true - middle) / width


def _grouped(
    features: NDArray[np.float64],
    drawn: NDArray[np.float64],
    true: NDArray[np.float64],
    owner: NDArray[np.int64],
    *,
    least: int,
    turn: int = 0,
) -> Group:
    """Divide at the median of one feature after the other, as long as both halves hold enough galaxies."""
    count = len(np.unique(owner))
    for feature in [(turn + step) % len(FEATURES) for step in range(len(FEATURES))]:
        threshold = float(np.median(features[:, feature]))
        below = features[:, feature] < threshold
        halves = [len(np.unique(owner[side])) for side in (below, ~below)]
        if min(halves) >= least:
            parts = [
                _grouped(features[side], drawn[side], true[side], owner[side], least=least, turn=feature + 1)
                for side in (below, ~below)
            ]
            return Group(count, feature=feature, threshold=threshold, below=parts[0], above=parts[1])
    typical = np.median(drawn, axis=0)
    # Quantiles of n truths at (n + 1) p, outwards: at least as wide as the level says for one more galaxy.
    ranks = np.array(NODES) * (count + 1)
    outward = np.where(np.array(NODES) < 0.5, np.floor(ranks), np.ceil(ranks)) / (count + 1)
    wanted = np.quantile(true, np.clip(outward, 0, 1))
    return Group(count, tuple(typical.tolist()), tuple(np.maximum.accumulate(wanted).tolist()))


def _moved(draws: NDArray[np.float64], group: Group, *, logarithmic: bool) -> NDArray[np.float64]:
    values = np.log(draws) if logarithmic else draws
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84), axis=-1, keepdims=True)
    width = np.maximum((high - low) / 2, np.finfo(float).tiny)
    drawn, true = np.array(group.drawn), np.array(group.true)
    scaled = (values - middle) / width
    mapped = np.interp(scaled, drawn, true)
    # Beyond the outermost nodes draws go on in proportion.
    for end, outside in ((0, scaled < drawn[0]), (-1, scaled > drawn[-1])):
        stretch = abs(true[end]) / max(abs(drawn[end]), 1e-6)
        mapped = np.where(outside, true[end] + stretch * (scaled - drawn[end]), mapped)
    moved = middle + width * mapped
    return np.exp(moved) if logarithmic else moved


def _plain(group: Group) -> dict[str, object]:
    if group.below is None:
        return {"galaxies": group.galaxies, "drawn": group.drawn, "true": group.true}
    sides = {"below": _plain(group.below), "above": _plain(group.above)}
    return {"galaxies": group.galaxies, "feature": group.feature, "threshold": group.threshold} | sides


def _group(numbers: dict) -> Group:
    if "below" not in numbers:
        return Group(numbers["galaxies"], tuple(numbers["drawn"]), tuple(numbers["true"]))
    sides = {side: _group(numbers[side]) for side in ("below", "above")}
    return Group(numbers["galaxies"], feature=numbers["feature"], threshold=numbers["threshold"], **sides)
