"""Sources of training batches: endless streams of simulated or real blends, their mixtures, and stored sets.

Batch number i of an endless stream depends on the seed and on i alone, not on the number of workers, on resuming, or
on earlier batches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ..photometry.noise import add_noise
from ..scene import MASK_THRESHOLD, Blend, Instrument, seed_of
from ..simulation.conditions import Batch, Conditions, training_batch, turn
from ..simulation.prior import Prior
from ..simulation.profiles import render
from ..simulation.sets import count_blends, read_blends
from ..surveys.blends import PairRules, PairScene, blend_batch
from ..surveys.library import Library

__all__ = ["EndlessStream", "LibraryStream", "Mixture", "SimulatedStream", "StoredStream", "stored_blends"]

SIMULATED = "simulated stream"  # what the file of weights states as their source
BLOCK = 32  # batches of a stored set in memory at a time
CHUNK = 128  # blends of a stored set that are read together
BATCH_SIZE = 64


@dataclass(eq=False, kw_only=True)
class EndlessStream(IterableDataset[Batch]):
    """Batches made by their number, without end; `first` is the number of the first one."""

    batch_size: int = BATCH_SIZE
    seed: int = 0
    first: int = 0

    @abstractmethod
    def blend(self, number: int) -> Blend:
        """Return one batch with its truth."""

    def batch(self, number: int) -> Batch:
        """Return one batch in units of the sky noise."""
        return training_batch(self.blend(number))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        yield from map(self.batch, count(number, step))


@dataclass(eq=False)
class SimulatedStream(EndlessStream):
    """Blends drawn from a prior, rendered in torch on the device of the instrument's PSF."""

    prior: Prior
    instrument: Instrument
    conditions: Conditions

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth."""
        key = (self.seed, number)
        pairs = self.prior.sample(self.batch_size, seed=seed_of(*key, 0))
        components = self.prior.components(pairs, self.instrument, seed=seed_of(*key, 1))
        psf = self.instrument.psf
        with torch.random.fork_rng(devices=[psf.device] if psf.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed_of(*key, 2))
            rms, exposure = (value.to(psf.device) for value in self.conditions.sample(self.batch_size))
            varied = self.conditions.sample_psf(psf)
            isolated = render(components.to(psf.device), varied, pixel_scale=self.instrument.pixel_scale)
            light = isolated.sum(1, keepdim=True)
            image = add_noise(light, self.instrument, sky_rms=rms, exposure=exposure)
        return Blend(
            image=image,
            sky_rms=rms,
            flux=components.total_flux.masked_fill(~pairs["present"], torch.nan)[..., None].to(psf.device),
            mask=isolated > MASK_THRESHOLD * rms[:, None, None, None],
            isolated=isolated[:, :, None],
            exposure=exposure,
            count=pairs["present"].sum(-1).to(psf.device),
            **{name: pairs[name].to(psf.device) for name in ("x", "y", "galaxy_type", "half_light_radius")},
        )


@dataclass(eq=False)
class LibraryStream(EndlessStream):
    """Blends of the real isolated galaxies that a library keeps, at the noise and zero point of an instrument."""

    library: Library
    instrument: Instrument
    rules: PairRules

    def __post_init__(self) -> None:
        self.scene = PairScene.of(self.library, self.instrument, self.rules)

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth and the identities of its galaxies."""
        return blend_batch(self.scene, (self.seed, number), self.batch_size)


