"""The recipe of the weights that ship with the package, as a function with defaults, and how to go on from weights.

`train_weights` trains the whole network, which sees every blend once. `retrain_weights` goes on with the hidden layers
and a new head: what the encoder says of many blends is computed once and seen several times over, in minutes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from .. import __version__
from .._files import kept_arrays, unfinished_folder, whole_file
from ..deblending.deblender import Deblender, Description
from ..deblending.weights import save
from ..networks.composite import BlendFeatures
from ..networks.losses import NegativeLogLikelihood
from ..scene import LN_FLUX_UNIT, Instrument
from ..simulation.conditions import Batch
from ..simulation.prior import Prior
from ..simulation.sets import count_blends, read_blends, read_instrument
from .fit import Schedule, checkpoint_beside, fit, fit_tensors, held_out
from .streams import EndlessStream, Mixture, StoredStream

__all__ = ["SETTINGS", "ReadoutLikelihood", "default_mixture", "retrain_weights", "train_weights"]

SETTINGS = {
    "patch": 2,
    "unet_filters": 16,
    "depth": 4,
    "first_filters": 64,
    "hidden": 128,
    "dropout": 0.1,
}
"""Keyword arguments of the `~probdeblend.networks.composite.Blend2Mask2Flux` that ships."""

Sources = tuple[Callable[..., IterableDataset[Batch]], Iterable[Batch], Iterable[Batch]]
VALIDATION_BLENDS = 1024
FAMILIAR_BLENDS = 4096
CHUNK = 64  # blends whose features are computed and kept together
BATCH = 256  # blends a batch that learns from features
SIMULATED = "simulated stream"
CLOSE_FRACTION = 0.1  # of the batches that hidden layers and head go on with


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
        description = _description(source if stored else mixtures[0], described)
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


class ReadoutLikelihood(nn.Module):
    """Negative log-likelihood of both log-fluxes, given what the encoder of a network says of blends.

    Its parameters are those of the hidden layers and of the head; the encoder is not among them.

    Parameters
    ----------
    network
        A `~probdeblend.networks.composite.Blend2Flux` or `~probdeblend.networks.composite.Blend2Mask2Flux`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.dense, self.head = network.cnn.dense, network.head

    def forward(self, features: Tensor, start: Tensor, log_flux: Tensor) -> Tensor:
        """Return the loss a blend in nat.

        Parameters
        ----------
        features, start
            Of the network's `~probdeblend.networks.composite.BlendFeatures`.
        log_flux
            True log-fluxes over the sky noise ``(blend, galaxy)``.

        Returns
        -------
        Tensor
            Scalar.
        """
        return -self.head(self.dense(features.float()), start).log_prob(log_flux).mean()


