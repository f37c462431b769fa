"""Train a readout on a frozen encoder: encode every blend once, then learn from these features for many epochs.

The flux readout of weights, the guide and the count network are all trained this way, in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm.auto import tqdm

from .._files import kept_arrays
from ..deblending.deblender import Deblender
from ..scene import seed_of
from ..simulation.prior import Prior
from .fit import History, Schedule, fit
from .streams import SIMULATED, Mixture

__all__ = ["CHUNK", "FeatureLikelihood", "encode_blends", "fit_features", "held_out", "training_population"]

BATCH_SIZE = 256
CHUNK = 64  # blends that are encoded, and kept, together
VALIDATION_ROWS = 1024


class FeatureLikelihood(nn.Module):
    """Negative log-likelihood per blend, in nats, of true values given the features (forward KL).

    `distribution` maps features to a distribution; `readout` is the module whose parameters it uses.
    """

    def __init__(self, readout: nn.Module, distribution: Callable[..., Distribution]) -> None:
        super().__init__()
        self.readout = readout
        self.distribution = distribution

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the loss of features, and as the last argument the true values."""
        *features, truth = batch
        return -self.distribution(*features).log_prob(truth).mean()


def encode_blends(
    encode: Callable[[int], Sequence[Tensor]], blends: int, *, kept: Path | None = None, progress: bool = True
) -> tuple[Tensor, ...]:
    """Encode the first blends of a stream, batch by batch; finished batches are kept in a folder."""
    parts = []
    for number in tqdm(range(math.ceil(blends / CHUNK)), disable=not progress, desc="features", unit="batch"):
        file = None if kept is None else kept / f"{number:05d}.npz"
        parts.append(kept_arrays(file, partial(_arrays, encode, number)).values())
    return tuple(
        torch.cat([torch.from_numpy(value) for value in values])[:blends] for values in zip(*parts, strict=True)
    )


def _arrays(encode: Callable[[int], Sequence[Tensor]], number: int) -> dict[str, NDArray]:
    with torch.no_grad():
        return {str(place): value.cpu().numpy() for place, value in enumerate(encode(number))}


def held_out(blends: int) -> int:
    """Return how many of the blends to validate on: the first tenth."""
    count = blends // 10
    if count < 1 or blends - count < BATCH_SIZE:
        raise ValueError(f"blends must be enough for a batch of {BATCH_SIZE} and a tenth to validate on, got {blends}")
    return count


def fit_features(
    loss: nn.Module, data: Sequence[Tensor], *, schedule: Schedule, seed: int = 0, progress: bool = True
) -> History:
    """Train on rows in memory, the arguments of the loss, drawn anew for every batch; the first tenth validates."""
    first = held_out(len(data[0]))
    training, validation = ([part[rows] for part in data] for rows in (slice(first, None), slice(first)))

    def batches(start: int) -> Iterator[tuple[Tensor, ...]]:
        """Draw batches by their number."""
        for number in range(start, schedule.steps):
            generator = torch.Generator().manual_seed(seed_of(seed, 0, number))
            rows = torch.randint(len(training[0]), (BATCH_SIZE,), generator=generator)
            yield tuple(part[rows] for part in training)

    parts = list(zip(*(part.split(VALIDATION_ROWS) for part in validation), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 1))
        return fit(loss, batches, parts, schedule=schedule, mixed=False, progress=progress)


def training_population(deblender: Deblender, *, close_fraction: float = 0.0) -> Mixture:
    """Return the population of simulated blends that weights were trained on, with a fraction of close pairs."""
    description = deblender.description
    if (source := description.training.get("source")) != SIMULATED:
        raise ValueError(f"deblender must be trained on simulated blends, got one trained on {source}")
    population = Prior.parse(description.prior), deblender.instrument, description.conditions
    return Mixture(*population, close_fraction=close_fraction)