@dataclass(eq=False)
class MixedStream(EndlessStream):
    """Batches that each come from one of several streams, drawn with the given fractions, which sum to 1."""

    streams: Sequence[EndlessStream]
    fractions: Sequence[float]

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth, from the stream that the number draws."""
        chosen = np.random.default_rng((self.seed, number)).choice(len(self.streams), p=self.fractions)
        return self.streams[chosen].blend(number)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A population of blends: simulated galaxies, real ones, or both. The default is that of the weights that ship.

    Parameters
    ----------
    prior, instrument, conditions
        Of the simulated blends: the galaxies, the instrument, and the range of depths and PSFs. The instrument gives
        blends of real galaxies their zero point and noise correlation.
    library
        Isolated real galaxies to blend.
    real_fraction
        Fraction of the batches made of real galaxies.
    rules
        How real galaxies are blended.
    close_fraction
        Fraction of the simulated batches whose companions lie within 4.5 pixels of their central galaxies (the rule
        "close" of `~probdeblend.simulation.separation.SEPARATIONS`). The population itself has too few to learn from.

    Raises
    ------
    ValueError
        If a fraction is not between 0 and 1, or `library` is missing.
    """

    prior: Prior = field(default_factory=Prior.default)
    instrument: Instrument = field(default_factory=Instrument.candels_f160w)
    conditions: Conditions = field(default_factory=Conditions)
    library: Library | None = None
    real_fraction: float = 0.0
    rules: PairRules = field(default_factory=PairRules)
    close_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("real_fraction", "close_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.real_fraction > 0 and self.library is None:
            raise ValueError(f"library must be given for a real_fraction of {self.real_fraction}, got None")

    def to(self, device: str) -> Mixture:
        """Return the mixture with the instrument, and so the rendering, on a device.

        Parameters
        ----------
        device
            A torch device.

        Returns
        -------
        Mixture
            The same mixture.
        """
        return replace(self, instrument=self.instrument.to(device))

    def stream(self, *, batch_size: int = BATCH_SIZE, seed: int = 0, first: int = 0) -> EndlessStream:
        """Return the endless stream of batches, from number `first` on.

        Parameters
        ----------
        batch_size
            Blends per batch.
        seed
            Random seed.
        first
            Number of the first batch.

        Returns
        -------
        EndlessStream
            Batches of blends with their truth.
        """
        work = {"batch_size": batch_size, "seed": seed, "first": first}
        simulated = partial(SimulatedStream, instrument=self.instrument, conditions=self.conditions, **work)

        def close() -> SimulatedStream:
            return simulated(replace(self.prior, separation="close", anywhere_fraction=0.0))

        kinds = (
            ((1 - self.real_fraction) * (1 - self.close_fraction), partial(simulated, self.prior)),
            (self.real_fraction, partial(LibraryStream, self.library, self.instrument, self.rules, **work)),
            ((1 - self.real_fraction) * self.close_fraction, close),
        )
        fractions, streams = zip(*((fraction, make()) for fraction, make in kinds if fraction > 0), strict=True)
        return MixedStream(streams, fractions, **work) if len(streams) > 1 else streams[0]

    def blends(self, count: int, *, seed: int = 0, progress: bool = True) -> Iterator[Blend]:
        """Make blends that no network was trained on.

        Parameters
        ----------
        count
            Number of blends.
        seed
            Same seed and count, same blends.
        progress
            Show a progress bar.

        Yields
        ------
        Blend
            Batches of at most 64 blends with their truth.
        """
        # Streams of the training have small seeds; this one is drawn from 63 bits.
        stream = self.stream(batch_size=BATCH_SIZE, seed=seed_of(seed, count))
        numbers = range(-(-count // BATCH_SIZE))
        for number in tqdm(numbers, disable=not progress, desc="blends", unit="batch", leave=False):
            yield stream.blend(number).select(slice(count - number * BATCH_SIZE))


@dataclass(eq=False)
class StoredStream(IterableDataset[Batch]):
    """Endless batches of the blends `start` to `stop` of a stored set, shuffled by blocks anew every epoch.

    Batches are turned by quarters and flipped. Memory holds one block of 32 batches at a time.
    """

    path: Path
    batch_size: int = BATCH_SIZE
    seed: int = 0
    first: int = 0
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        self.stop = count_blends(self.path) if self.stop is None else self.stop
        if (held := self.stop - self.start) < self.batch_size:
            raise ValueError(f"{self.path}: must hold at least one batch of {self.batch_size} blends, got {held}")

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng((self.seed, epoch))
        size = BLOCK * self.batch_size
        for low in rng.permutation(np.arange(self.start, self.stop, size)):
            blend = read_blends(self.path, int(low), int(min(low + size, self.stop)))
            order = torch.from_numpy(rng.permutation(len(blend)))
            for rows in order.split(self.batch_size):
                if len(rows) == self.batch_size:
                    batch = training_batch(blend.select(rows))
                    yield turn(batch, quarters=int(rng.integers(4)), flip=bool(rng.integers(2)))

    def __iter__(self) -> Iterator[Batch]:
        return islice(chain.from_iterable(map(self._epoch, count())), self.first, None)


def stored_blends(path: str | PathLike[str], *, progress: bool = True) -> Iterator[Blend]:
    """Read a stored set, some blends at a time."""
    total = count_blends(path)
    starts = tqdm(range(0, total, CHUNK), disable=not progress, desc=Path(path).name, unit="chunk", leave=False)
    return (read_blends(path, start, min(start + CHUNK, total)) for start in starts)
