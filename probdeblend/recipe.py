"""The recipe of the weights that ship with the package, as one function with defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from . import __version__
from .data import Batch, Conditions
from .deblender import Deblender, Description
from .io import count_blends, read_instrument, whole_file
from .losses import NegativeLogLikelihood
from .prior import Prior
from .scene import Instrument
from .streams import Mixture, StoredStream
from .train import Schedule, checkpoint_beside, fit
from .weights import save

__all__ = ["SETTINGS", "default_mixture", "train_weights"]

SETTINGS = {
    "patch": 2,
    "unet_filters": 16,
    "depth": 4,
    "first_filters": 64,
    "hidden": 128,
    "dropout": 0.1,
}
"""Keyword arguments of the `~probdeblend.nn.composite.Blend2Mask2Flux` that ships."""

Sources = tuple[Callable[..., IterableDataset[Batch]], Iterable[Batch], Iterable[Batch]]
VALIDATION_BLENDS = 1024
FAMILIAR_BLENDS = 4096


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
) -> Deblender:
    """Train a network on simulated blends, or on a stored set, and write its weights.

    Parameters
    ----------
    output
        The weights file.
    steps
        Number of batches.
    batch_size
        Blends a batch.
    seed
        Seed of the network and of the blends.
    source
        A set of blends to train on, its last blends to validate on; or the blends to train on and those to validate
        on, made while training; None for those of the weights that ship, simulated ones.
    resume
        Go on from the checkpoint that an interrupted run left beside the output, with ``.checkpoint`` appended.
    overwrite
        Replace an existing output or checkpoint.
    progress
        Show a progress bar.

    Returns
    -------
    Deblender
        The trained deblender.

    Raises
    ------
    ValueError
        If the set is too small, or there is nothing to resume.
    FileExistsError
        If the output, or a checkpoint that is not to be resumed, exists and is not to be replaced.
    """
    checkpoint = checkpoint_beside(output, replace=resume or overwrite)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = isinstance(source, Path)
    mixtures = source if isinstance(source, tuple) else (default_mixture(),) * 2
    instrument = (read_instrument(source) if stored else mixtures[0].instrument).to(device)
    with whole_file(output, overwrite=overwrite) as partial_output:
        work = {"batch_size": batch_size, "seed": seed}
        sources = _stored(source, **work) if stored else _endless(mixtures, instrument, **work)
        stream, validation, familiar = sources
        torch.manual_seed(seed)
        described = {"steps": steps, "batch_size": batch_size, "seed": seed}
        described["source"] = source.name if stored else _named(mixtures[0])
        description = _description(mixtures[0].prior, described)
        network = description.build().to(device)
        # The masks are to stay probabilities: they learn from their own loss alone.
        network.end_to_end = False
        history = fit(
            NegativeLogLikelihood(network),
            lambda first: _loader(stream(first=first), device),
            list(islice(validation, math.ceil(VALIDATION_BLENDS / batch_size))),
            schedule=Schedule(steps, validate_every=min(1000, steps)),
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
        )
        description.training.update(validation_loss=round(history.best, 4), steps_done=history.step)
        familiar = islice(familiar, math.ceil(FAMILIAR_BLENDS / batch_size))
        features = torch.cat([_features(network, batch.image) for batch in familiar])
        deblender = Deblender(network.cpu(), instrument.to("cpu"), description, features=features)
        save(deblender, partial_output)
    checkpoint.unlink(missing_ok=True)
    return deblender


def _loader(stream: IterableDataset[Batch], device: str) -> Iterable[Batch]:
    # On a CPU one worker renders while the network trains; a device renders in turn with it.
    return DataLoader(stream, batch_size=None, num_workers=0 if device == "cuda" else 1)


def default_mixture() -> Mixture:
    """Return what the weights that ship learn from: simulated blends of the whole prior.

    Returns
    -------
    Mixture
        Without real galaxies.
    """
    return Mixture(Prior.default(), Instrument.candels_f160w())


def _named(mixture: Mixture) -> str:
    return "simulated stream" if mixture.real_fraction == 0 else f"{mixture.real_fraction:g} real, others simulated"


def _endless(mixtures: tuple[Mixture, Mixture], instrument: Instrument, *, batch_size: int, seed: int) -> Sources:
    training, validation = (replace(mixture, instrument=instrument) for mixture in mixtures)
    stream = partial(training.stream, batch_size=batch_size, seed=seed)
    held_out = partial(validation.stream, batch_size=batch_size)
    return stream, held_out(seed=seed + 1), partial(training.stream, batch_size=batch_size)(seed=seed + 2)


def _stored(path: Path, *, batch_size: int, seed: int) -> Sources:
    """Keep the last tenth of a set to validate on."""
    stop = int(0.9 * count_blends(path))
    stream = partial(StoredStream, path, batch_size=batch_size, seed=seed)
    return partial(stream, stop=stop), stream(start=stop), stream(stop=stop)


def _description(prior: Prior, training: dict[str, object]) -> Description:
    conditions, instrument = Conditions(), Instrument.candels_f160w()
    fluxes = [10 ** (-0.4 * (magnitude - instrument.zero_point)) for magnitude in prior.magnitude_range]
    made = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__}
    return Description(
        architecture="Blend2Mask2Flux",
        head="StudentTHead",
        settings=dict(SETTINGS),
        flux_range=(min(fluxes) / max(conditions.sky_rms), max(fluxes) / min(conditions.sky_rms)),
        max_difference=prior.max_difference,
        prior=prior.describe(),
        training=made | training,
    )


def _features(network: nn.Module, image: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        encoded = network.encode(image.to(next(network.parameters()).device))
        return network.cnn.answer(encoded.flux).cpu()
