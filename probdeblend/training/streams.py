"""Where training batches come from: endless streams of simulated or real blends and their mixture, or a stored set.

Batch number i of an endless stream depends on the seed and on i alone: workers, resuming and earlier batches do not
matter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..photometry.noise import add_noise
from ..scene import MASK_THRESHOLD, Blend, Instrument, seed_of
from ..simulation.conditions import Batch, Conditions, training_batch, turn
from ..simulation.prior import Prior
from ..simulation.profiles import render
from ..simulation.sets import count_blends, read_blends
from ..surveys.blends import PairRules, PairScene, blend_batch
from ..surveys.library import Library

__all__ = ["EndlessStream", "LibraryStream", "MixedStream", "Mixture", "SimulatedStream", "StoredStream"]


class EndlessStream(IterableDataset[Batch]):
    """Batches that are made by their number, without end.

    Parameters
    ----------
    first
        Number of the first batch.
    """

    def __init__(self, *, first: int = 0) -> None:
        self.first = first

    @abstractmethod
    def blend(self, number: int) -> Blend:
        """Return one batch with its truth.

        Parameters
        ----------
        number
            Number of the batch.

        Returns
        -------
        Blend
            The blends.
        """

    def batch(self, number: int) -> Batch:
        """Return one batch.

        Parameters
        ----------
        number
            Number of the batch.

        Returns
        -------
        Batch
            In units of the sky noise.
        """
        return training_batch(self.blend(number))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield self.batch(number)
            number += step


class SimulatedStream(EndlessStream):
    """Endless batches of blends drawn from a prior and rendered in torch.

    Parameters
    ----------
    prior, instrument
        Population and instrument.
    conditions
        Range of depths and PSFs.
    batch_size
        Blends a batch.
    seed
        Same seed, same stream.
    first
        Number of the first batch.
    """

    def __init__(
        self,
        prior: Prior,
        instrument: Instrument,
        *,
        conditions: Conditions | None = None,
        batch_size: int = 64,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.prior, self.instrument, self.conditions = prior, instrument, conditions or Conditions()
        super().__init__(first=first)
        self.batch_size, self.seed = batch_size, seed

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth.

        Parameters
        ----------
        number
            Number of the batch.

        Returns
        -------
        Blend
            The blends, on the device of the instrument's PSF.
        """
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
            x=pairs["x"].to(psf.device),
            y=pairs["y"].to(psf.device),
            galaxy_type=pairs["galaxy_type"].to(psf.device),
            half_light_radius=pairs["half_light_radius"].to(psf.device),
            exposure=exposure,
            count=pairs["present"].sum(-1).to(psf.device),
        )


