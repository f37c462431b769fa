"""Where training batches come from: an endless stream of simulated blends, or a stored set.

Batch number i of a stream depends on the seed and on i alone: workers, resuming and earlier batches do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .io import count_blends, read_blends
from .noise import add_noise
from .prior import Prior
from .profiles import render, reshape_psf
from .scene import Blend, Instrument

__all__ = ["Batch", "Conditions", "SimulatedStream", "StoredStream", "seed_of", "training_batch", "turn"]

MASK_THRESHOLD = 3.0


class Batch(NamedTuple):
    """What a loss takes; all but the mask in units of the sky noise.

    Parameters
    ----------
    image
        Pixels ``(blend, band, y, x)``.
    flux
        True total flux ``(blend, galaxy)``.
    mask
        True masks ``(blend, galaxy, y, x)``.
    light
        Image of each galaxy alone ``(blend, galaxy, y, x)``.
    """

    image: Tensor
    flux: Tensor
    mask: Tensor
    light: Tensor


@dataclass(frozen=True)
class Conditions:
    """What varies from image to image of a training set: depth and PSF.

    Parameters
    ----------
    sky_rms
        Least and largest sky noise of a pixel in image units, log-uniform between.
    exposure
        Least and largest exposure in counts per unit of flux, uniform between.
    psf_growth
        Least and largest width of the PSF over that of the instrument's, uniform between.
    psf_shear
        Largest reduced shear of the PSF, (a - b) / (a + b) of its half-axes; uniform in the plane of shears.

    Raises
    ------
    ValueError
        If a range is not positive and increasing, or the shear not between 0 and 1.
    """

    sky_rms: tuple[float, float] = (2e-3, 8e-3)
    exposure: tuple[float, float] = (1800.0, 5000.0)
    psf_growth: tuple[float, float] = (0.95, 1.05)
    psf_shear: float = 0.02

    def __post_init__(self) -> None:
        for name in ("sky_rms", "exposure", "psf_growth"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a positive, increasing range, got {(low, high)}")
        if not 0 <= self.psf_shear < 1:
            raise ValueError(f"psf_shear must be at least 0 and less than 1, got {self.psf_shear}")

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw depths from torch's default generator.

        Parameters
        ----------
        count
            Number of blends.

        Returns
        -------
        tuple of Tensor
            Sky noise and exposure ``(blend,)``.
        """
        low, high = (math.log(value) for value in self.sky_rms)
        least, most = self.exposure
        return (low + (high - low) * torch.rand(count)).exp(), least + (most - least) * torch.rand(count)

    def sample_psf(self, psf: Tensor) -> Tensor:
        """Draw a PSF from torch's default generator.

        Parameters
        ----------
        psf
            The instrument's effective PSF ``(y, x)``.

        Returns
        -------
        Tensor
            A PSF of the family, of the same shape.
        """
        low, high = self.psf_growth
        if low == high == 1 and self.psf_shear == 0:
            return psf
        growth = low + (high - low) * torch.rand(1)
        size, turn = self.psf_shear * torch.rand(1).sqrt(), 2 * math.pi * torch.rand(1)
        shear = torch.stack([size * turn.cos(), size * turn.sin()], -1)
        return reshape_psf(psf, growth.to(psf), shear.to(psf))[0]


def training_batch(blend: Blend) -> Batch:
    """Return what a loss takes.

    Parameters
    ----------
    blend
        Blends with truth, in one band.

    Returns
    -------
    Batch
        In units of the sky noise.

    Raises
    ------
    ValueError
        If the blends have no truth.
    """
    if blend.flux is None or blend.mask is None or blend.isolated is None:
        raise ValueError("blends must have flux, mask and isolated to train on, got blends without truth")
    rms = blend.sky_rms[:, None, None, None]
    return Batch(blend.image / rms, blend.flux[..., 0] / rms[:, :, 0, 0], blend.mask, blend.isolated[:, :, 0] / rms)


def turn(batch: Batch, *, quarters: int, flip: bool) -> Batch:
    """Turn and flip what has pixels; fluxes stay.

    Parameters
    ----------
    batch
        What `training_batch` returns.
    quarters
        Number of quarter turns from x to y.
    flip
        Whether to flip x first.

    Returns
    -------
    Batch
        The turned batch.
    """

    def turned(pixels: Tensor) -> Tensor:
        return torch.rot90(pixels.flip(-1) if flip else pixels, -quarters, (-2, -1))

    return Batch(turned(batch.image), batch.flux, turned(batch.mask), turned(batch.light))


def seed_of(*key: int) -> int:
    """Return a seed for torch that depends on a key of integers.

    Parameters
    ----------
    *key
        Integers that are not negative.

    Returns
    -------
    int
        A 63-bit seed.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class SimulatedStream(IterableDataset[Batch]):
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
        self.batch_size, self.seed, self.first = batch_size, seed, first

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
            flux=components.total_flux[..., None].to(psf.device),
            mask=isolated > MASK_THRESHOLD * rms[:, None, None, None],
            isolated=isolated[:, :, None],
            x=pairs["x"].to(psf.device),
            y=pairs["y"].to(psf.device),
            galaxy_type=pairs["galaxy_type"].to(psf.device),
            half_light_radius=pairs["half_light_radius"].to(psf.device),
            exposure=exposure,
        )

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = (self.first, 1) if worker is None else (self.first + worker.id, worker.num_workers)
        while True:
            yield training_batch(self.blend(number))
            number += step


class StoredStream(IterableDataset[Batch]):
    """Endless batches from a stored set, shuffled anew every epoch by blocks, turned and flipped.

    Memory holds one block of 32 batches at a time.

    Parameters
    ----------
    path
        A set that `probdeblend.io.write_blends` wrote.
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
