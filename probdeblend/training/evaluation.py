"""Accuracy and calibration on blends of known truth, for the network and for SEP side by side.

`compare` runs both; `evaluate` and `scorecard` tabulate the results. Posteriors are kept and masks are summed up on the
way, so that memory grows with the draws only. Mask probabilities are judged in two regions, without the empty
sky, where every mask is right:

- "faint": where the light of both galaxies, without noise, is 0.5 to 10 times the sky noise;
- "overlap": where both masks have a probability above 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray

from ..deblending.counts import CountingDeblender
from ..deblending.deblender import Deblender, Deblends
from ..deblending.sep import sep_posterior
from ..metrics.accuracy import accuracy_table, magnitude_error
from ..metrics.arrays import ONE_SIGMA, draw_covariance
from ..metrics.coverage import coverage_row, diagnose, in_bins
from ..metrics.masks import Reliability, blendedness, iou
from ..metrics.ranks import joint_pit, rank_p_value, whitened
from ..metrics.scores import energy_score, log_score
from ..networks.count import CountNetwork
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..posterior.masks import mask_sums
from ..scene import Blend
from .streams import stored_blends

__all__ = ["REGIONS", "Comparison", "anomaly_table", "compare", "evaluate", "log_fluxes", "scorecard"]

FAINT = (0.5, 10.0)
OVERLAP = 0.1
REGIONS = ("faint", "overlap")
TRUTHS = ("flux", "auto_flux", "x", "y", "galaxy_type", "half_light_radius", "identity", "sky_rms")
SEP_GIVEN = ("image", "sky_rms", "x", "y", "exposure")
ANOMALY_EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, np.inf)
FAR = 3.0  # half-widths of the 68 % interval


@dataclass(frozen=True, eq=False)
class Comparison:
    """Posteriors of the network and of SEP for the same blends, with the truth.

    `network` is the network's posterior without a calibrator, `calibrated` the same after it (or as it is, where there
    is none), `sep` holds SEP's posteriors by kind of flux; all are without masks. `truth` holds, where the blends have
    them, ``flux`` and ``auto_flux (blend, galaxy, band)``; ``x``, ``y``, ``galaxy_type``, ``half_light_radius``,
    ``identity`` and ``blendedness (blend, galaxy)``; ``sky_rms (blend,)``. `iou` is the intersection over union of the
    masks ``(blend, galaxy)`` of "network" and "sep". `masks` is the reliability of the mask probabilities by region,
    before ("faint") and after the calibrator ("faint calibrated"); to `sums` a map of masks is fitted.
    """

    network: Posterior
    calibrated: Posterior
    sep: dict[str, Posterior]
    truth: dict[str, NDArray]
    iou: dict[str, NDArray]
    masks: dict[str, Reliability]
    sums: Reliability

    @property
    def galaxies(self) -> NDArray[np.int64] | None:
        """Which galaxy each is ``(blend, galaxy)``; None where all are distinct, or it is not known."""
        identity = self.truth.get("identity")
        known = identity is not None and (identity >= 0).all()
        return identity if known and len(np.unique(identity)) < identity.size else None


def compare(
    blends: Iterable[Blend],
    deblender: Deblends,
    *,
    calibrator: Calibrator | None = None,
    sep: Sequence[str] = ("auto",),
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
) -> Comparison:
    """Deblend blends of known truth with the network and with SEP.

    SEP is given the true positions to match its detections with.

    Parameters
    ----------
    blends
        Batches of pairs with their truth.
    deblender
        Called as a `~probdeblend.deblending.deblender.Deblender`, without its calibrator.
    calibrator
        Repairs the posteriors, such as that of the deblender.
    sep
        Kinds of flux to measure with SEP, as `~probdeblend.deblending.sep.sep_posterior` names them.
    draws, passes, seed
        Given to the deblender; draws and seed to SEP as well.

    Returns
    -------
    Comparison
        Posteriors ``network``, ``calibrated`` and ``sep`` (by kind of flux), and arrays ``truth`` and ``iou`` by name.

    Raises
    ------
    ValueError
        If there are no blends, or they are not pairs or have no truth.
    """
    parts, start = [], 0
    for blend in blends:
        _check(blend)
        sampling = {"draws": draws, "seed": seed + start}
        answer = deblender(blend.image, sky_rms=blend.sky_rms, passes=passes, calibrate=False, **sampling)
        given = {name: None if (values := getattr(blend, name)) is None else values.numpy() for name in SEP_GIVEN}
        found = {kind: sep_posterior(**given, kind=kind, **sampling) for kind in sep}
        parts.append(_compared(blend, answer, calibrator, found))
        start += len(blend)
    if not parts:
        raise ValueError("blends must hold at least one batch, got none")
    return _joined(parts, calibrator)


def _check(blend: Blend) -> None:
    if missing := [name for name in ("flux", "mask", "x", "y") if getattr(blend, name) is None]:
        raise ValueError(f"blends must have truth, got some without {', '.join(missing)}")
    if blend.flux.shape[1] != 2 or bool(blend.flux.isnan().any()):
        raise ValueError("blends must be pairs, got other numbers of galaxies")


def _compared(blend: Blend, answer: Posterior, calibrator: Calibrator | None, sep: dict[str, Posterior]) -> Comparison:
    truth = {name: getattr(blend, name).numpy() for name in TRUTHS if getattr(blend, name) is not None}
    noise, mask, masks, sums = blend.sky_rms[:, None, None], blend.mask.numpy(), {}, None
    snr = light = (blend.image[:, 0] / noise).numpy()
    if blend.isolated is not None:
        truth["blendedness"] = blendedness(blend.isolated[:, :, 0].numpy())
        light = (blend.isolated[:, :, 0].sum(1) / noise).numpy()
    # Detection, and so the segmentation, is the same for all kinds of SEP's flux.
    with_masks = dict(zip(("network", "sep"), (answer, *sep.values()), strict=False))
    overlaps = {name: iou(found.mask.values, mask) for name, found in with_masks.items() if "mask" in found.dataset}
    if "network" in overlaps:
        probability = answer.mask.values
        sums = mask_sums(probability, mask, snr)
        insides = ((light > FAINT[0]) & (light < FAINT[1]))[:, None], (probability > OVERLAP).all(1, keepdims=True)
        for region, inside in zip(REGIONS, insides, strict=True):
            given, true = (values[np.broadcast_to(inside, mask.shape)] for values in (probability, mask))
            repaired = given if calibrator is None or calibrator.mask is None else calibrator.mask(given)
            masks[region], masks[f"{region} calibrated"] = (Reliability.measure(p, true) for p in (given, repaired))
    network = answer.without_pixels()
    sep = {kind: found.without_pixels() for kind, found in sep.items()}
    return Comparison(network, network, sep, truth, overlaps, masks, sums)


def _joined(parts: list[Comparison], calibrator: Calibrator | None) -> Comparison:
    def joined(name: str, join: Callable[[list], object]) -> dict[str, object]:
        first = getattr(parts[0], name)
        return {key: join([getattr(part, name)[key] for part in parts]) for key in first}

    network = Posterior.concatenate([part.network for part in parts])
    calibrated = network if calibrator is None else calibrator(network)
    sums = None if parts[0].sums is None else reduce(add, (part.sums for part in parts))
    arrays = joined("truth", np.concatenate), joined("iou", np.concatenate), joined("masks", partial(reduce, add))
    return Comparison(network, calibrated, joined("sep", Posterior.concatenate), *arrays, sums)


def evaluate(
    path: Path,
    deblender: Deblender,
    *,
    counter: CountNetwork | None = None,
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Table, Table]:
    """Measure the accuracy and coverage of a network, before and after its calibrator, and of SEP on a stored set.

    The network is scored against total fluxes. SEP is given the true positions to match its detections with, and is
    scored against the AUTO fluxes of the isolated galaxies, which are what it measures.

    Parameters
    ----------
    path
        A set of blends with truth.
    deblender
        The network.
    counter
        Counts galaxies, which raises the anomaly score where two are unlikely; None leaves that out.
    draws, passes, seed
        Given to the deblender; draws and seed to SEP as well.
    progress
        Show a progress bar.

    Returns
    -------
    accuracy, by_anomaly
        The columns of `~probdeblend.metrics.accuracy.accuracy_table`, one row per method: "network", the answer of the
        deblender; "uncalibrated", the same without its calibrator, where it has one; and "sep". And the errors of the
        network in bins of its anomaly score: the ends ``low`` and ``high`` of the bin, the number of ``blends``,
        ``nmad_mag``, the scatter of the magnitude errors, ``coverage_68``, the fraction of true fluxes inside the 68 %
        interval, and ``far``, the fraction of blends with a flux more than three half-widths of that interval off.

    Raises
    ------
    ValueError
        If the set is empty or has no truth.
    """
    asked = deblender if counter is None else CountingDeblender(deblender, counter)
    sampling = {"draws": draws, "passes": passes, "seed": seed}
    found = compare(stored_blends(path, progress=progress), asked, calibrator=deblender.calibrator, **sampling)
    if "auto_flux" not in found.truth:
        raise ValueError(f"{path}: the set must have truth, got one without auto_flux")
    posteriors = {"network": found.calibrated}
    if deblender.calibrator is not None:
        posteriors["uncalibrated"] = found.network
    posteriors["sep"] = found.sep["auto"]
    truths = {name: found.truth["auto_flux" if name == "sep" else "flux"] for name in posteriors}
    table = accuracy_table({name: posterior.flux for name, posterior in posteriors.items()}, truths)
    table["iou"] = [found.iou["sep" if name == "sep" else "network"].mean() for name in table["method"]]
    for name in table.colnames[2:]:
        table[name].info.format = ".2f" if name.endswith("ape") else ".3f"
    return table, anomaly_table(found.calibrated, found.truth["flux"])


def anomaly_table(posterior: Posterior, truth: ArrayLike) -> Table:
    """Measure errors of first-band fluxes in bins of the anomaly score; bins without blends are left out."""
    draws, truth = posterior.draws("blend", "galaxy", "band")[:, :, 0], np.asarray(truth, dtype=np.float64)[..., 0]
    low, median, high = np.quantile(draws, ONE_SIGMA, axis=-1)
    inside, far = (low <= truth) & (truth <= high), np.abs(truth - median) > FAR * (high - low) / 2
    error, rows = magnitude_error(median, truth), []
    for least, most, there in in_bins(posterior.anomaly.values, ANOMALY_EDGES):
        if there.any():
            row = {"low": least, "high": most, "blends": int(there.sum())}
            row |= {"nmad_mag": mad_std(error[there], ignore_nan=True), "coverage_68": inside[there].mean()}
            rows.append(row | {"far": far[there].any(1).mean()})
    table = Table(rows)
    for name in table.colnames[3:]:
        table[name].info.format = ".3f"
    return table


def log_fluxes(
    posterior: Posterior, truth: ArrayLike, floor: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return draws and truths of ln flux in the first band.

    Parameters
    ----------
    posterior
        The posterior.
    truth
        True fluxes ``(blend, galaxy, band)``.
    floor
        Flux to which lower ones are raised ``(blend,)``, such as the sky noise of a pixel: SEP's draws may be negative.

    Returns
    -------
    draws, truth
        ``(draw, blend, galaxy)`` and ``(blend, galaxy)``.

    Raises
    ------
    ValueError
        If shapes disagree.
    """
    draws = posterior.draws("blend", "galaxy", "band")[:, :, 0].transpose(2, 0, 1)
    truth, floor = np.asarray(truth, dtype=np.float64), np.asarray(floor, dtype=np.float64)
    if truth.shape[:2] != draws.shape[1:] or truth.ndim != 3:
        raise ValueError(f"truth must have the shape (blend, galaxy, band) of {draws.shape[1:]}, got {truth.shape}")
    if floor.shape != truth.shape[:1]:
        raise ValueError(f"floor must have one number per blend, got shape {floor.shape}")
    return np.log(np.maximum(draws, floor[:, None])), np.log(np.maximum(truth[..., 0], floor[:, None]))


