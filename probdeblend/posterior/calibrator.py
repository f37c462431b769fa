"""Repair of posteriors by galaxies of known flux and pixels of known masks.

What is guaranteed is marginal: if a new blend is exchangeable with those of a group, an interval between the levels of
``NODES`` holds its total flux, and its flux ratio, as often as it says, to within two over the number of blends in the
group ("conformal" maps), as far as maps of single galaxies, where they come before, have not adapted to the same
blends; where the other galaxy has no answer, the same is true of the flux of the one that has. Nothing is promised for
another population, nor for each blend alone; that each flux of a pair, and both jointly, are right too is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._files import check_header, header, whole_file
from ..metrics.masks import Reliability
from .draws import Posterior
from .flags import Flag
from .groups import FEATURES, LEAST_GALAXIES, Group, effective_galaxies, estimated_features, flux_owners, pair_features
from .maps import METHODS, Method, QuantileMap
from .masks import MaskMap, MaskMethod, repaired_masks
from .pairs import PairMap, apart, second_is_brighter, swapped, together, total_score

__all__ = ["Calibrator"]

SUBJECT = ("flux_kind", "method", "pixel_scale", "network")
MARGIN = 0.1  # by which a feature may be beyond those that were fitted, in units of their range


@dataclass(frozen=True)
class Calibrator:
    """Moves draws, and mask probabilities, to where truths have shown that they should be.

    Parameters
    ----------
    root
        The groups of galaxies, with the maps of their fluxes.
    pairs
        The groups of blends, with the maps of total flux and flux ratio; None where there were too few blends.
    low, high
        Range of each estimated feature among the galaxies that it was fitted on.
    logarithmic
        Whether draws are moved in ln flux; else in flux, for posteriors with draws that are not positive.
    subject
        Of the posteriors that it was fitted on: kind of flux, method and, where they have them, pixel scale and the
        digest of the network's weights. Others are refused.
    repair
        How maps were fitted: "conformal", "isotonic", "scale" or "floor".
    mask
        Map of mask probabilities; None leaves them as they are.
    fitted_on
        In words, what it was fitted on.
    singly
        Whether fluxes of pairs are repaired one by one before the pair is: where that does their total good.
    """

    root: Group
    pairs: Group | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    logarithmic: bool
    subject: dict[str, str | float]
    repair: Method = "conformal"
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
        repair: Method = "conformal",
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
        repair
            "conformal", "scale" or "floor", in groups, or "isotonic", for all galaxies at once.
        fitted_on
            What the blends are, in words.
        least
            Effective number of galaxies that a group holds at least.

        Returns
        -------
        Calibrator
            What moves draws of such posteriors; `with_masks` adds the repair of masks.

        Raises
        ------
        ValueError
            If shapes disagree, a true flux is not positive and finite, the repair is unknown, the posterior is
            calibrated already, or there are fewer than `least` or two galaxies.
        """
        if repair not in METHODS:
            raise ValueError(f"repair must be one of {', '.join(METHODS)}, got {repair!r}")
        if least < 2:
            raise ValueError(f"least must be at least 2 galaxies, got {least}")
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already: ask for it with calibrate=False")
        draws, truth = posterior.draws("blend", "galaxy", "band"), np.asarray(truth, dtype=np.float64)
        owner = flux_owners(draws, truth, galaxies)
        known = np.isfinite(draws).all(-1)
        if (distinct := round(effective_galaxies(owner[known]))) < least:
            raise ValueError(f"at least {least} galaxies with an answer are needed to fit, got {distinct}")
        logarithmic = bool((draws[known] > 0).all())
        features = estimated_features(posterior)
        values, true = (np.log(draws[known]), np.log(truth[known])) if logarithmic else (draws[known], truth[known])

        def learn(rows: NDArray[np.int64], count: int) -> QuantileMap:
            return QuantileMap.fit(values[rows], true[rows], method=repair, galaxies=count)

        enough = len(true) + 1 if repair == "isotonic" else least
        root = Group.fit(features[known], owner[known], learn, least=enough)
        low, high = (tuple(np.round(end(features[known], axis=0), 5).tolist()) for end in (np.min, np.max))
        fitted = cls(root, None, low, high, logarithmic, _subject(posterior), repair, fitted_on=fitted_on)
        pairs = np.nonzero(known.all(1))
        flux, both, owners = (_of_pairs(array, pairs) for array in (draws, truth, owner))
        if effective_galaxies(owners) < least:
            return fitted
        moved = _of_pairs(fitted._moved(draws, features), pairs)
        singly = total_score(moved, both, logarithmic=logarithmic) < total_score(flux, both, logarithmic=logarithmic)
        flux = moved if singly else flux
        swap = second_is_brighter(flux)
        places, true_places = (apart(swapped(array, swap), logarithmic=logarithmic) for array in (flux, both))

        def learn_pair(rows: NDArray[np.int64], count: int) -> PairMap:
            settings = {"method": repair, "logarithmic": logarithmic, "blends": count // 2}
            return PairMap.fit(places[rows], true_places[rows], **settings)

        # Two galaxies are one blend: groups hold as many blends as those of galaxies hold galaxies.
        enough = 2 * enough if repair == "isotonic" else 2 * least
        paired = pair_features(features)[pairs]
        return replace(fitted, pairs=Group.fit(paired, owners, learn_pair, least=enough), singly=singly)

    def with_masks(self, sums: Reliability, *, method: MaskMethod = "isotonic") -> Calibrator:
        """Add the repair of mask probabilities.

        Parameters
        ----------
        sums
            What `~probdeblend.posterior.masks.MaskSums.measure` returned, added up over blends.
        method
            "isotonic" or "temperature".

        Returns
        -------
        Calibrator
            A copy that repairs masks too.

        Raises
        ------
        ValueError
            If there are too few pixels, or all are inside or outside the masks.
        """
        return replace(self, mask=MaskMap.fit(sums, method=method))

    def __call__(self, posterior: Posterior) -> Posterior:
        """Repair a posterior.

        Parameters
        ----------
        posterior
            Of the kind of flux, method and weights that this was fitted on.

        Returns
        -------
        Posterior
            The same with moved draws and mask probabilities; galaxies beyond what was fitted on have
            `Flag.OUTSIDE_CALIBRATION`.

        Raises
        ------
        ValueError
            If the posterior is of another kind of flux, method, pixel scale or network, or is calibrated already.
        """
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already: ask for it with calibrate=False")
        self.check(_subject(posterior))
        draws, features = posterior.draws("blend", "galaxy", "band"), estimated_features(posterior)
        moved = self._moved(draws, features)
        if self.pairs is not None:
            both = np.nonzero(np.isfinite(draws).all((1, 3)))
            flux = _of_pairs(moved if self.singly else draws, both)
            moved[both[0], :, both[1]] = self._moved_pairs(flux, pair_features(features)[both])
        flags = posterior.flags.values | Flag.OUTSIDE_CALIBRATION * self._outside(features).astype(np.int64)
        changed: dict[str, Any] = {"flags": (("blend", "galaxy"), flags)}
        if "flux_variance_within" in posterior.dataset:
            # Draws of a pair move between the passes, so that the parts keep their shares.
            grown = moved.var(-1) / np.maximum(draws.var(-1), np.finfo(float).tiny)
            for name in ("flux_variance_within", "flux_variance_between"):
                changed[name] = posterior.dataset[name] * grown
        flux = _in_chains(moved, posterior).astype(posterior.flux.dtype)
        changed["flux"] = (posterior.flux.dims, flux, posterior.flux.attrs)
        if self.mask is not None and "mask" in posterior.dataset:
            changed |= repaired_masks(self.mask, posterior)
        return Posterior(posterior.dataset.assign(changed).assign_attrs(calibrated=self.fitted_on or "yes"))

    def _moved(self, draws: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Repair each flux by itself ``(blend, galaxy, band, draw)``."""
        known = np.isfinite(draws).all(-1)
        values = np.log(draws[known]) if self.logarithmic else draws[known]
        values = self.root.apply(values, features[known])
        moved = draws.copy()
        moved[known] = np.exp(values) if self.logarithmic else values
        return moved

    def _moved_pairs(self, flux: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Repair both fluxes ``(pair, galaxy, draw)``; the central galaxy's draws keep their order."""
        swap = second_is_brighter(flux)
        values = self.pairs.apply(apart(swapped(flux, swap), logarithmic=self.logarithmic), features)
        moved = swapped(together(values, logarithmic=self.logarithmic), swap)
        ascending = np.take_along_axis(moved, moved[:, :1].argsort(-1), -1)
        ranks = flux[:, :1].argsort(-1, kind="stable").argsort(-1, kind="stable")
        return np.take_along_axis(ascending, ranks, -1)

    def _outside(self, features: NDArray[np.float64]) -> NDArray[np.bool_]:
        room = MARGIN * (np.array(self.high) - np.array(self.low))
        beyond = (features < np.array(self.low) - room) | (features > np.array(self.high) + room)
        return beyond.any((-2, -1))

    def check(self, subject: dict[str, str | float]) -> None:
        """Refuse posteriors unlike those that this was fitted on.

        Parameters
        ----------
        subject
            Attributes of a posterior by name, as in `subject`.

        Raises
        ------
        ValueError
            If one differs.
        """
        for name, fitted in self.subject.items():
            if (given := subject.get(name)) != fitted:
                raise ValueError(f"the calibrator was fitted on the {name} {fitted!r}, got {given!r}")

    def report(self) -> str:
        """Say what it was fitted on and what it guarantees.

        Returns
        -------
        str
            A few lines.
        """
        groups, members = (self.root, "galaxies") if self.pairs is None else (self.pairs, "blends")
        least = min(leaf.galaxies for leaf in groups.leaves()) // (each := 1 if self.pairs is None else 2)
        ranges = "; ".join(
            f"{name} {low:g} to {high:g}" for name, low, high in zip(FEATURES, self.low, self.high, strict=True)
        )
        subjects = "each flux" if self.pairs is None else "total flux and flux ratio"
        guarantee = (
            f"guaranteed: marginal coverage of {subjects} within 2/{least + 1} "
            f"for {members} exchangeable with those of their group"
            if self.repair == "conformal"
            else "no guarantee: right on average over galaxies like those that it was fitted on"
        )
        return "\n".join(
            [
                f"{self.repair} repair of {self.subject['flux_kind']} fluxes of method {self.subject['method']}",
                f"fitted on {self.fitted_on or 'blends that nobody described'}",
                f"{len(groups.leaves())} groups of at least {least} {members}, {groups.galaxies // each} in all",
                f"range (logarithms, and pixels): {ranges}",
                guarantee,
                "masks are repaired too" if self.mask else "masks are left as they are",
            ]
        )

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
        mask = None if self.mask is None else vars(self.mask)
        pairs = None if self.pairs is None else self.pairs.plain()
        trees = {"root": self.root.plain(), "pairs": pairs}
        numbers = vars(self) | trees | {"mask": mask, "features": FEATURES}
        return json.dumps(header("calibrator") | numbers)

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
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return cls.parse(Path(path).read_text(encoding="utf-8"), source=path)

    @classmethod
    def parse(cls, text: str, *, source: object = "calibrator") -> Calibrator:
        """Return the calibrator that `describe` has written as JSON; `source` names the text in error messages."""
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


def _subject(posterior: Posterior) -> dict[str, str | float]:
    attributes = posterior.dataset.attrs
    return {name: attributes[name] for name in SUBJECT if name in attributes}


def _in_chains(draws: NDArray, posterior: Posterior) -> NDArray:
    """Put draws ``(blend, galaxy, band, draw)`` in the axes of the posterior's flux."""
    sizes = posterior.flux.sizes
    return draws.reshape(*draws.shape[:3], sizes["chain"], sizes["draw"]).transpose(3, 4, 0, 1, 2)


def _of_pairs(array: NDArray, pairs: tuple[NDArray, NDArray]) -> NDArray:
    """Pick blends and bands of ``(blend, galaxy, band, ...)``, a row each: ``(row, galaxy, ...)``."""
    return array[pairs[0], :, pairs[1]]
