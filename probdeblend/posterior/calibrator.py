"""Calibration of posteriors with galaxies of known flux and pixels of known masks.

The guarantee is marginal and holds for exchangeable blends ("conformal" maps): in a group of N blends, an interval
between the levels of ``NODES`` contains the total flux, and the flux ratio, as often as it claims to within 2/N,
provided that maps of single galaxies, where they come first, were not fitted to the same blends. If the other galaxy
has no draws, the same holds for the flux of the detected one. Nothing is guaranteed for another population, nor for
each blend separately; each flux of a pair, and both jointly, are tested by measurement.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from .._files import check_header, header, whole_file
from ..metrics.masks import Reliability
from ..metrics.scores import interval_score
from . import maps
from .draws import Posterior
from .flags import Flag
from .groups import FEATURES, LEAST_GALAXIES, Group, effective_galaxies, estimated_features, pair_features
from .masks import MaskMap, calibrated_masks

__all__ = ["Calibrator"]

SUBJECT = ("flux_kind", "method", "pixel_scale", "network")
MARGIN = 0.1  # beyond the fitted range of a feature without a flag, in units of the range


@dataclass(frozen=True)
class Calibrator:
    """Maps of draws and of mask probabilities, learned from blends of known truth.

    Parameters
    ----------
    root
        Groups of galaxies, with the maps of their fluxes.
    pairs
        Groups of blends, with the maps of total flux and flux ratio; None with too few blends.
    low, high
        Range of each estimated feature of the galaxies that it was fitted on.
    logarithmic
        Whether maps are in ln flux; else in flux, for posteriors with draws that are not positive.
    subject
        Of the posteriors that it was fitted on: flux kind, method and, if present, pixel scale and the digest of the
        network's weights. Others are refused.
    repair
        Kind of the maps: "conformal" or "floor".
    mask
        Map of mask probabilities; None leaves them unchanged.
    fitted_on
        Description of the blends that it was fitted on.
    singly
        Whether the fluxes of pairs are first mapped one by one, which is so if it improves their total.
    """

    root: Group
    pairs: Group | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    logarithmic: bool
    subject: dict[str, str | float]
    repair: maps.Method = "conformal"
    mask: MaskMap | None = None
    fitted_on: str = ""
    singly: bool = True

    @classmethod
    def fit(
        cls,
        posterior: Posterior,
        truth: ArrayLike,
        *,
        galaxies: ArrayLike | None = None,
        repair: maps.Method = "conformal",
        fitted_on: str = "",
        least: int = LEAST_GALAXIES,
    ) -> Calibrator:
        """Fit a calibrator to posteriors with known truths.

        Parameters
        ----------
        posterior
            Posteriors of blends that the network was not trained on.
        truth
            True fluxes ``(blend, galaxy, band)``, of the same flux kind and unit.
        galaxies
            Identities of the galaxies ``(blend, galaxy)``, if they repeat; all are distinct if None.
        repair
            "conformal" maps all quantiles, "floor" adds one error per group in quadrature.
        fitted_on
            Description of the blends.
        least
            Minimum effective number of galaxies in a group.

        Returns
        -------
        Calibrator
            The calibrator of fluxes; `with_masks` adds the calibration of masks.

        Raises
        ------
        ValueError
            If shapes disagree, a true flux is not positive and finite, `repair` is unknown, the posterior is
            calibrated already, or there are fewer galaxies than `least`.
        """
        if repair not in maps.METHODS:
            raise ValueError(f"repair must be one of {', '.join(maps.METHODS)}, got {repair!r}")
        if least < 2:
            raise ValueError(f"least must be at least 2 galaxies, got {least}")
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already: deblend with calibrate=False")
        draws, truth = posterior.draws("blend", "galaxy", "band"), np.asarray(truth, dtype=np.float64)
        owner = _owners(draws, truth, galaxies)
        known = np.isfinite(draws).all(-1)
        if (distinct := round(effective_galaxies(owner[known]))) < least:
            raise ValueError(f"at least {least} galaxies with draws are needed to fit, got {distinct}")
        logarithmic = bool((draws[known] > 0).all())
        features = estimated_features(posterior)
        values, true = (np.log(draws[known]), np.log(truth[known])) if logarithmic else (draws[known], truth[known])

        def learn(rows: NDArray[np.int64], count: int) -> maps.QuantileMap:
            return maps.QuantileMap.fit(values[rows], true[rows], method=repair, galaxies=count)

        root = Group.fit(features[known], owner[known], learn, least=least)
        low, high = (tuple(np.round(end(features[known], axis=0), 5).tolist()) for end in (np.min, np.max))
        fitted = cls(root, None, low, high, logarithmic, _subject(posterior), repair, fitted_on=fitted_on)
        pairs = np.nonzero(known.all(1))
        flux, both, owners = (_of_pairs(array, pairs) for array in (draws, truth, owner))
        if effective_galaxies(owners) < least:
            return fitted
        moved = _of_pairs(fitted._moved(draws, features), pairs)
        scale = np.log if logarithmic else np.asarray
        scores = [interval_score(scale(each.sum(1)).T, scale(both.sum(1))).mean() for each in (moved, flux)]
        singly = bool(scores[0] < scores[1])
        flux = moved if singly else flux
        swap = _second_is_brighter(flux)
        places, true_places = (maps.apart(maps.swapped(array, swap), logarithmic=logarithmic) for array in (flux, both))

        def learn_pair(rows: NDArray[np.int64], count: int) -> maps.PairMap:
            settings = {"method": repair, "logarithmic": logarithmic, "blends": count // 2}
            return maps.PairMap.fit(places[rows], true_places[rows], **settings)

        # Two galaxies are one blend: groups hold as many blends as those of galaxies hold galaxies.
        groups = Group.fit(pair_features(features)[pairs], owners, learn_pair, least=2 * least)
        return replace(fitted, pairs=groups, singly=singly)

    def with_masks(self, sums: Reliability) -> Calibrator:
        """Add the calibration of masks, fitted to sums over pixels from `~probdeblend.posterior.masks.mask_sums`.

        Parameters
        ----------
        sums
            Counts of pixels by mask probability.

        Returns
        -------
        Calibrator
            The same calibrator with a map of mask probabilities.
        """
        return replace(self, mask=MaskMap.fit(sums))

    def __call__(self, posterior: Posterior) -> Posterior:
        """Calibrate a posterior.

        Parameters
        ----------
        posterior
            Of the flux kind, method and weights that the calibrator was fitted on.

        Returns
        -------
        Posterior
            With calibrated draws and mask probabilities; galaxies outside the range of the fit have
            `Flag.OUTSIDE_CALIBRATION`.

        Raises
        ------
        ValueError
            If the posterior is of another flux kind, method, pixel scale or network, or is calibrated already.
        """
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already: deblend with calibrate=False")
        self.check(_subject(posterior))
        draws, features = posterior.draws("blend", "galaxy", "band"), estimated_features(posterior)
        moved = self._moved(draws, features)
        if self.pairs is not None:
            both = np.nonzero(np.isfinite(draws).all((1, 3)))
            flux = _of_pairs(moved if self.singly else draws, both)
            moved[both[0], :, both[1]] = self._moved_pairs(flux, pair_features(features)[both])
        low, high = np.array(self.low), np.array(self.high)
        outside = ((features < low - MARGIN * (high - low)) | (features > high + MARGIN * (high - low))).any((-2, -1))
        flags = posterior.flags.values | Flag.OUTSIDE_CALIBRATION * outside.astype(np.int64)
        changed: dict[str, Any] = {"flags": (("blend", "galaxy"), flags)}
        if "flux_variance_within" in posterior.dataset:
            # Draws of a pair move between the passes: both parts of the variance grow alike.
            grown = moved.var(-1) / np.maximum(draws.var(-1), np.finfo(float).tiny)
            for name in ("flux_variance_within", "flux_variance_between"):
                changed[name] = posterior.dataset[name] * grown
        flux = moved.reshape(*moved.shape[:3], *posterior.flux.shape[:2]).transpose(3, 4, 0, 1, 2)
        flux = flux.astype(posterior.flux.dtype)
        changed["flux"] = (posterior.flux.dims, flux, posterior.flux.attrs)
        if self.mask is not None and "mask" in posterior.dataset:
            changed |= calibrated_masks(self.mask, posterior)
        return Posterior(posterior.dataset.assign(changed).assign_attrs(calibrated=self.fitted_on or "yes"))

    def _moved(self, draws: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map each flux by itself ``(blend, galaxy, band, draw)``."""
        known = np.isfinite(draws).all(-1)
        values = np.log(draws[known]) if self.logarithmic else draws[known]
        values = self.root.apply(values, features[known])
        moved = draws.copy()
        moved[known] = np.exp(values) if self.logarithmic else values
        return moved

    def _moved_pairs(self, flux: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map both fluxes ``(pair, galaxy, draw)``; the draws of the central galaxy keep their order."""
        swap = _second_is_brighter(flux)
        values = self.pairs.apply(maps.apart(maps.swapped(flux, swap), logarithmic=self.logarithmic), features)
        moved = maps.swapped(maps.together(values, logarithmic=self.logarithmic), swap)
        ascending = np.take_along_axis(moved, moved[:, :1].argsort(-1), -1)
        return np.take_along_axis(ascending, maps.ranks(flux[:, :1]), -1)

    def check(self, subject: dict[str, str | float]) -> None:
        """Refuse posteriors whose attributes differ from those of the posteriors of the fit.

        Parameters
        ----------
        subject
            Attributes of a posterior: its kind of flux and its method.

        Raises
        ------
        ValueError
            If one differs.
        """
        for name, fitted in self.subject.items():
            if (given := subject.get(name)) != fitted:
                raise ValueError(
                    f"posterior must have {name} {fitted!r}, which the calibrator was fitted to, got {given!r}"
                )

    def summary(self) -> Table:
        """Tabulate what the calibrator was fitted on and what it guarantees.

        Returns
        -------
        astropy.table.Table
            The columns ``property`` and ``value``, as text.
        """
        groups, members, each = (self.root, "galaxies", 1) if self.pairs is None else (self.pairs, "blends", 2)
        least = min(leaf.galaxies for leaf in groups.leaves()) // each
        coverage = f"within 2/{least + 1} for {members} exchangeable with those of their group"
        rows = {
            "repair": self.repair,
            "fitted on": self.fitted_on or "unspecified sample",
            **self.subject,
            "groups": f"{len(groups.leaves())} of at least {least} {members}, {groups.galaxies // each} in all",
            "marginal coverage": coverage if self.repair == "conformal" else "not guaranteed",
            "masks": "calibrated" if self.mask else "unchanged",
        }
        ranges = zip(FEATURES, self.low, self.high, strict=True)
        rows |= {f"range of {name}": f"{low:g} to {high:g}" for name, low, high in ranges}
        return Table([list(rows), [str(value) for value in rows.values()]], names=["property", "value"])

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write a JSON file.

        Parameters
        ----------
        path
            The file.
        overwrite
            Replace an existing file.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is not set.
        """
        with whole_file(path, overwrite=overwrite) as temporary:
            temporary.write_text(self.describe(), encoding="utf-8")

    def describe(self) -> str:
        """Return the calibrator as JSON.

        Returns
        -------
        str
            A JSON object, which `parse` reads.
        """
        return json.dumps(header("calibrator") | asdict(self) | {"features": FEATURES})

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Calibrator:
        """Read a calibrator that `save` wrote.

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
            If it is not a calibrator, is damaged, or has another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return cls.parse(Path(path).read_text(encoding="utf-8"), source=path)

    @classmethod
    def parse(cls, text: str, *, source: object = "calibrator") -> Calibrator:
        """Return the calibrator that `describe` has written as JSON; `source` names the text in error messages.

        Parameters
        ----------
        text
            What `describe` returned.
        source
            Name of the text in error messages.

        Returns
        -------
        Calibrator
            The calibrator.

        Raises
        ------
        ValueError
            If the text is not that of a calibrator.
        """
        try:
            numbers = json.loads(text)
        except json.JSONDecodeError:
            numbers = {}
        check_header(numbers if isinstance(numbers, dict) else {}, "calibrator", source)
        try:
            if tuple(numbers["features"]) != FEATURES:
                raise ValueError(f"{source}: must be fitted with the features {', '.join(FEATURES)}")
            numbers = {name: value for name, value in numbers.items() if name not in (*header(""), "features")}
            for name in ("root", "pairs"):
                numbers[name] = None if numbers[name] is None else Group.of_plain(numbers[name])
            if numbers["mask"] is not None:
                numbers["mask"] = MaskMap(**{name: tuple(value) for name, value in numbers["mask"].items()})
            return cls(**numbers | {name: tuple(numbers[name]) for name in ("low", "high")})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source}: damaged calibrator") from error


def _owners(draws: NDArray, truth: NDArray, galaxies: ArrayLike | None) -> NDArray[np.int64]:
    """Return the identity of the galaxy of each flux ``(blend, galaxy, band)``, with a check of the truths."""
    if truth.shape != draws.shape[:3]:
        raise ValueError(f"truth must have the shape (blend, galaxy, band) {draws.shape[:3]}, got {truth.shape}")
    if not (good := np.isfinite(truth) & (truth > 0)).all():
        raise ValueError(f"truth must be positive and finite for every galaxy, got {truth[~good][0]}")
    owner = np.arange(truth[..., 0].size).reshape(truth.shape[:2]) if galaxies is None else np.asarray(galaxies)
    if owner.shape != truth.shape[:2]:
        raise ValueError(f"galaxies must have the shape (blend, galaxy) {truth.shape[:2]}, got {owner.shape}")
    return np.broadcast_to(owner[..., None], truth.shape)


def _subject(posterior: Posterior) -> dict[str, str | float]:
    attributes = posterior.dataset.attrs
    return {name: attributes[name] for name in SUBJECT if name in attributes}


def _second_is_brighter(flux: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pairs ``(blend,)`` to swap, so that errors of total and ratio correlate alike in all."""
    first, second = np.median(flux, -1).T
    return second > first


def _of_pairs(array: NDArray, pairs: tuple[NDArray, NDArray]) -> NDArray:
    """Return blends and bands of ``(blend, galaxy, band, ...)``, one row each: ``(row, galaxy, ...)``."""
    return array[pairs[0], :, pairs[1]]
