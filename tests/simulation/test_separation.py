import numpy as np
import pytest
import torch
from scipy.stats import kstest

from probdeblend.scene import STAMP_SIZE
from probdeblend.simulation.separation import SEPARATIONS

COUNT = 5000


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def radii(low=2.0, high=30.0):
    return low * (high / low) ** torch.rand(COUNT, 2)


def limits(radius):
    """Inner and outer circle of the published law, by NumPy."""
    small, large = np.sort(radius.numpy(), axis=-1).T
    outer = np.minimum(4 * small, STAMP_SIZE / 2)
    return np.where(large > outer, 0.8 * outer, large), outer


def test_rules_have_their_names():
    assert list(SEPARATIONS) == ["published", "anywhere", "close"]


@pytest.mark.parametrize("rule", SEPARATIONS.values(), ids=SEPARATIONS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_shapes(rule, count):
    dx, dy = rule(torch.full((count, 2), 5.0))
    assert dx.shape == dy.shape == (count,)


@pytest.mark.parametrize("rule", SEPARATIONS.values(), ids=SEPARATIONS)
def test_no_direction_is_preferred(rule, false_alarm):
    dx, dy = rule(radii())
    angle = torch.atan2(dy, dx) / (torch.pi / 2)
    # Over a quadrant the corners of squares count: only the quadrants are equally likely.
    counts = torch.histc(angle.floor(), bins=4, min=-2, max=2)
    assert ((counts - COUNT / 4).abs() < 4.5 * (COUNT * 3 / 16) ** 0.5).all()
    assert kstest(torch.cat([dx, -dx]), torch.cat([dy, -dy])).pvalue > false_alarm


def test_published_law_is_uniform_in_area(false_alarm):
    radius = radii()
    dx, dy = SEPARATIONS["published"](radius)
    inner, outer = limits(radius)
    area = (dx.square() + dy.square()).numpy()
    assert kstest((area - inner**2) / (outer**2 - inner**2), "uniform").pvalue > false_alarm


def test_uniform_separation_is_not_uniform_area(false_alarm):
    """The test above can fail: distances drawn uniformly are refused."""
    inner, outer = limits(radii())
    area = (inner + (outer - inner) * torch.rand(COUNT).numpy()) ** 2
    assert kstest((area - inner**2) / (outer**2 - inner**2), "uniform").pvalue < false_alarm


def test_anywhere_is_uniform_but_for_the_edge(false_alarm):
    half = STAMP_SIZE / 2 - 8
    for shift in SEPARATIONS["anywhere"](radii()):
        assert kstest((shift.numpy() + half) / (2 * half), "uniform").pvalue > false_alarm


def test_close_is_uniform_in_distance_whatever_the_radii(false_alarm):
    for radius in (radii(0.5, 2.0), radii()):
        dx, dy = SEPARATIONS["close"](radius)
        assert kstest(torch.hypot(dx, dy).numpy() / 4.5, "uniform").pvalue > false_alarm