def scorecard(
    posterior: Posterior,
    truth: ArrayLike,
    *,
    floor: ArrayLike,
    galaxies: ArrayLike | None = None,
    band: float = 0.95,
    seed: int = 0,
) -> Table:
    """Measure how a posterior of pairs is calibrated: each ln flux, that of the total, and both fluxes jointly.

    Parameters
    ----------
    posterior
        The posterior; blends of which a galaxy was not found are left out of the last two rows.
    truth
        True fluxes ``(blend, galaxy, band)`` of the posterior's kind; the first band is judged.
    floor
        Flux to which lower ones are raised ``(blend,)``, such as the sky noise of a pixel.
    galaxies
        Which galaxy each is ``(blend, galaxy)``, where they repeat; pairs are resampled by their central one.
    band
        Probability of the bands.
    seed
        Seed of ranks and bootstrap.

    Returns
    -------
    Table
        The rows "each flux", "total flux" and "both jointly", with the columns of
        `~probdeblend.metrics.diagnose`. For "both jointly", coverage is that of regions by Mahalanobis distance,
        ``pull_sd`` the scatter of the whitened errors, ``correlation`` theirs, and ``energy_score`` and ``log_score``
        are means.

    Raises
    ------
    ValueError
        If shapes disagree or there are fewer than ten pairs with draws.
    """
    draws, true = log_fluxes(posterior, truth, floor)
    owner = None if galaxies is None else np.asarray(galaxies)
    rows = [{"quantity": "each flux"} | diagnose(draws, true, galaxies=owner, band=band, seed=seed)]
    total = np.log(np.exp(draws).sum(-1)), np.log(np.exp(true).sum(-1))
    first = None if owner is None else owner[:, 0]
    rows.append({"quantity": "total flux"} | diagnose(*total, galaxies=first, band=band, seed=seed))
    rows.append({"quantity": "both jointly"} | _joint(draws, true, first, band=band, seed=seed))
    table = Table(rows)
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".3f"
    return table


def _joint(draws: NDArray, truth: NDArray, owner: NDArray | None, *, band: float, seed: int) -> dict[str, float]:
    known = np.isfinite(draws).all((0, 2)) & (draws.std(0) > 0).all(-1)
    draws, truth = draws[:, known], truth[known]
    ranks = joint_pit(draws, truth, seed=seed)
    owner = None if owner is None else owner[known]
    galaxies = 2 * len(ranks) if owner is None else len(np.unique(owner))
    row: dict[str, float] = {"count": len(ranks), "galaxies": galaxies}
    row |= coverage_row(ranks, owner, central=False, band=band, seed=seed)
    error = whitened(draws.mean(0), draw_covariance(draws), truth)
    row |= {"pull_mean": error.mean(), "pull_sd": error.std(), "correlation": np.corrcoef(error.T)[0, 1]}
    row |= {"energy_score": energy_score(draws[:200], truth).mean(), "log_score": log_score(draws, truth).mean()}
    return row | {"rank_p": rank_p_value(ranks) if owner is None else np.nan}
