"""A stream of scenes that takes no time, for tests of training."""

from dataclasses import dataclass, field
from itertools import count

import torch
from torch.utils.data import IterableDataset

from probdeblend.simulation.bank import Templates
from probdeblend.simulation.stream import SceneBatch


@dataclass(eq=False)
class Bumps(IterableDataset):
    """A stream of two round sources and a place where there is none, instead of the bank's, which takes seconds."""

    templates: Templates = field(default_factory=Templates)
    batch_size: int = 2
    seed: int = 0
    first: int = 0

    def __iter__(self):
        yield from map(self.batch, count(self.first))

    def batch(self, number):
        generator = torch.Generator().manual_seed(1000 * self.seed % 10**9 + number)
        place = torch.arange(32.0)
        x, y = (4 + 24 * torch.rand(self.batch_size, 3, generator=generator) for _ in range(2))
        squared = (place - x[..., None]).square()[..., None, :] + (place - y[..., None]).square()[..., None]
        light = 10 * torch.exp(-squared / 8)[:, :2, None]
        psf = torch.exp(-((torch.arange(41.0) - 20).square() + (torch.arange(41.0)[:, None] - 20).square()) / 4)
        image = light.sum(1) + torch.randn(self.batch_size, 1, 32, 32, generator=generator)
        return SceneBatch(
            image=image,
            good=torch.ones_like(image),
            psf=(psf / psf.sum()).expand(self.batch_size, 1, 41, 41),
            noise=torch.zeros(self.batch_size, 1, 5),
            x=x,
            y=y,
            light=light,
            rest=torch.zeros_like(image),
            log_flux=torch.full((self.batch_size, 2, 1, 2), 5.5),
            shape=torch.full((self.batch_size, 2, 6), torch.nan),
            kind=torch.zeros(self.batch_size, 2, dtype=torch.long),
            heat=torch.zeros(self.batch_size, 3, 16, 16),
        )
