"""Clusters of pixels: sources that are apart, that touch, and that are one, and the numbers that sum them up."""

import numpy as np
import pytest

from benchmarks.peers import clustering
from benchmarks.peers.clustering import ClusterDeblender, Segments, climb, clustered, measure, summary
from probdeblend.simulation import Population, simulate

Y, X = np.mgrid[:40, :48]


def blob(x, y, *, peak=60.0, width=2.0):
    return peak * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * width**2))


def test_touching_sources_are_split_at_the_saddle(rng):
    labels = ClusterDeblender()(blob(12, 20) + blob(20, 20) + blob(38, 10) + rng.normal(size=X.shape))
    assert labels.max() == 3
    left, right, apart = labels[20, 12], labels[20, 20], labels[10, 38]
    assert len({left, right, apart}) == 3
    assert (labels[20, 10:16] == left).all()
    assert (labels[20, 17:22] == right).all()
    assert (labels == apart).sum() == pytest.approx(np.pi * 4 * 2 * np.log(60 / 3), rel=0.15)  # where it exceeds 3 rms


def test_faint_attractors_belong_to_their_neighbor():
    """A knot with 4 % of the light is a source or a part of one by the fraction that is asked for."""
    image = blob(20, 20, width=4) + blob(28, 20, peak=30, width=1.2)
    assert ClusterDeblender(fraction=0.02)(image).max() == 2
    whole = ClusterDeblender(fraction=0.1)(image)
    assert set(np.unique(whole)) == {0, 1}
    assert (whole > 0).sum() == (image > 3).sum()


def test_noise_and_bad_pixels_are_no_sources(rng):
    assert not ClusterDeblender()(rng.normal(size=X.shape)).any()
    image = np.where(X == 0, np.nan, blob(20, 20))
    assert ClusterDeblender()(image).max() == 1
    assert not ClusterDeblender()(np.zeros((3, 3))).any()


def test_climbing_ends_at_local_maxima():
    density = np.array([[1.0, 2.0, 1.5, 4.0], [0.5, 1.0, -np.inf, 3.0]])
    assert climb(density).tolist() == [[1, 1, 3, 3], [1, 1, 6, 3]]


@pytest.fixture(scope="module")
def pair():
    population = Population.default().replace(snr=(100.0, 200.0), star_fraction=1.0, layout="anywhere")
    return simulate(1, population=population, size=64, number=2, seed=1)


def test_a_method_that_is_right(pair):
    """Told the truth, then one source alone with half of its mask, and a third that is nowhere."""
    true = Segments(*(values.numpy() for values in (pair.scene, pair.x, pair.y, pair.mask)))
    row = summary(measure(lambda scene: true, pair), 0.0, np.inf)
    assert (row["found"], row["right"], row["split"]) == (1, 1, 0)
    assert (row["completeness"], row["purity"], row["iou"], row["masks"]) == (1, 1, 1, 1)
    half = true.mask.copy()
    half[0][: int(true.y[0]) + 1] = False
    wrong = Segments(true.scene, true.x + np.array([0, 40]), true.y, half)
    row = summary(measure(lambda scene: wrong, pair), 0.0, np.inf)
    assert (row["completeness"], row["purity"], row["masks"]) == (0.5, 0.5, 0)
    assert 0.2 < row["iou"] < 0.5
    assert summary(measure(lambda scene: true, pair), 0.0, 0.1)["scenes"] == 0


def test_bright_stars_are_found(pair):
    row = summary(measure(clustered, pair), 0.0, np.inf)
    assert (row["found"], row["completeness"]) == (1, 1)
    assert row["iou"] > 0.7


@pytest.mark.slow
def test_the_command(run, monkeypatch):
    monkeypatch.setattr(clustering, "SHOWN", (("irregular", 1),))
    table = run(clustering, "--count", "1")
    assert table["method"][:3].tolist() == ["clustering", "SEP", "network"]
    assert set(table["feature"]) == {"sources", "separation", "irregular", "disk"}
    assert (table["seconds"] > 0).all()
