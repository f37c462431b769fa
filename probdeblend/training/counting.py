"""Recipe of the network that counts the galaxies of a stamp.

A galaxy counts if it can be seen: if its own noiseless light exceeds 3 sky rms, the threshold of masks, in at least
`VISIBLE_PIXELS` pixels of the stamp, as an isolated galaxy must to be segmented. Fainter galaxies are indistinguishable
from sky. The center of a galaxy that counts may lie off the stamp. The loss is the cross-entropy, a proper score;
probabilities are under the fractions of one to five galaxies in the training, `CROWDING`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from astropy.table import Table
from torch import Tensor
from torch.distributions import Categorical

from ..deblending.counts import save_counts
from ..deblending.deblender import Deblender
from ..metrics.counts import count_reliability
from ..networks.count import CountNetwork
from ..photometry.detection import SEGMENTATION
from ..scene import Blend
from .features import FeatureLikelihood, encode_blends, fit_features, held_out, training_population
from .fit import History, Schedule, training_record, unfinished_run
from .streams import EndlessStream

__all__ = ["CROWDING", "VISIBLE_PIXELS", "fit_counts", "train_counts", "visible_galaxies"]

VISIBLE_PIXELS: int = SEGMENTATION["minimum_area"]
CROWDING = (6 / 18, 6 / 18, 3 / 18, 2 / 18, 1 / 18)
"""Fractions of one to five galaxies in the training: as many of one as of two, and as of three or more."""


def train_counts(
    output: Path,
    deblender: Deblender,
    *,
    blends: int = 40_000,
    steps: int = 4000,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Table:
    """Train a network that counts galaxies, test it on a tenth as many blends that it has not seen, and write its file.

    Parameters
    ----------
    output
        The network's file.
    deblender
        Weights trained on simulated blends, whose encoder the network uses.
    blends
        Number of simulated blends of one to five galaxies; a tenth of them validates.
    steps
        Number of batches of 256 blends.
    seed
        Same seed, same network.
    resume
        Resume an interrupted run.
    overwrite
        Replace an existing output or unfinished run.
    progress
        Show progress bars.

    Returns
    -------
    Table
        The test by true separation: what `~probdeblend.metrics.counts.count_reliability` returns, with the scores of
        `~probdeblend.metrics.counts.count_scores`, ``steps`` and ``validation_loss`` in its metadata.

    Raises
    ------
    ValueError, FileExistsError
        As for `train_readout`.
    """
    mixture = training_population(deblender)
    held_out(blends)
    crowded = replace(mixture, prior=replace(mixture.prior, crowding=CROWDING))
    settings = {"kind": "counts", "steps": steps, "blends": blends, "seed": seed}
    described = settings | {"encoder": deblender.encoder_digest}
    with unfinished_run(output, described, seed=seed, resume=resume, overwrite=overwrite) as (kept, temporary):
        network = CountNetwork(deblender.network)
        work = {"kept": kept, "progress": progress}
        history = fit_counts(network, crowded.stream(seed=seed), blends=blends, steps=steps, seed=seed, **work)
        (kept / "test").mkdir(exist_ok=True)
        encode = partial(_encode_counts, network, crowded.stream(seed=seed + 1))
        features, count, separation = encode_blends(encode, blends // 10, kept=kept / "test", progress=progress)
        with torch.no_grad():
            probability = network.logits(features).double().softmax(1).numpy()
        separation = separation.numpy() / mixture.instrument.fwhm
        table = count_reliability(probability, count.numpy(), separation)
        scores = {f"test_{name}": round(value, 4) for name, value in table.meta.items()}
        save_counts(network, deblender, temporary, training=training_record(history, settings) | scores)
    table.meta |= history.table().meta
    return table


def fit_counts(
    network: CountNetwork,
    stream: EndlessStream,
    *,
    blends: int,
    steps: int,
    seed: int = 0,
    kept: Path | None = None,
    progress: bool = True,
) -> History:
    """Train a count network on the first blends of a stream, a tenth of which validates and fits the temperature."""
    held = held_out(blends)
    encode = partial(_encode_counts, network, stream)
    features, count, _ = encode_blends(encode, blends, kept=kept, progress=progress)
    network.readout.normalize(features[held:])
    schedule = Schedule(steps, learning_rate=1e-3, weight_decay=1e-2, validate_every=max(1, steps // 20))
    loss = FeatureLikelihood(network, lambda features: Categorical(logits=network.logits(features)))
    history = fit_features(loss, (features, network.label(count)), schedule=schedule, seed=seed, progress=progress)
    network.fit_temperature(features[:held], count[:held])
    return history


def visible_galaxies(blend: Blend) -> tuple[Tensor, Tensor]:
    """Return the number of galaxies that can be seen, and the least distance between two of them in pixels, or NaN."""
    if blend.mask is None or blend.x is None or blend.y is None:
        raise ValueError("blend must have masks and positions to count galaxies, got one without")
    visible = blend.mask.sum((-2, -1)) >= VISIBLE_PIXELS
    places = torch.stack([blend.x, blend.y], -1)
    itself = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
    two = visible[:, :, None] & visible[:, None] & ~itself
    least = torch.cdist(places, places).masked_fill(~two, math.inf).amin((-2, -1))
    return visible.sum(-1), least.masked_fill(least.isinf(), math.nan)


def _encode_counts(network: CountNetwork, stream: EndlessStream, number: int) -> tuple[Tensor, ...]:
    """Encode one batch; a stamp where nothing can be seen counts as the one galaxy that is asked for."""
    blend = stream.blend(number)
    count, separation = visible_galaxies(blend)
    return network.encode(blend.image / blend.sky_rms[:, None, None, None]), count.clamp(min=1), separation
