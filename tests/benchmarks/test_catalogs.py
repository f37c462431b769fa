"""Catalogs drawn from posteriors, and what is counted of them."""

import numpy as np
import pytest
import torch

from benchmarks.peers import catalogs
from benchmarks.peers.catalogs import crowd, deblended, drawn_catalogs, judged, measure, summary
from probdeblend.deblending import SepDeblender
from probdeblend.posterior import Posterior

SAMPLES = 2000


@pytest.fixture(scope="module")
def stars():
    """Thirteen stars."""
    return crowd(0.0, 1, 2)


def test_catalogs_are_drawn_from_the_posterior(rng):
    """Existence, positions, fluxes and their correlation are those of the posterior."""
    errors = rng.multivariate_normal([0, 0], [[1.0, -0.8], [-0.8, 1.0]], 1000)
    flux = np.array([50.0, 20.0]) + errors
    columns = {"existence": [0.9, 0.4], "x_err": [0.1, 0.2], "y_err": [0.2, 0.3]}
    where = {"scene": [0, 0], "group": [0, 0], "x": [5.0, 8.0], "y": [6.0, 7.0]}
    posterior = Posterior.from_draws(flux[None, ..., None], **where, columns=columns)
    drawn = drawn_catalogs(posterior, SAMPLES)
    first = drawn["flux"] > 35
    for own, n in ((first, 0), (~first, 1)):
        assert abs(own.sum() / SAMPLES - columns["existence"][n]) < 5 * 0.5 / np.sqrt(SAMPLES)
        assert abs(drawn["x"][own].mean() - where["x"][n]) < 5 * 0.2 / np.sqrt(own.sum())
        assert drawn["y"][own].std() == pytest.approx(columns["y_err"][n], rel=0.15)
    both = np.intersect1d(drawn["sample"][first], drawn["sample"][~first])
    pairs = np.array([drawn["flux"][drawn["sample"] == number] for number in both])
    assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(-0.8, abs=0.1)


def test_what_is_real():
    """One to one, near, and of a similar flux; the first one chooses first."""
    true = [np.array([5.0, 6.0, 20.0]), np.array([5.0, 5.0, 5.0]), np.array([10.0, 10.0, 100.0])]
    found = [np.array([5.2, 5.1, 20.1, 40.0]), np.full(4, 5.0), np.array([11.0, 9.0, 40.0, 10.0])]
    assert judged(found, true, radius=1.5).tolist() == [0, 1, -1, -1]


def test_a_method_that_is_right(stars):
    """Told the truth in nine of ten catalogs, one finds all sources with existence 0.9, and no others."""

    def truth(stars):
        scene = stars.scene
        there = [values.numpy().ravel().repeat(180) for values in (scene.x, scene.y, scene.flux)]
        return {"sample": np.tile(np.arange(180), len(scene.x))} | dict(zip(("x", "y", "flux"), there, strict=True))

    found = measure(truth, stars)
    np.testing.assert_allclose(found["existence"], 0.9)
    row = summary(found, "all", (-np.inf, np.inf), 0.95)
    assert (row["completeness"], row["false"], row["completeness_equal"]) == (1, 0, 0)
    assert (row["number_bias"], row["number_within"], row["number_error"]) == (0, 1, 0)


def test_sep_lists_bright_stars(stars):
    """SEP's sources are always there, most are real, and the brightest of those that stand alone is among them."""
    found = measure(lambda crowd: deblended(SepDeblender(draws=50), "auto", crowd), stars)
    assert (found["found_existence"] == 1).all()
    assert found["found_real"].mean() > 0.5
    assert found["scene_low"] == found["scene_high"]
    distance = torch.cdist(*[torch.stack([stars.scene.x, stars.scene.y], -1)] * 2).fill_diagonal_(100).amin(0)
    alone = np.flatnonzero(distance.numpy() > 10)
    assert found["existence"][alone[found["magnitude"][alone].argmin()]] == 1


@pytest.mark.slow
def test_command(run, monkeypatch):
    monkeypatch.setattr(catalogs, "SAMPLES", 20)
    table = run(catalogs, "--count", "2", "--moves", "2000")
    every = table[table["feature"] == "all"]
    assert every["method"].tolist() == ["sampler", "network", "SEP"] * 2
    sampler, sep = (every[every["method"] == name] for name in ("sampler", "SEP"))
    assert (sampler["completeness"] > sep["completeness"]).all()
    assert (every["seconds"] > 0).all()
    by_magnitude = table[table["feature"] == "magnitude"]
    assert by_magnitude["true"].sum() == every["true"].sum()