class LibraryStream(EndlessStream):
    """Endless batches of blends of real galaxies.

    Parameters
    ----------
    library
        Lone galaxies; those to keep are used.
    instrument
        Pixel scale, zero point and noise correlation of the blends.
    rules
        How to blend; pairs alone.
    batch_size
        Blends a batch.
    seed
        Same seed, same stream.
    first
        Number of the first batch.
    """

    def __init__(
        self,
        library: Library,
        instrument: Instrument,
        *,
        rules: PairRules | None = None,
        batch_size: int = 64,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        super().__init__(first=first)
        self.scene = PairScene.of(library, instrument, rules or PairRules())
        self.batch_size, self.seed = batch_size, seed

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth.

        Parameters
        ----------
        number
            Number of the batch.

        Returns
        -------
        Blend
            The blends, with the identities of their galaxies.
        """
        return blend_batch(self.scene, self.batch_size, key=(self.seed, number))


class MixedStream(EndlessStream):
    """Endless batches, each from one of several streams.

    Parameters
    ----------
    streams
        The streams.
    fractions
        Share of the batches that comes from each.
    seed
        Same seed, same choices.
    first
        Number of the first batch.

    Raises
    ------
    ValueError
        If the fractions are not one a stream, or do not sum to 1.
    """

    def __init__(
        self, streams: Sequence[EndlessStream], fractions: Sequence[float], *, seed: int = 0, first: int = 0
    ) -> None:
        super().__init__(first=first)
        if len(fractions) != len(streams) or min(fractions, default=-1) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be one for each of {len(streams)} streams and sum to 1, got {fractions}")
        self.streams, self.fractions, self.seed = tuple(streams), tuple(fractions), seed

    def blend(self, number: int) -> Blend:
        """Return one batch with its truth.

        Parameters
        ----------
        number
            Number of the batch.

        Returns
        -------
        Blend
            The blends of the stream that the number draws.
        """
        chosen = np.random.default_rng((self.seed, number)).choice(len(self.streams), p=self.fractions)
        return self.streams[chosen].blend(number)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Where training blends come from: simulated galaxies, real ones, or both.

    Parameters
    ----------
    prior, instrument, conditions
        Of the simulated blends; the instrument gives real ones their zero point and noise correlation.
    library
        Real galaxies to blend.
    real_fraction
        Share of the batches that is made of real galaxies.
    rules
        How real galaxies are blended.
    close_fraction
        Share of the simulated batches whose companions lie within 4.5 pixels of their central galaxies, by the
        rule "close" of `~probdeblend.simulation.separation.SEPARATIONS`. The population has few such pairs, too few to learn from.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1, or there are no real galaxies to take.
    """

    prior: Prior
    instrument: Instrument
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

    def stream(self, *, batch_size: int, seed: int, first: int = 0) -> EndlessStream:
        """Return the endless stream of batches.

        Parameters
        ----------
        batch_size
            Blends a batch.
        seed
            Same seed, same stream.
        first
            Number of the first batch.

        Returns
        -------
        EndlessStream
            The stream.
        """
        work = {"batch_size": batch_size, "seed": seed, "first": first}
        simulated = partial(SimulatedStream, instrument=self.instrument, conditions=self.conditions, **work)
        streams: dict[EndlessStream, float] = {}
        if self.real_fraction < 1 and self.close_fraction < 1:
            streams[simulated(self.prior)] = (1 - self.real_fraction) * (1 - self.close_fraction)
        if self.real_fraction > 0:
            streams[LibraryStream(self.library, self.instrument, rules=self.rules, **work)] = self.real_fraction
        if self.real_fraction < 1 and self.close_fraction > 0:
            close = replace(self.prior, separation="close", anywhere_fraction=0.0)
            streams[simulated(close)] = (1 - self.real_fraction) * self.close_fraction
        if len(streams) == 1:
            return next(iter(streams))
        return MixedStream(tuple(streams), tuple(streams.values()), seed=seed, first=first)


class StoredStream(IterableDataset[Batch]):
    """Endless batches from a stored set, shuffled anew every epoch by blocks, turned and flipped.

    Memory holds one block of 32 batches at a time.

    Parameters
    ----------
    path
        A set that `probdeblend.simulation.sets.write_blends` wrote.
    batch_size
        Blends a batch.
    seed
        Same seed, same order.
    first
        Number of the first batch.
    start, stop
        Which blends of the set to use.

    Raises
    ------
    ValueError
        If fewer blends are left than a batch holds.
    """

    block = 32

    def __init__(
        self,
        path: Path | str,
        *,
        batch_size: int = 64,
        seed: int = 0,
        first: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        stop = count_blends(path) if stop is None else stop
        if stop - start < batch_size:
            raise ValueError(f"the set must hold at least one batch of {batch_size} blends, got {stop - start}: {path}")
        self.path, self.batch_size, self.seed, self.first = path, batch_size, seed, first
        self.start, self.stop = start, stop

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng((self.seed, epoch))
        size = self.block * self.batch_size
        for low in rng.permutation(np.arange(self.start, self.stop, size)):
            blend = read_blends(self.path, int(low), int(min(low + size, self.stop)))
            order = torch.from_numpy(rng.permutation(len(blend)))
            for rows in order.split(self.batch_size):
                if len(rows) == self.batch_size:
                    batch = training_batch(blend.select(rows))
                    yield turn(batch, quarters=int(rng.integers(4)), flip=bool(rng.integers(2)))

    def __iter__(self) -> Iterator[Batch]:
        skip, epoch = self.first, 0
        while True:
            for batch in self._epoch(epoch):
                if skip:
                    skip -= 1
                else:
                    yield batch
            epoch += 1
