"""The laws of positions: those of separations, and clusters."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from probdeblend.simulation import Frame
from probdeblend.simulation.positions import anywhere, clustered, paired, separation_limits

FRAME = Frame((80, 120), 0.06, 3.0)
COUNT = 4000


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


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
    places = paired(radius, FRAME, centered=True)
    step = (places[:, 1] - places[:, 0]).numpy()
    distance = np.hypot(*step.T)
    assert kstest((distance**2 - 64) / (400 - 64), "uniform").pvalue > false_alarm
    assert kstest(np.arctan2(step[:, 1], step[:, 0]) / (2 * np.pi) + 0.5, "uniform").pvalue > false_alarm
    middle = places[:, 0] - torch.tensor([59.5, 39.5])
    for axis in middle.T.numpy():
        assert kstest((axis + 1) / 2, "uniform").pvalue > false_alarm


def test_pairs_anywhere_stay_inside_and_a_share_is_closer_or_farther(false_alarm):
    radius = torch.tensor([[5.0, 8.0]]).expand(COUNT, 2)
    places = paired(radius, FRAME, centered=False, anywhere_fraction=0.2, close_fraction=0.1)
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
    "anywhere": anywhere,
    "centered": lambda radius, frame: paired(radius, frame, centered=True),
    "paired": lambda radius, frame: paired(radius, frame, centered=False, anywhere_fraction=0.3, close_fraction=0.2),
    "clustered": lambda radius, frame: clustered(radius, frame, torch.full((len(radius),), 0.7)),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_any_number_of_sources_in_the_image(name, sources):
    places = LAWS[name](torch.full((7, sources), 4.0), FRAME)
    assert places.shape == (7, sources, 2)
    assert ((places > 2) & (places < torch.tensor([117.0, 77.0]))).all()


def test_sources_anywhere_are_uniform(false_alarm):
    places = anywhere(torch.ones(COUNT, 1), FRAME)[:, 0]
    for axis, low, high in zip(places.T.numpy(), *(limit.tolist() for limit in FRAME.limits), strict=True):
        assert kstest((axis - low) / (high - low), "uniform").pvalue > false_alarm


def test_clusters_are_closer_than_chance_and_never_on_top_of_each_other():
    shape = (400, 5)
    radius = torch.full(shape, 2.0)
    nearest = []
    for near in (0.0, 0.9):
        places = clustered(radius, FRAME, torch.full(shape[:1], near))
        assert ((places >= 3) & (places <= torch.tensor([116.0, 76.0]))).all()
        apart = torch.cdist(places, places) + 1e3 * torch.eye(5)
        assert float(apart.min()) > 0.25 * FRAME.blur
        nearest.append(float(apart.amin(-1).median()))
    assert nearest[1] < 0.5 * nearest[0]