def retrain_weights(
    trained: Deblender,
    output: Path,
    *,
    blends: int = 256_000,
    steps: int = 60_000,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Deblender:
    """Go on training the hidden layers of a network, with a new head, on features that are computed once.

    The encoder stays as it is, and with it masks, positions, guides and count networks. Features take 8 kB a blend
    beside the output until all is done, and twice that in memory.

    Parameters
    ----------
    trained
        Whose encoder, instrument and prior to take. A calibrator is left: what it repairs is trained anew.
    output
        The weights file.
    blends
        Number of blends; a tenth of them validates.
    steps
        Number of batches of 256 blends.
    seed
        Same seed, same weights.
    resume
        Go on with the features that an interrupted run left beside the output.
    overwrite
        Replace an existing output, or such features.
    progress
        Show progress bars.

    Returns
    -------
    Deblender
        The retrained deblender.

    Raises
    ------
    ValueError
        If the weights were trained on other blends than simulated ones, there are too few blends, or there is nothing
        to resume.
    FileExistsError
        If the output, or features that are not to be resumed, exist and are not to be replaced.
    """
    source = trained.description.training.get("source")
    if source != SIMULATED:
        raise ValueError(f"weights must be trained on the {SIMULATED} to be retrained on it, got ones from {source}")
    held_out(blends, BATCH)
    prior, conditions = Prior.parse(trained.description.prior), trained.description.conditions
    mixture = Mixture(prior, trained.instrument, conditions, close_fraction=CLOSE_FRACTION)
    settings = {"blends": blends, "seed": seed, "source": source, "close_fraction": mixture.close_fraction}
    kept = unfinished_folder(output, settings | {"encoder": trained.encoder_digest}, resume=resume, overwrite=overwrite)
    made = {"command": "probdeblend retrain", "steps": steps, "batch_size": BATCH}
    described = {"torch": torch.__version__, "probdeblend": __version__, **settings, **made}
    description = replace(trained.description, head="TotalRatioHead", training=described)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    network = _with_new_head(description, trained.network).to(device)
    stream = replace(mixture, instrument=mixture.instrument.to(device)).stream(batch_size=CHUNK, seed=seed)
    data = _encoded(network, stream, blends, kept=kept, progress=progress)
    history = fit_tensors(
        ReadoutLikelihood(network),
        data,
        # Validated at the end alone: without dropout the loss says little of what many passes say together.
        schedule=Schedule(steps, learning_rate=1e-3, validate_every=steps),
        batch_size=BATCH,
        seed=seed,
        progress=progress,
    )
    description.training.update(
        validation_loss=round(history.best, 4), steps_done=history.step, encoder=trained.description.training
    )
    network = network.cpu()
    with torch.no_grad():
        familiar = network.cnn.answer(data[0][:FAMILIAR_BLENDS].float())
    deblender = Deblender(network, trained.instrument, description, features=familiar)
    with whole_file(output, overwrite=overwrite) as partial_output:
        save(deblender, partial_output)
    shutil.rmtree(kept)
    return deblender


def _with_new_head(description: Description, trained: nn.Module) -> nn.Module:
    network = description.build()
    own, given = network.state_dict(), trained.state_dict()
    network.load_state_dict({name: own[name] if name.startswith("head.") else given[name] for name in own})
    return network


def _encoded(
    network: nn.Module, stream: EndlessStream, blends: int, *, kept: Path, progress: bool
) -> tuple[Tensor, Tensor, Tensor]:
    numbers = tqdm(range(math.ceil(blends / CHUNK)), disable=not progress, desc="features", unit="batch")
    parts = [kept_arrays(kept / f"{n:05d}.npz", partial(_encode, network.eval(), stream, n)).values() for n in numbers]
    return tuple(
        torch.cat([torch.from_numpy(value) for value in values])[:blends] for values in zip(*parts, strict=True)
    )


def _encode(network: nn.Module, stream: EndlessStream, number: int) -> dict[str, NDArray]:
    batch = stream.batch(number)
    with torch.no_grad():
        encoded: BlendFeatures = network.encode(batch.image)
    values = {"features": encoded.flux.half(), "start": encoded.start, "log_flux": batch.flux.log()}
    return {name: value.cpu().numpy() for name, value in values.items()}


def _named(mixture: Mixture) -> str:
    return SIMULATED if mixture.real_fraction == 0 else f"{mixture.real_fraction:g} real, others simulated"


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


def _description(source: Path | Mixture, training: dict[str, object]) -> Description:
    """Describe the network and what it is trained on: the population that a mixture draws from, or a stored set."""
    made = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__}
    if isinstance(source, Mixture):
        prior, conditions = source.prior, source.conditions
        fluxes = [10 ** (-0.4 * (magnitude - source.instrument.zero_point)) for magnitude in prior.magnitude_range]
        flux_range = (min(fluxes) / max(conditions.sky_rms), max(fluxes) / min(conditions.sky_rms))
        family = {"flux_range": flux_range, "max_difference": prior.max_difference, "prior": prior.describe()}
    else:
        conditions, family = None, _measured_family(source)
    return Description(
        architecture="Blend2Mask2Flux",
        head="StudentTHead",
        settings=dict(SETTINGS),
        conditions=conditions,
        training=made | training,
        **family,
    )


def _measured_family(path: Path) -> dict[str, object]:
    """Measure the range of fluxes over sky noise, and the largest magnitude difference of a pair, in a stored set."""
    count, ratios = count_blends(path), []
    for start in range(0, count, CHUNK):
        blend = read_blends(path, start, min(start + CHUNK, count))
        ratios.append(blend.flux[..., 0] / blend.sky_rms[:, None])
    ratio = torch.cat(ratios).double()
    difference = LN_FLUX_UNIT * float((ratio[:, 0] / ratio[:, 1]).log().abs().max())
    return {"flux_range": (float(ratio.min()), float(ratio.max())), "max_difference": difference, "prior": None}


def _features(network: nn.Module, image: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        encoded = network.encode(image.to(next(network.parameters()).device))
        return network.cnn.answer(encoded.flux).cpu()
