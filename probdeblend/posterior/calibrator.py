"""Calibration of posteriors with sources of known flux: fluxes, totals of groups, and existence probabilities.

**Fluxes.** Sources are put into bins by what is known of them: listed or detected, size, estimated signal-to-noise
ratio, one band or several, contested light, alone or in a group. Each bin has a monotone map of scaled errors in ln
flux. It is applied to every draw, so that chains remain dropout passes, and the ranks of a source's draws among each
other remain, and with them its dependence on its neighbors. The guarantee is marginal and holds for exchangeable
sources ("conformal"; Vovk et al. 2005, doi:10.1007/b106715): with N sources in a bin, an interval contains the truth as
often as it claims to, within 2/N. Nothing is guaranteed for another population.

**Colors.** What the errors of a source's bands do not have in common is stretched by one number such that the 68 %
intervals of neighboring bands' colors cover; the rest changes the other way, so that the mean variance remains.

**Totals.** The total of a group is mapped like a flux, by whether its sources were listed, their number, the number of
bands and its signal-to-noise ratio. What sources have in common becomes the error of the total, the division of the
light changes the other way.

**Existence.** Slope and shift of the logit are fitted to which sources are real (Platt 1999).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._files import check_file, check_header, header, readable, whole_file
from ..metrics.arrays import group_total
from ..scene import Scene
from .draws import Posterior
from .flags import Flag
from .maps import cell_of, color_stretch, fit_cells, fit_logistic, logistic, mapped, maps_of, with_colors, with_totals
from .moments import FLUX_OF

__all__ = ["Calibrator", "Known", "fit_known", "known_sources"]

LEAST = 400  # sources with one map; quantiles at one sigma are then uncertain by 8 % of sigma
# Edges of the bins of sources: positions given, size in pixels, signal-to-noise ratio, bands, contested light, sources
# in the group, what matters most first; and of groups: positions given, bands, sources, signal-to-noise ratio.
EDGES = ((0.5,), (3.0,), (10.0, 30.0, 100.0, 300.0), (2.0,), (0.05, 0.2), (2.0, 3.0))
GROUP_EDGES = ((0.5,), (2.0,), (3.0, 4.0, 6.0), (100.0, 500.0))
PARTIAL = 0.3  # a flux known of a smaller part is left alone: of real galaxies, totals are known of the stars beside
LIMITED = [2, 1]  # the features of sources whose range is that of the fit
MARGIN = 2.0  # beyond the fitted range of signal-to-noise ratio and size, as a factor, without a flag
DRAWS = 400  # of a source, about, are enough to fit


class Known(NamedTuple):
    """What a calibrator learns from a batch.

    - `draws`, `truth`: of ln flux ``(draw, source, band)`` and ``(source, band)``, for each kind; true values are minus
      infinity of false sources, NaN if unknown.
    - `features (source, band, feature)`, which put a source into a bin.
    - `existence`: probabilities and whether they come true ``(2, source)``.
    """

    method: str
    draws: dict[str, NDArray]
    truth: dict[str, NDArray]
    features: NDArray
    group: NDArray
    existence: NDArray


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Maps of draws and probabilities, learned from sources of known truth.

    Parameters
    ----------
    flux
        For each kind of flux ("total", "auto"), given and wanted quantiles in every bin ``(bin, 2, node)``.
    total
        The same for totals of groups; without maps where groups were too few.
    color
        Factor on the errors of colors, for each kind of flux.
    low, high
        Range of signal-to-noise ratio and size in pixels that it was fitted on.
    method
        Of the posteriors that it was fitted on; others are refused.
    existence
        Slope and shift of the logit; None leaves the probabilities as they are.
    fitted_on
        Description of the scenes that it was fitted on.
    """

    flux: dict[str, NDArray[np.float64]]
    total: dict[str, NDArray[np.float64]]
    color: dict[str, float]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: str
    existence: tuple[float, float] | None = None
    fitted_on: str = ""

    @classmethod
    def fit(
        cls, batches: Iterable[tuple[Posterior, Scene, ArrayLike]], *, least: int = LEAST, fitted_on: str = ""
    ) -> "Calibrator":
        """Fit a calibrator to posteriors with known truths.

        Parameters
        ----------
        batches
            Each is a posterior of scenes that the network was not trained on, the `Scene` with their true sources, and
            the index of the true source of each of the posterior's sources ``(source,)``, -1 for a false detection.
            Cameras, shapes and bands may differ; little of a batch is kept.
        least
            Minimum number of sources with one map; bins with fewer take that of a coarser bin. Of groups it is a third.
        fitted_on
            Description of the scenes.

        Returns
        -------
        Calibrator
            The calibrator of what the posteriors hold and the scenes know.

        Raises
        ------
        ValueError
            If there is no batch, shapes, methods or numbers of draws disagree, a posterior is calibrated already, no
            true flux is known, or fewer than `least` sources have one.
        """
        return fit_known((known_sources(*batch) for batch in batches), least=least, fitted_on=fitted_on)

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
        features, group = _features(posterior), posterior.dataset["group"].values
        values = np.nan_to_num(features[..., LIMITED])
        outside = ((values < np.divide(self.low, MARGIN)) | (values > np.multiply(self.high, MARGIN))).any((1, 2))
        outside = np.where(outside, int(Flag.OUTSIDE_CALIBRATION), 0)
        changed: dict[str, object] = {"flags": ("source", posterior.flags | outside)}
        for kind in self.flux:
            if FLUX_OF[kind] in posterior.dataset:
                given = posterior.dataset[FLUX_OF[kind]]
                moved = self.corrected(kind, _log_draws(posterior, kind), features, group)
                moved = np.exp(moved).reshape(given.shape)
                moved = np.where(np.isfinite(moved), moved, given.values)
                changed[FLUX_OF[kind]] = given.copy(data=moved.astype(given.dtype))
        if self.existence is not None and "existence" in posterior.dataset:
            existence = logistic(posterior.dataset["existence"].values, self.existence)
            flags = (posterior.flags | outside) & ~int(Flag.DOUBTFUL) | (existence < 0.5) * int(Flag.DOUBTFUL)
            changed |= {"existence": ("source", existence), "flags": ("source", flags)}
        return Posterior(posterior.dataset.assign(changed).assign_attrs(calibrated=1), posterior.cutouts)

    def corrected(self, kind: str, draws: NDArray, features: NDArray, group: NDArray) -> NDArray[np.float64]:
        """Map draws of ln flux ``(draw, source, band)`` of sources with such features, in groups.

        Parameters
        ----------
        kind
            "total" or "auto"; draws of what it was not fitted to stay.
        draws, features, group
            As in what a calibrator learns from.

        Returns
        -------
        NDArray
            The draws, mapped.
        """
        if kind not in self.flux:
            return draws
        moved = with_colors(mapped(draws, self.flux[kind], cell_of(features, EDGES)), self.color[kind])
        if len(self.total[kind]):
            total = _log_total(moved, draws, group)
            moved = with_totals(moved, mapped(total, self.total[kind], _group_cell(features, group)), group)
        return moved

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
        return json.dumps(header("calibrator") | {"bins": [EDGES, GROUP_EDGES]} | numbers)

    @classmethod
    def parse(cls, text: str | bytes, *, path: str | PathLike[str] = "calibrator") -> Self:
        """Return the calibrator that `describe` described.

        Parameters
        ----------
        text
            The JSON, or its bytes.
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
            numbers = dict(json.loads(text))
        except (RecursionError, TypeError, ValueError):
            numbers = {}
        check_header(numbers, "calibrator", path)
        with readable(path, "damaged calibrator"):
            kinds = [kind for kind in FLUX_OF if kind in numbers["flux"]]
            pairs = {name: numbers[name] for name in ("low", "high", "existence") if numbers[name] is not None}
            kept = {name: (float(first), float(second)) for name, (first, second) in pairs.items()}
            kept |= {name: str(numbers[name]) for name in ("method", "fitted_on")}
            for name, edges in (("flux", EDGES), ("total", GROUP_EDGES)):
                kept[name] = {kind: maps_of(numbers[name][kind], edges, optional=name == "total") for kind in kinds}
            found = cls(**kept, color={kind: float(numbers["color"][kind]) for kind in kinds})
            if found.describe() != json.dumps(numbers, allow_nan=False):
                raise ValueError("this is not how it was written")
        return found

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
    def open(cls, path: str | PathLike[str]) -> Self:
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
        check_file(path)
        return cls.parse(Path(path).read_bytes(), path=path)


def known_sources(posterior: Posterior, scene: Scene, matched: ArrayLike) -> Known:
    """Return what a calibrator learns from a batch; see `Calibrator.fit`."""
    matched = np.asarray(matched)
    if matched.shape != (len(posterior),):
        raise ValueError(f"matched must have shape ({len(posterior)},), got {matched.shape}")
    if "calibrated" in posterior.dataset.attrs:
        raise ValueError("posterior must not be calibrated already: deblend with calibrate=False")
    draws, truth, data = {}, {}, posterior.dataset
    for kind, true in (("total", scene.flux), ("auto", scene.auto_flux)):
        if FLUX_OF[kind] in data and true is not None:
            values = _log_draws(posterior, kind)
            draws[kind] = values[:: max(1, len(values) // DRAWS)].astype(np.float32)
            with np.errstate(divide="ignore"):
                truth[kind] = np.log(np.append(true.double().numpy(), np.zeros((1, true.shape[1])), 0)[matched])
    existence = np.stack([data["existence"].values, matched >= 0]) if "existence" in data else np.zeros((2, 0))
    return Known(data.attrs["method"], draws, truth, _features(posterior), data["group"].values, existence)


def fit_known(known: Iterable[Known], *, least: int = LEAST, fitted_on: str = "") -> Calibrator:
    """Fit a calibrator to what is known of all batches; see `Calibrator.fit`."""
    known = list(known)
    methods = sorted({batch.method for batch in known})
    draws = sorted({len(values) for batch in known for values in batch.draws.values()})
    if len(methods) != 1 or len(draws) > 1:
        raise ValueError(f"posteriors must be of one method and number of draws, got {methods} and {draws}")
    flux, color, total, seen = {}, {}, {}, []
    having = {kind: [batch for batch in known if kind in batch.draws] for kind in FLUX_OF}
    true = {kind: sum(np.isfinite(batch.truth[kind]).sum() for batch in own) for kind, own in having.items()}
    for kind, own in having.items():
        if true[kind] and true[kind] > PARTIAL * max(true.values()):
            values = [(batch.draws[kind], batch.truth[kind], cell_of(batch.features, EDGES)) for batch in own]
            flux[kind], count = fit_cells(values, EDGES, least=least)
            if count < least:
                raise ValueError(f"at least {least} sources with draws and truth are needed to fit, got {count}")
            moved = [mapped(draws, flux[kind], cell) for draws, _, cell in values]
            color[kind] = color_stretch(zip(moved, (truth for _, truth, _ in values), strict=True))
            moved = [with_colors(draws, color[kind]) for draws in moved]
            values = [_totals(*given, kind) for given in zip(own, moved, strict=True)]
            total[kind], _ = fit_cells(values, GROUP_EDGES, least=least // 3)
            seen += [batch.features[np.isfinite(batch.truth[kind])] for batch in own]
    if not flux:
        raise ValueError("scenes must have true fluxes of a kind that the posteriors hold, got none")
    limited = np.nan_to_num(np.concatenate(seen)[:, LIMITED])
    low, high = (tuple(end.tolist()) for end in (limited.min(0), limited.max(0)))
    existence = fit_logistic(*np.concatenate([batch.existence for batch in known], 1))
    return Calibrator(flux, total, color, low, high, methods[0], existence, fitted_on)


def _totals(batch: Known, moved: NDArray, kind: str) -> tuple[NDArray, NDArray, NDArray]:
    """Return draws, truths and cells of the totals of groups of several sources, from mapped draws of all."""
    several = batch.features[:, 0, 5] > 1
    group, truth = batch.group[several], np.exp(batch.truth[kind][several])
    total = _log_total(moved[:, several], batch.draws[kind][:, several], group)
    with np.errstate(divide="ignore"):
        return total, np.log(group_total(truth, group)), _group_cell(batch.features[several], group)


def _log_draws(posterior: Posterior, kind: str) -> NDArray[np.float64]:
    """Return ln of draws ``(draw, source, band)`` of all chains; NaN where one draw of a source is not positive."""
    draws = posterior.dataset[FLUX_OF[kind]].values.astype(np.float64)
    draws = draws.reshape(draws.shape[0] * draws.shape[1], *draws.shape[2:])
    with np.errstate(invalid="ignore"):
        return np.log(np.where((draws > 0).all(0), draws, np.nan))


def _features(posterior: Posterior) -> NDArray[np.float64]:
    """Return what puts each source and band into a bin of `EDGES` ``(source, band, feature)``; NaN where unknown.

    The signal-to-noise ratio is that of a Gaussian of the half-light radius, or of a point source if that is larger.
    """
    data = posterior.dataset
    unknown = np.full(len(posterior), np.nan)
    known = {name: data[name].values if name in data else unknown for name in ("half_light_radius", "contested")}
    rms = data["sky_rms"].values if "sky_rms" in data else unknown[:, None]
    size = known["half_light_radius"] / data.attrs["pixel_scale"]
    flux = data[next(name for name in FLUX_OF.values() if name in data)].median(("chain", "draw")).values
    snr = flux / (rms * np.sqrt(4 * np.pi) * np.maximum(np.nan_to_num(size), 1.5)[:, None])
    _, owner, number = np.unique(data["group"].values, return_inverse=True, return_counts=True)
    number, contested, size = (values[:, None] for values in (number[owner], known["contested"], size))
    listed = data.attrs.get("positions") == "given"
    return np.stack(np.broadcast_arrays(listed, size, snr, snr.shape[1], contested, number), axis=-1)


def _group_cell(features: NDArray, group: NDArray) -> NDArray[np.int64]:
    """Return the bin of `GROUP_EDGES` of each group and band ``(group, band)``."""
    first = features[np.unique(group, return_index=True)[1]]
    snr = np.sqrt(group_total(np.nan_to_num(features[..., 2]) ** 2, group))
    return cell_of(np.stack([*np.moveaxis(first[..., [0, 3, 5]], -1, 0), snr], -1), GROUP_EDGES)


def _log_total(moved: NDArray, draws: NDArray, group: NDArray) -> NDArray[np.float64]:
    """Return ln totals ``(draw, group, band)`` of mapped draws that keep the medians of the given ones."""
    return np.log(group_total(np.exp(moved - np.median(moved, axis=0) + np.median(draws, axis=0)), group))
