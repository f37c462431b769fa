"""A trial: what the network and SEP answer for blends whose truth is known.

Posteriors are kept, masks are summed up on the way, so that memory grows with the draws alone. Pixels are judged in
two regions, without the empty sky, where every mask is right:

- "faint": where the light of both galaxies, without noise, is 0.5 to 10 times the sky noise;
- "overlap": where both masks have a probability above 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..deblending.sep import sep_posterior
from ..metrics.pixels import blendedness, iou
from ..metrics.reliability import Reliability
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..posterior.masks import MaskMap, MaskSums
from ..scene import Blend, Instrument, seed_of
from ..simulation.conditions import Conditions
from ..simulation.prior import Prior
from ..simulation.sets import count_blends, read_blends
from .streams import Mixture

__all__ = ["REGIONS", "Trial", "run_trial", "set_batches", "simulated_batches"]

CHUNK = 128
BATCH = 64
FAINT = (0.5, 10.0)
OVERLAP = 0.1
REGIONS = ("faint", "overlap")
TRUTHS = ("flux", "auto_flux", "x", "y", "galaxy_type", "half_light_radius", "identity", "sky_rms")


@dataclass(frozen=True, eq=False)
class Trial:
    """What was answered, and what is true.

    Parameters
    ----------
    network
        Posterior as the network gives it, before any calibrator, without masks.
    calibrated
        The same after the calibrator; as the network gives it where there is none.
    sep
        SEP's posteriors by kind of flux: "auto", "isophotal", "mirrored"; those that were asked for.
    truth
        By name: ``flux`` and ``auto_flux (blend, galaxy, band)``; ``x``, ``y``, ``galaxy_type``,
        ``half_light_radius``, ``identity`` and ``blendedness (blend, galaxy)``; ``sky_rms (blend,)``. Those that the
        blends have.
    iou
        Intersection over union of each mask ``(blend, galaxy)`` by "network" and "sep".
    masks
        Reliability of the mask probabilities by region, before ("faint", "overlap") and after the calibrator
        ("faint calibrated", "overlap calibrated").
    sums
        What a `~probdeblend.posterior.masks.MaskMap` is fitted to.
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
        """Which galaxy each is ``(blend, galaxy)``; None where all are distinct, or nobody knows."""
        identity = self.truth.get("identity")
        known = identity is not None and (identity >= 0).all()
        return identity if known and len(np.unique(identity)) < identity.size else None


def set_batches(path: str | PathLike[str], *, progress: bool = True) -> Iterator[Blend]:
    """Read a stored set, some blends at a time.

    Parameters
    ----------
    path
        What ``probdeblend simulate`` or ``probdeblend pair`` wrote.
    progress
        Show a progress bar.

    Returns
    -------
    iterator of Blend
        Batches.

    Raises
    ------
    ValueError
        If the set is empty.
    """
    path = Path(path)
    total = count_blends(path)
    if total == 0:
        raise ValueError(f"{path}: the set must hold blends, got none")
    starts = tqdm(range(0, total, CHUNK), disable=not progress, desc=path.name, unit="chunk", leave=False)
    return (read_blends(path, start, min(start + CHUNK, total)) for start in starts)


