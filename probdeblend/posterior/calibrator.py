"""Calibration of posteriors with sources of known flux: fluxes, totals of groups, masks and existence probabilities.

**Fluxes.** Sources are grouped by estimated signal-to-noise ratio, contested light and size, and each group has a
monotone map of scaled errors in ln flux. It is applied to every draw, so that chains remain dropout passes, and the
ranks of a source's draws among each other remain, and with them its dependence on its neighbors. The guarantee is
marginal and holds for exchangeable sources ("conformal"; Vovk et al. 2005, doi:10.1007/b106715): with N sources in a
group, an interval between two levels contains the truth as often as it claims to, within 2/N. Nothing is guaranteed for
another population.

**Totals.** The total of a group is mapped in the same way, by the number of its sources. The error that they have in
common becomes that of the total, and the errors of how the light is divided change the other way, so that the mean
width of ln flux remains. What is given up is the width of each: a source that dominates its group follows the total.

**Masks and existence.** Slope and shift of the logit are fitted to the true masks where the image exceeds the sky
noise, and to which sources are real (Platt 1999).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._files import check_header, header, whole_file
from ..scene import Scene
from .cutouts import Cutouts
from .draws import Posterior
from .flags import Flag
from .maps import NODES, fit_logistic, fit_map, fit_totals, logistic, mapped, mapped_totals
from .moments import FLUX_OF

__all__ = ["Calibrator"]

LEAST = 400  # sources with one map; quantiles at one sigma are then uncertain by 8 % of sigma
EDGES = ((10.0, 30.0, 100.0), (0.05, 0.2), (3.0,))  # of the features, in their order
MARGIN = 2.0  # beyond the fitted range of signal-to-noise ratio and size, as a factor, without a flag
PIXELS = 2_000_000  # are enough for two numbers


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Maps of draws and probabilities, learned from sources of known truth.

    Parameters
    ----------
    flux
        For each kind of flux ("total", "auto"), given and wanted quantiles in every group ``(group, 2, node)``.
    total
        The same for totals of groups of 2, 3, 4 and 5, and 6 and more sources; without maps where groups were too few.
    low, high
        Range of signal-to-noise ratio, contested light and size that it was fitted on.
    method
        Of the posteriors that it was fitted on; others are refused.
    mask, existence
        Slope and shift of the logit; None leaves the probabilities as they are.
    fitted_on
        Description of the scenes that it was fitted on.
    """

    flux: dict[str, NDArray[np.float64]]
    total: dict[str, NDArray[np.float64]]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: str
    mask: tuple[float, float] | None = None
    existence: tuple[float, float] | None = None
    fitted_on: str = ""

    @classmethod
    def fit(
        cls, posterior: Posterior, scene: Scene, matched: ArrayLike, *, least: int = LEAST, fitted_on: str = ""
    ) -> Calibrator:
        """Fit a calibrator to posteriors with known truths.

        Parameters
        ----------
        posterior
            Posterior of scenes that the network was not trained on.
        scene
            The scenes with their true sources.
        matched
            Index of the true source of each of the posterior's sources ``(source,)``, -1 for a false detection.
        least
            Minimum number of sources with one map; groups with fewer take the map of a coarser group.
        fitted_on
            Description of the scenes.

        Returns
        -------
        Calibrator
            The calibrator of what the posterior holds and the scenes know.

        Raises
        ------
        ValueError
            If shapes disagree, the posterior is calibrated already, no true flux is known, or fewer than `least`
            sources have one.
        """
        matched = np.asarray(matched)
        if matched.shape != (len(posterior),):
            raise ValueError(f"matched must have shape ({len(posterior)},), got {matched.shape}")
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already: deblend with calibrate=False")
        flux, total, features = {}, {}, _features(posterior)
        for kind, true in (("total", scene.flux), ("auto", scene.auto_flux)):
            if FLUX_OF[kind] in posterior.dataset and true is not None and bool(true.isfinite().any()):
                truth = np.where(matched[:, None] >= 0, true.double().numpy()[matched], np.nan)
                draws = _log_draws(posterior, kind)
                flux[kind] = _fit_cells(draws, np.log(truth), _cell(features), least)
                scaled = _mapped_sources(draws, flux[kind], _cell(features))[1]
                total[kind] = fit_totals(scaled, np.log(truth), posterior.dataset["group"].values, least)
        if not flux:
            raise ValueError("scene must have true fluxes of a kind that the posterior holds, got none")
        seen = np.nan_to_num(features[matched >= 0].reshape(-1, len(EDGES)))
        low, high = (tuple(end(seen, axis=0).tolist()) for end in (np.min, np.max))
        mask = existence = None
        if posterior.cutouts is not None and posterior.cutouts.mask is not None and scene.light is not None:
            mask = fit_logistic(*mask_pixels(posterior, scene, matched))
        if "existence" in posterior.dataset:
            existence = fit_logistic(posterior.dataset["existence"].values, matched >= 0)
        return cls(flux, total, low, high, posterior.dataset.attrs["method"], mask, existence, fitted_on)

    def __call__(self, posterior: Posterior) -> Posterior:
        """Calibrate a posterior; what it was not fitted to stays as it is.

        Parameters
        ----------
        posterior
            Posterior of the method that it was fitted on.

        Returns
        -------
        Posterior
            With other draws and probabilities; sources outside the fitted range have `Flag.OUTSIDE_CALIBRATION`.

        Raises
        ------
        ValueError
            If the posterior is of another method or calibrated already.
        """
        if (method := posterior.dataset.attrs["method"]) != self.method:
            raise ValueError(f"posterior must have method {self.method!r} of the calibrator, got {method!r}")
        if "calibrated" in posterior.dataset.attrs:
            raise ValueError("posterior must not be calibrated already")
        features, changed = _features(posterior), {}
        for kind, maps in self.flux.items():
            if FLUX_OF[kind] in posterior.dataset:
                given = posterior.dataset[FLUX_OF[kind]]
                draws = _log_draws(posterior, kind)
                moved, scaled = _mapped_sources(draws, maps, _cell(features))
                moved = mapped_totals(moved, scaled, self.total[kind], posterior.dataset["group"].values)
                moved = np.exp(moved).reshape(given.shape)
                moved = np.where(np.isfinite(moved), moved, given.values)
                changed[FLUX_OF[kind]] = given.copy(data=moved.astype(given.dtype))
        dataset = posterior.dataset.assign(changed).assign_attrs(calibrated=1)
        columns = {"flags": posterior.flags | np.where(self._outside(features), int(Flag.OUTSIDE_CALIBRATION), 0)}
        if self.existence is not None and "existence" in dataset:
            columns["existence"] = logistic(dataset["existence"].values, self.existence)
        return Posterior(dataset, self._masks(posterior.cutouts)).with_columns(columns)

    def _outside(self, features: NDArray) -> NDArray[np.bool_]:
        low, high = np.array(self.low) / MARGIN, np.array(self.high) * MARGIN
        values = np.nan_to_num(features)
        return ((values < low) | (values > high))[..., [0, 2]].any((1, 2))

    def _masks(self, cutouts: Cutouts | None) -> Cutouts | None:
        """Map masks; their standard deviation follows the slope, and the information the variance of a pixel."""
        if cutouts is None or cutouts.mask is None or self.mask is None:
            return cutouts
        moved = [logistic(mask, self.mask).astype(mask.dtype) for mask in cutouts.mask]
        pairs = zip(moved, cutouts.mask, strict=True)
        ratio = [np.maximum(new * (1 - new), 1e-5) / np.maximum(old * (1 - old), 1e-5) for new, old in pairs]
        changes = {"mask": moved}
        for name, factor in (("mask_std", self.mask[0]), ("mask_information", 1.0)):
            if (values := getattr(cutouts, name)) is not None:
                changes[name] = [(factor * v * r).astype(v.dtype) for v, r in zip(values, ratio, strict=True)]
        return replace(cutouts, **changes)

    def describe(self) -> str:
        """Return the calibrator as JSON, as it is stored in a file or in weights.

        Returns
        -------
        str
            One JSON object.
        """
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("flux", "total"):
            numbers[name] = {kind: np.round(maps, 4).tolist() for kind, maps in numbers[name].items()}
        return json.dumps(header("calibrator") | numbers)

    @classmethod
    def parse(cls, text: str, *, path: str | PathLike[str] = "calibrator") -> Calibrator:
        """Return the calibrator that `describe` described.

        Parameters
        ----------
        text
            The JSON.
        path
            Its file, to be named in errors.

        Returns
        -------
        Calibrator
            The calibrator.

        Raises
        ------
        ValueError
            If this is no calibrator, or one of another version.
        """
        try:
            numbers = json.loads(text)
        except json.JSONDecodeError:
            numbers = {}
        check_header(numbers, "calibrator", path)
        try:
            kept = {field.name: numbers[field.name] for field in fields(cls)}
            for name in ("flux", "total"):
                kept[name] = {kind: np.array(maps).reshape(-1, 2, len(NODES)) for kind, maps in kept[name].items()}
            for name in ("low", "high", "mask", "existence"):
                kept[name] = None if kept[name] is None else tuple(kept[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: damaged calibrator ({error!r})") from None
        return cls(**kept)

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
            If it is no calibrator, or one of another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return cls.parse(Path(path).read_text(encoding="utf-8"), path=path)


def _log_draws(posterior: Posterior, kind: str) -> NDArray[np.float64]:
    """Return ln of draws ``(draw, source, band)`` of all chains; NaN where one draw of a source is not positive."""
    draws = posterior.dataset[FLUX_OF[kind]].values.astype(np.float64)
    draws = draws.reshape(draws.shape[0] * draws.shape[1], *draws.shape[2:])
    with np.errstate(invalid="ignore"):
        return np.log(np.where((draws > 0).all(0), draws, np.nan))


def _features(posterior: Posterior) -> NDArray[np.float64]:
    """Return signal-to-noise ratio, contested light and size in pixels ``(source, band, 3)``; NaN where unknown.

    The ratio is that of a Gaussian with the source's half-light radius, but at least that of a point source.
    """
    data = posterior.dataset
    unknown = np.full(len(posterior), np.nan)
    known = {name: data[name].values if name in data else unknown for name in ("half_light_radius", "contested")}
    rms = data["sky_rms"].values if "sky_rms" in data else unknown[:, None]
    size = known["half_light_radius"] / data.attrs["pixel_scale"]
    flux = data[next(name for name in FLUX_OF.values() if name in data)].median(("chain", "draw")).values
    snr = flux / (rms * np.sqrt(4 * np.pi) * np.maximum(np.nan_to_num(size), 1.5)[:, None])
    return np.stack(np.broadcast_arrays(snr, known["contested"][:, None], size[:, None]), axis=-1)


def _cell(features: NDArray) -> NDArray[np.int64]:
    """Return the group of each source and band: one number for the bins of all features; unknown is the lowest bin."""
    number = np.zeros(features.shape[:-1], dtype=np.int64)
    for edges, values in zip(EDGES, np.moveaxis(np.nan_to_num(features), -1, 0), strict=True):
        number = number * (len(edges) + 1) + np.searchsorted(edges, values)
    return number


def _fit_cells(draws: NDArray, truth: NDArray, cell: NDArray, least: int) -> NDArray[np.float64]:
    """Return the map of each group ``(group, 2, node)``: from its sources, or those of a coarser group if too few."""
    known = np.isfinite(draws).all(0) & np.isfinite(truth)
    if (sources := int(known.any(1).sum())) < least:
        raise ValueError(f"at least {least} sources with draws and truth are needed to fit, got {sources}")
    coarser = np.cumprod([1, *(len(edges) + 1 for edges in EDGES[::-1])])  # without the last feature, the last two, ...
    maps = {}
    for number in range(int(coarser[-1])):
        for size in coarser:
            chosen = known & (cell // size == number // size)
            if (size, number // size) not in maps and chosen.any(1).sum() >= least:
                maps[size, number // size] = fit_map(draws[:, chosen], truth[chosen])
            if (size, number // size) in maps:
                break
        maps[number] = maps[size, number // size]
    return np.stack([maps[number] for number in range(int(coarser[-1]))])


def _mapped_sources(draws: NDArray, maps: NDArray, cell: NDArray) -> tuple[NDArray, NDArray]:
    """Return mapped draws, and the same with the medians of the given ones."""
    moved, known = draws.copy(), np.isfinite(draws).all(0)
    for number in np.unique(cell[known]):
        chosen = known & (cell == number)
        moved[:, chosen] = mapped(draws[:, chosen], maps[number])
    return moved, moved - np.median(moved, axis=0) + np.median(draws, axis=0)


def mask_pixels(posterior: Posterior, scene: Scene, matched: NDArray) -> tuple[NDArray, NDArray]:
    """Return probabilities and true masks of pixels where the bands' image exceeds their sky noise."""
    ratio = (scene.image / scene.sky_rms[..., None, None]).nan_to_num().sum(1) / scene.image.shape[1] ** 0.5
    bright, masks, given, true = (ratio > 1).numpy(), scene.mask.numpy(), [np.zeros(0)], [np.zeros(0)]
    number = posterior.dataset["scene"].values
    for source in np.flatnonzero(matched >= 0):
        cutout = posterior.cutouts.cutout("mask", int(source))
        chosen = bright[number[source]][cutout.slices]
        given.append(cutout.data[chosen])
        true.append(masks[matched[source]][cutout.slices][chosen])
    step = max(1, sum(map(len, given)) // PIXELS)
    return np.concatenate(given)[::step], np.concatenate(true)[::step]
