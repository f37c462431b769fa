"""Recipes of the networks that ship with the package: weights, their flux readout, and the guide.

Every recipe keeps what it has done in a folder beside its output, so that an interrupted run can be resumed. Weights
see every blend once. Readout and guide stand on the frozen encoder of weights, and learn from the population that
these were trained on.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from astropy.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..deblending.deblender import Deblender, Description
from ..deblending.weights import save
from ..networks.losses import NegativeLogLikelihood
from ..refinement.guide import JointGuide, save_guide
from ..refinement.model import BlendModel
from ..scene import LN_FLUX_UNIT, seed_of
from ..simulation.sets import count_blends, read_instrument
from .features import CHUNK, FeatureLikelihood, encode_blends, fit_features, held_out, training_population
from .fit import History, Schedule, fit, training_record, unfinished_run
from .streams import SIMULATED, Mixture, StoredStream, stored_blends

__all__ = ["fit_flux_readout", "train_guide", "train_readout", "train_weights"]

SETTINGS = {"patch": 2, "unet_filters": 16, "depth": 4, "first_filters": 64, "hidden": 128, "dropout": 0.1}
VALIDATION_BLENDS = 1024
FAMILIAR_BLENDS = 4096  # whose features define what is familiar
CLOSE_FRACTION = 0.1  # of the batches that flux readouts learn from


def train_weights(
    output: Path,
    *,
    steps: int = 20_000,
    batch_size: int = 16,
    seed: int = 0,
    source: Path | tuple[Mixture, Mixture] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Table:
    """Train a network, on a GPU if there is one, and write its weights.

    The weights that ship were made with the defaults, and then with `train_readout`.

    Parameters
    ----------
    output
        The weights file.
    steps
        Number of batches.
    batch_size
        Blends per batch.
    seed
        Seed of the network and of the blends.
    source
        What to train on: a stored set, whose last tenth validates; or the population to train on and the one to
        validate on. None for the population of the weights that ship, simulated blends.
    resume
        Resume an interrupted run; the result is that of a run without interruption.
    overwrite
        Replace an existing output or unfinished run.
    progress
        Show a progress bar.

    Returns
    -------
    Table
        One row per validation: ``step``, ``training`` and ``validation`` loss. The metadata has ``steps`` and
        ``validation_loss``, the lowest one.

    Raises
    ------
    ValueError
        If the set is too small, there is nothing to resume, or the unfinished run has other settings.
    FileExistsError
        If the output or an unfinished run exists and is not to be replaced.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = (Mixture(), Mixture()) if source is None else source
    family = source if isinstance(source, Path) else source[0]
    if isinstance(source, Path):
        instrument, stop = read_instrument(source), int(0.9 * count_blends(source))
        stored = partial(StoredStream, source, batch_size=batch_size, seed=seed)
        stream, validation, familiar = partial(stored, stop=stop), stored(start=stop), stored(stop=stop)
    else:
        instrument = family.instrument
        stream, held_back = (partial(mixture.to(device).stream, batch_size=batch_size) for mixture in source)
        validation, familiar = held_back(seed=seed + 1), stream(seed=seed + 2)
        stream = partial(stream, seed=seed)
    settings = {"kind": "weights", "steps": steps, "batch_size": batch_size, "seed": seed} | _source_record(family)
    description = _description(family)
    described = settings | {"prior": description.prior, "flux_range": description.flux_range}
    with unfinished_run(output, described, seed=seed, resume=resume, overwrite=overwrite) as (kept, temporary):
        network = description.build().to(device)
        workers = int(device == "cpu")  # renders while the network trains; a GPU renders in turn with it
        # Masks learn from their own loss only, so that they remain probabilities.
        network.end_to_end = False
        history = fit(
            NegativeLogLikelihood(network),
            lambda first: DataLoader(stream(first=first), batch_size=None, num_workers=workers),
            list(islice(validation, min(steps, math.ceil(VALIDATION_BLENDS / batch_size)))),
            schedule=Schedule(steps, validate_every=min(1000, steps)),
            checkpoint=kept / "checkpoint.pt",
            progress=progress,
        )
        images = (batch.image.to(device) for batch in familiar)
        first = islice(images, min(steps, math.ceil(FAMILIAR_BLENDS / batch_size)))
        with torch.no_grad():
            features = torch.cat([network.cnn.answer(network.encode(image).flux).cpu() for image in first])
        description.training.update(training_record(history, settings))
        save(Deblender(network.cpu(), instrument, description, features=features), temporary)
    return history.table()


