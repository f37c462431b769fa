from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import ks_2samp

from probdeblend.scene import GALAXY_TYPES, STAMP_CENTER
from probdeblend.simulation import Prior


@pytest.fixture(scope="module")
def published():
    return Prior.published().sample(4000, seed=2)


def test_same_seed_same_pairs_and_no_global_state():
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first, second = (Prior.default().sample(50, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["x"], Prior.default().sample(50, seed=2)["x"])
    assert {value.shape for value in first.values()} == {(50, 2)}
    assert Prior.default().sample(0, seed=1)["x"].shape == (0, 2)


def test_rules_of_a_pair(published):
    magnitude = published["magnitude"]
    assert ((magnitude >= 18) & (magnitude <= 23)).all()
    assert ((magnitude[:, 0] - magnitude[:, 1]).abs() < 2).all()
    for name in ("x", "y"):
        assert ((published[name][:, 0] - STAMP_CENTER).abs() <= 1).all()
    assert Prior.default().sample(4000, seed=0)["magnitude"].max() > 25


def test_types_have_the_published_proportions(published):
    # Pairs keep a magnitude difference below two, which shifts the proportions a little.
    share = torch.bincount(published["galaxy_type"].flatten()) / 8000
    assert share.tolist() == pytest.approx(Prior.published().type_probabilities, abs=0.05)


def test_published_table_is_reproduced(published, data_dir):
    table = np.genfromtxt(
        data_dir / "boucaud2020/test_results.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    dx, dy = (published[name][:, 1] - published[name][:, 0] for name in ("x", "y"))
    separation = torch.hypot(dx, dy).numpy()
    assert np.median(separation) == pytest.approx(np.median(table["distance"]), abs=1.0)
    assert ks_2samp(separation, table["distance"]).statistic < 0.08
    magnitude = np.concatenate([table["g1_mag"], table["g2_mag"]])
    assert ks_2samp(published["magnitude"].flatten(), magnitude).statistic < 0.08
    radius = 0.06 * np.concatenate([table["g1_rad"], table["g2_rad"]])
    assert ks_2samp(published["half_light_radius"].flatten(), radius).statistic < 0.08


def test_the_sampler_is_a_pyro_program():
    with pyro.poutine.trace() as tracer, pyro.plate("galaxy", 2), pyro.poutine.block(hide=[]):
        Prior.default().galaxies()
    sites = {name for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}
    assert {"galaxy_type", "magnitude_and_radius", "shape", "flattening", "angle", "bulge_fraction"} <= sites
    tracer.trace.compute_log_prob()
    assert torch.isfinite(tracer.trace.log_prob_sum())


def test_faint_continuation_follows_the_relation_of_size_with_magnitude():
    wide = Prior.published().extended(0.5)
    kind = torch.full((4000,), GALAXY_TYPES.index("disk"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        magnitude, log_radius = wide.magnitude_and_radius(kind).sample().unbind(-1)
    faint = magnitude > 24
    assert 0.2 < float(faint.float().mean()) < 0.5
    assert log_radius[faint].mean() < log_radius[~faint].mean()


def test_errors():
    prior = Prior.published()
    with pytest.raises(ValueError, match="separation must be one of published, anywhere, close, got"):
        replace(prior, separation="far")
    with pytest.raises(ValueError, match="fraction must be at least 0 and less than 1, got 1"):
        prior.extended(1.0)
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        prior.sample(-1, seed=0)
    numbers = {name: getattr(prior, name) for name in ("type_probabilities", "weights", "means", "covariances")}
    for changed, message in (
        ({"anywhere_fraction": 2.0}, "anywhere_fraction must be between 0 and 1, got 2"),
        ({"magnitude_range": (23.0, 18.0)}, "magnitude_range must increase"),
        ({"max_difference": 0.0}, "max_difference must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Prior(**numbers, **changed)
