"""Blends that several tests of refinement share: small, from the model, with a guess that is off."""

import pytest
import torch

from probdeblend.refinement import BlendModel, Observed, refine
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior


@pytest.fixture(scope="session")
def model():
    return BlendModel(Prior.default(), Instrument.candels_f160w(), size=48)


@pytest.fixture(scope="session")
def pairs(model):
    """Five blends whose companion is well inside the small images: images, unknowns, and a guess."""
    observed, unknown = model.simulate(30, seed=2)
    rows = (unknown[:, [8, 9]].abs().amax(-1) < 14).nonzero()[:5, 0]
    unknown = unknown[rows]
    generator = torch.Generator().manual_seed(2)
    scale = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.5, 0.1, 0.1] * 2 + [0.0, 0.0])
    return observed.select(rows), unknown, unknown + scale * torch.randn(unknown.shape, generator=generator)


@pytest.fixture(scope="session")
def nested(model):
    """A compact galaxy on an extended one, 1.5 pixels off its center; as a guess, one galaxy and a faint companion."""
    extended = torch.tensor([9.2, 0.0, 0.0, -0.9, -1.9, 0.4, 0.4])
    compact = torch.tensor([8.5, 0.8, 1.3, -1.4, -0.2, -0.2, -0.2])
    unknown = torch.cat([extended, compact, torch.zeros(2)]).expand(4, -1)
    light = model.light(model.split(unknown)[0], torch.zeros(4)).sum(1)
    taken = Observed(light, torch.full((4,), 8e-3), torch.full((4,), 3e3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        image = model.noisy(light, torch.zeros(4), taken).sample()
    bright = torch.tensor([9.4, 0.8, 0.7, -1.15, -1.2, 0.15, 0.2])
    faint = torch.tensor([7.8, -2.0, -0.6, -1.3, -1.5, 0.3, 0.15])
    return taken._replace(image=image), unknown, torch.cat([bright, faint, torch.zeros(2)]).expand(4, -1)


@pytest.fixture(scope="session")
def refined(model, pairs):
    observed, _, start = pairs
    return refine(model, observed, start, draws=200, attempts=1, seed=1)