def train_readout(
    output: Path,
    deblender: Deblender,
    *,
    blends: int = 256_000,
    steps: int = 60_000,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Table:
    """Train the hidden layers of weights further, with a new head for total flux and flux ratio, and write the weights.

    The encoder stays as it is, and with it masks, positions, guides and count networks. A tenth of the batches are
    close pairs. Features take 8 kB per blend beside the output until all is done, and twice that in memory.

    Parameters
    ----------
    output
        The weights file.
    deblender
        Weights trained on simulated blends. Their calibrator is dropped; recalibrate the new weights.
    blends
        Number of blends; a tenth of them validates.
    steps
        Number of batches of 256 blends.
    seed
        Same seed, same weights.
    resume
        Resume an interrupted run.
    overwrite
        Replace an existing output or unfinished run.
    progress
        Show progress bars.

    Returns
    -------
    Table
        As for `train_weights`; validated at the end alone.

    Raises
    ------
    ValueError
        If the weights were not trained on simulated blends, there are too few blends, there is nothing to resume, or
        the unfinished run has other settings.
    FileExistsError
        If the output or an unfinished run exists and is not to be replaced.
    """
    mixture = training_population(deblender, close_fraction=CLOSE_FRACTION)
    held_out(blends)
    settings = {"kind": "readout", "steps": steps, "blends": blends, "seed": seed} | _source_record(mixture)
    described = settings | {"encoder": deblender.encoder_digest}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with unfinished_run(output, described, seed=seed, resume=resume, overwrite=overwrite) as (kept, temporary):
        description = replace(deblender.description, head="TotalRatioHead", training={})
        network = description.build().to(device)
        trained = deblender.network.state_dict().items()
        network.load_state_dict({k: v for k, v in trained if not k.startswith("head.")}, strict=False)
        stream = mixture.to(device).stream(batch_size=CHUNK, seed=seed)

        def encode(number: int) -> tuple[Tensor, ...]:
            batch = stream.batch(number)
            encoded = network.encode(batch.image)
            return encoded.flux.half(), encoded.start, batch.flux.log()

        network.eval()
        data = encode_blends(encode, blends, kept=kept, progress=progress)
        # Validated at the end only: the loss without dropout is a poor guide to the average of many passes.
        schedule = Schedule(steps, learning_rate=1e-3, validate_every=steps)
        history = fit_flux_readout(network, data, schedule=schedule, seed=seed, progress=progress)
        network = network.cpu().eval()
        with torch.no_grad():
            familiar = network.cnn.answer(data[0][:FAMILIAR_BLENDS].float())
        description.training.update(training_record(history, settings), encoder=deblender.description.training)
        save(Deblender(network, deblender.instrument, description, features=familiar), temporary)
    return history.table()


def train_guide(
    output: Path,
    deblender: Deblender,
    *,
    blends: int = 100_000,
    steps: int = 12_000,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Table:
    """Train a guide, the distribution of photometry and morphology that refinement starts from, and write its file.

    Parameters
    ----------
    output
        The guide's file.
    deblender
        Weights trained on simulated blends, whose encoder the guide uses.
    blends
        Number of blends drawn from the generative model; a tenth of them validates.
    steps
        Number of batches of 256 blends.
    seed
        Same seed, same guide.
    resume
        Resume an interrupted run.
    overwrite
        Replace an existing output or unfinished run.
    progress
        Show progress bars.

    Returns
    -------
    Table
        As for `train_weights`.

    Raises
    ------
    ValueError, FileExistsError
        As for `train_readout`.
    """
    mixture, held = training_population(deblender), held_out(blends)
    model = BlendModel(mixture.prior, mixture.instrument)
    settings = {"kind": "guide", "steps": steps, "blends": blends, "seed": seed}
    described = settings | {"encoder": deblender.encoder_digest}
    with unfinished_run(output, described, seed=seed, resume=resume, overwrite=overwrite) as (kept, temporary):
        guide = JointGuide(deblender.network, pixel_scale=mixture.instrument.pixel_scale)

        def encode(number: int) -> tuple[Tensor, ...]:
            count = min(CHUNK, blends - number * CHUNK)
            observed, unknown = model.simulate(count, conditions=mixture.conditions, seed=seed_of(seed, number))
            features, start = guide.encode(observed.image[:, None])
            return features.half(), start, unknown

        data = encode_blends(encode, blends, kept=kept, progress=progress)
        guide.readout.normalize(data[0][held:].float())
        loss = FeatureLikelihood(
            guide, lambda features, start: guide.head.distribution(guide.numbers(features.float(), start))
        )
        schedule = Schedule(steps, learning_rate=1e-3, validate_every=max(1, steps // 20))
        history = fit_features(loss, data, schedule=schedule, seed=seed, progress=progress)
        save_guide(guide, deblender, temporary, training=training_record(history, settings))
    return history.table()


def fit_flux_readout(
    network: nn.Module, data: tuple[Tensor, Tensor, Tensor], *, schedule: Schedule, seed: int = 0, progress: bool = True
) -> History:
    """Train the hidden layers and the head of weights on features, starting values and true log-fluxes."""
    dense, head = network.cnn.dense, network.head
    loss = FeatureLikelihood(nn.ModuleList([dense, head]), lambda features, start: head(dense(features.float()), start))
    return fit_features(loss, data, schedule=schedule, seed=seed, progress=progress)


def _source_record(source: Path | Mixture) -> dict[str, object]:
    if isinstance(source, Path):
        return {"source": source.name}
    named = f"{source.real_fraction:g} real, others simulated" if source.real_fraction else SIMULATED
    return {"source": named, "close_fraction": source.close_fraction}


def _description(source: Path | Mixture) -> Description:
    """Describe the network and what it is trained on: a population, or a stored set, whose fluxes are measured."""
    conditions = prior = None
    if isinstance(source, Mixture):
        prior, conditions, difference = source.prior.describe(), source.conditions, source.prior.max_difference
        fluxes = [10 ** (-0.4 * (end - source.instrument.zero_point)) for end in source.prior.magnitude_range]
        flux_range = (min(fluxes) / max(conditions.sky_rms), max(fluxes) / min(conditions.sky_rms))
    else:
        blends = stored_blends(source, progress=False)
        ratio = torch.cat([blend.flux[..., 0] / blend.sky_rms[:, None] for blend in blends]).double()
        difference = LN_FLUX_UNIT * float((ratio[:, 0] / ratio[:, 1]).log().abs().max())
        flux_range = float(ratio.min()), float(ratio.max())
    network = "Blend2Mask2Flux", "StudentTHead", dict(SETTINGS)
    return Description(*network, flux_range, difference, prior, conditions, training={})