def simulated_batches(
    count: int,
    *,
    seed: int = 0,
    prior: Prior | None = None,
    conditions: Conditions | None = None,
    instrument: Instrument | None = None,
    close_fraction: float = 0.0,
    progress: bool = True,
) -> Iterator[Blend]:
    """Simulate blends of the population that networks are trained on, others than those of the training.

    Parameters
    ----------
    count
        Number of blends.
    seed
        Same seed, same blends.
    prior, conditions, instrument
        Population, depths and PSFs, and instrument; those of the training if None.
    close_fraction
        Share of the batches of 64 whose companions lie close, as in a `~probdeblend.training.streams.Mixture`.
    progress
        Show a progress bar.

    Yields
    ------
    Blend
        Batches with their truth.
    """
    parts = prior or Prior.default(), instrument or Instrument.candels_f160w(), conditions or Conditions()
    # The streams of the training have small seeds; this one is drawn from 63 bits.
    stream = Mixture(*parts, close_fraction=close_fraction).stream(batch_size=BATCH, seed=seed_of(seed, count))
    for number in tqdm(range(-(-count // BATCH)), disable=not progress, desc="blends", unit="batch", leave=False):
        blend = stream.blend(number)
        yield blend.select(slice(count - number * BATCH)) if len(blend) > count - number * BATCH else blend


def run_trial(
    blends: Iterable[Blend],
    deblender: Callable[..., Posterior],
    *,
    calibrator: Calibrator | None = None,
    sep: Sequence[str] = ("auto",),
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
) -> Trial:
    """Ask the network, and SEP, about blends of known truth.

    SEP is given the true positions to match its detections with.

    Parameters
    ----------
    blends
        Batches of pairs with their truth.
    deblender
        Called as a `~probdeblend.deblending.deblender.Deblender`, without its calibrator.
    calibrator
        What repairs the answers; that of the deblender is a good choice.
    sep
        Which of SEP's fluxes are measured too, as `~probdeblend.deblending.sep.sep_posterior` names them.
    draws, passes, seed
        Given to the deblender, and draws and seed to SEP.

    Returns
    -------
    Trial
        All answers.

    Raises
    ------
    ValueError
        If there are no blends, or they are no pairs or have no truth.
    """
    chunks, start = [], 0
    for blend in blends:
        _check(blend)
        sampling = {"draws": draws, "seed": seed + start}
        answer = deblender(blend.image, sky_rms=blend.sky_rms, passes=passes, calibrate=False, **sampling)
        chunks.append(_chunk(blend, answer, calibrator, {kind: _sep(blend, kind, **sampling) for kind in sep}))
        start += len(blend)
    if not chunks:
        raise ValueError("blends must hold at least one batch, got none")
    return _joined(chunks, calibrator)


def _check(blend: Blend) -> None:
    if missing := [name for name in ("flux", "mask", "x", "y") if getattr(blend, name) is None]:
        raise ValueError(f"blends must have truth, got some without {', '.join(missing)}")
    if blend.flux.shape[1] != 2 or bool(blend.flux.isnan().any()):
        raise ValueError("blends must be pairs, got other numbers of galaxies")


def _sep(blend: Blend, kind: str, *, draws: int, seed: int) -> Posterior:
    x, y, exposure = (None if value is None else value.numpy() for value in (blend.x, blend.y, blend.exposure))
    settings = {"kind": kind, "exposure": exposure, "draws": draws, "seed": seed}
    return sep_posterior(blend.image.numpy(), blend.sky_rms.numpy(), x=x, y=y, **settings)


def _chunk(
    blend: Blend, answer: Posterior, calibrator: Calibrator | None, sep: dict[str, Posterior]
) -> dict[str, dict]:
    truth = {name: getattr(blend, name).numpy() for name in TRUTHS if getattr(blend, name) is not None}
    if blend.isolated is not None:
        truth["blendedness"] = blendedness(blend.isolated[:, :, 0].numpy())
    mask = blend.mask.numpy()
    posteriors, overlaps, masks = {"network": answer.without_pixels()}, {}, {}
    posteriors |= {kind: found.without_pixels() for kind, found in sep.items()}
    if "mask" in answer.dataset:
        probability = answer.mask.values
        noise = blend.sky_rms[:, None, None]
        snr = (blend.image[:, 0] / noise).numpy()
        light = snr if blend.isolated is None else (blend.isolated[:, :, 0].sum(1) / noise).numpy()
        overlaps["network"] = iou(probability, mask)
        mapping = None if calibrator is None else calibrator.mask
        masks = _reliability(probability, mask, light, mapping) | {"sums": MaskSums.measure(probability, mask, snr)}
    for found in list(sep.values())[:1]:  # detection, and so the segmentation, is the same for all
        overlaps["sep"] = iou(found.mask.values, mask)
    return {"posteriors": posteriors, "truth": truth, "iou": overlaps, "masks": masks}


def _reliability(
    probability: NDArray, mask: NDArray, light: NDArray, mapping: MaskMap | None
) -> dict[str, Reliability]:
    faint = np.broadcast_to(((light > FAINT[0]) & (light < FAINT[1]))[:, None], mask.shape)
    overlap = np.broadcast_to((probability > OVERLAP).all(1, keepdims=True), mask.shape)
    found = {}
    for region, inside in zip(REGIONS, (faint, overlap), strict=True):
        given, true = probability[inside], mask[inside]
        found[region] = Reliability.measure(given, true)
        found[f"{region} calibrated"] = found[region] if mapping is None else Reliability.measure(mapping(given), true)
    return found


def _joined(chunks: list[dict[str, dict]], calibrator: Calibrator | None) -> Trial:
    def arrays(kind: str) -> dict[str, NDArray]:
        return {name: np.concatenate([chunk[kind][name] for chunk in chunks]) for name in chunks[0][kind]}

    posteriors = {
        name: Posterior.concatenate([chunk["posteriors"][name] for chunk in chunks]) for name in chunks[0]["posteriors"]
    }
    masks = {name: reduce(add, [chunk["masks"][name] for chunk in chunks]) for name in chunks[0]["masks"]}
    sums = masks.pop("sums", None)
    network = posteriors.pop("network")
    calibrated = network if calibrator is None else calibrator(network)
    return Trial(network, calibrated, posteriors, arrays("truth"), arrays("iou"), masks, sums)
