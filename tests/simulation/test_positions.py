"""The laws of positions: what is drawn has the density that is told, and the published law of separations."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from probdeblend.simulation import Frame
from probdeblend.simulation.positions import Clustered, Paired, Positions, separation_limits

FRAME = Frame((80, 120), 0.06, 3.0)
COUNT = 4000


def drawn(law, *shape):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return law.sample(torch.Size(shape))


def everyone(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("radii", "inner", "outer"),
    [((4.0, 9.0), 9.0, 16.0), ((9.0, 4.0), 9.0, 16.0), ((2.0, 9.0), 6.4, 8.0), ((30.0, 20.0), 30.0, 64.0)],
)
def test_published_circles(radii, inner, outer):
    found = separation_limits(torch.tensor(radii))
    assert [float(value) for value in found] == pytest.approx([inner, outer])


def test_published_pairs_have_the_law_of_separations(false_alarm):
    """Uniform in the area between the circles, in any direction, around a galaxy within a pixel of the middle."""
    radius = torch.tensor([[5.0, 8.0]]).expand(COUNT, 2)
    places = drawn(Paired(radius, everyone(COUNT, 2), FRAME, centered=True))
    step = (places[:, 1] - places[:, 0]).numpy()
    distance = np.hypot(*step.T)
    assert kstest((distance**2 - 64) / (400 - 64), "uniform").pvalue > false_alarm
    assert kstest(np.arctan2(step[:, 1], step[:, 0]) / (2 * np.pi) + 0.5, "uniform").pvalue > false_alarm
    middle = places[:, 0] - torch.tensor([59.5, 39.5])
    for axis in middle.T.numpy():
        assert kstest((axis + 1) / 2, "uniform").pvalue > false_alarm


def test_pairs_anywhere_stay_inside_and_a_share_is_closer_or_farther(false_alarm):
    radius = torch.tensor([[5.0, 8.0]]).expand(COUNT, 2)
    fractions = {"anywhere": 0.2, "close": 0.1}
    places = drawn(Paired(radius, everyone(COUNT, 2), FRAME, centered=False, **fractions))
    low, high = FRAME.limits
    assert ((places > low - 1e-3) & (places < high + 1e-3)).all()
    distance = np.hypot(*(places[:, 1] - places[:, 0]).T.numpy())

    def share(value):
        parts = (
            0.7 * np.clip((value**2 - 64) / (400 - 64), 0, 1),
            0.2 * np.clip((value**2 - 4) / (56**2 - 4), 0, 1),
            0.1 * np.clip((value - 1) / 4, 0, 1),
        )
        return sum(parts)

    assert kstest(distance, share).pvalue > false_alarm


LAWS = {
    "anywhere": lambda shape, frame: Positions(torch.full(shape, 4.0), everyone(*shape), frame),
    "centered": lambda shape, frame: Paired(torch.full(shape, 4.0), everyone(*shape), frame, centered=True),
    "paired": lambda shape, frame: Paired(
        torch.full(shape, 4.0), everyone(*shape), frame, centered=False, anywhere=0.3, close=0.2
    ),
    "clustered": lambda shape, frame: Clustered(
        torch.full(shape, 2.0), everyone(*shape), frame, near=torch.full(shape[:-1], 0.7)
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_density_integrates_to_one(name):
    """The companion's density over all of the image, given the first source: a ratio of joint densities."""
    law = LAWS[name]((1, 2), FRAME)
    places = drawn(law)
    rows, columns = torch.meshgrid(torch.arange(-20, 100.0, 0.5), torch.arange(-20, 140.0, 0.5), indexing="ij")
    if name in ("paired",):  # the first one lies where both fit: integrate over it at a fixed step
        step = places[0, 1] - places[0, 0]
        first = torch.stack([columns.flatten(), rows.flatten()], -1)
        both = torch.stack([first, first + step], 1)
        density = LAWS[name]((len(both), 2), FRAME).log_prob(both).exp().sum() * 0.25
        apart = float(torch.hypot(*step))
        inner, outer = 4.0, 16.0
        expected = 0.5 * (inner < apart < outer) / (math.pi * (outer**2 - inner**2))
        expected += 0.3 / (math.pi * (56**2 - 4)) + 0.2 * (1 < apart < 5) / (2 * math.pi * apart * 4)
        assert float(density) == pytest.approx(expected, rel=0.05)
        return
    second = torch.stack([columns.flatten(), rows.flatten()], -1)
    both = torch.stack([places[:, 0].expand_as(second), second], 1)
    many = LAWS[name]((len(both), 2), FRAME)
    alone = LAWS[name]((1, 1), FRAME).log_prob(places[:, :1])
    total = (many.log_prob(both) - alone).exp().sum() * 0.25
    assert float(total) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_any_number_of_sources(name, sources):
    law = LAWS[name]((7, 1, sources), FRAME)
    places = drawn(law)
    assert places.shape == (7, 1, sources, 2)
    assert law.log_prob(places).shape == (7, 1)
    assert law.log_prob(places).isfinite().all()
    assert drawn(law, 3).shape == (3, 7, 1, sources, 2)


def test_what_does_not_exist_does_not_count():
    exists = torch.tensor([[True, False, False]])
    for law in (
        Positions(torch.ones(1, 3), exists, FRAME),
        Clustered(torch.ones(1, 3), exists, FRAME, near=torch.ones(1)),
    ):
        places = drawn(law)
        moved = places.clone()
        moved[:, 1:] += 500
        torch.testing.assert_close(law.log_prob(places), law.log_prob(moved))


def test_clusters_are_closer_than_chance_and_never_on_top_of_each_other():
    shape = (400, 5)
    radius, exists = torch.full(shape, 2.0), everyone(*shape)
    nearest = []
    for near in (0.0, 0.9):
        places = drawn(Clustered(radius, exists, FRAME, near=torch.full(shape[:1], near)))
        assert ((places >= 3) & (places <= torch.tensor([116.0, 76.0]))).all()
        apart = torch.cdist(places, places) + 1e3 * torch.eye(5)
        assert float(apart.min()) > 0.25 * FRAME.blur
        nearest.append(float(apart.amin(-1).median()))
    assert nearest[1] < 0.5 * nearest[0]
