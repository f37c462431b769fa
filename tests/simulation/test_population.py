"""The population as a Pyro program: its sites, its densities, and the published pairs that it must give."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import binomtest, chisquare, kstest

from probdeblend.scene import SOURCE_TYPES
from probdeblend.simulation import Frame, Population
from probdeblend.simulation.mixtures import TruncatedMixture

FRAME = Frame((128, 128), 0.06, 3.0)
SMALL = Frame((80, 96), 0.05, 3.0)
SETTINGS = {
    "published": Population.published(),
    "pairs": Population.pairs(),
    "default": Population.default(),
    "anywhere": Population.default().replace(layout="anywhere", smooth=True),
}


@pytest.fixture(scope="module")
def published():
    return Population.published().sample(4000, FRAME, seed=1)


@pytest.fixture(scope="module")
def crowds():
    return Population.default().sample(1500, SMALL, seed=2)


def mixture():
    weight, mean, sd = torch.tensor([[0.5, 1.5], [1.0, 0.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]]), torch.ones(2, 2)
    return TruncatedMixture(weight, mean, sd, torch.tensor(-1.0), torch.tensor([5.0, math.inf]))


def test_truncated_mixture_has_its_density(false_alarm):
    law, grid = mixture(), torch.linspace(-1, 9, 4001)
    density = law.log_prob(grid[:, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(2), atol=2e-3, rtol=0)
    assert law.log_prob(torch.tensor([-1.1, 5.1])).exp().tolist()[0] == 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = law.sample((5000,))
    assert float(drawn.min()) >= -1
    cumulative = torch.cumulative_trapezoid(density, grid, dim=0).numpy()
    for column in range(2):
        known = kstest(drawn[:, column].numpy(), lambda v, c=column: np.interp(v, grid[1:], cumulative[:, c]))
        assert known.pvalue > false_alarm


@pytest.mark.parametrize("name", SETTINGS)
def test_the_program_has_plates_and_finite_densities(name):
    population = SETTINGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trace = pyro.poutine.trace(population.scenes).get_trace(16, SMALL)
    trace.compute_log_prob()
    sites = {site: node for site, node in trace.nodes.items() if node["type"] == "sample" and "log_prob" in node}
    per_source = {"source_type", "magnitude", "ln_radius", "flattening", "angle", "sersic_quantile", "bulge_fraction"}
    per_source |= {"slope"} | ({"ln_snr"} if population.snr else set())
    assert set(sites) - {"scenes", "sources"} == per_source | {"number", "position"} | (
        {"near"} if population.layout == "clustered" else set()
    ) | ({"difference"} if population.max_difference < 9 else set())
    exists = trace.nodes["_RETURN"]["value"]["exists"]
    for site in per_source:
        assert sites[site]["log_prob"].shape == exists.shape
        assert sites[site]["log_prob"].isfinite().all()
        assert (sites[site]["log_prob"][~exists] == 0).all()
    assert sites["position"]["log_prob"].shape == (16, 1)
    assert sites["position"]["log_prob"].isfinite().all()


def test_published_pairs_are_those_of_the_table(published):
    """Types in their proportions, magnitudes 18 to 23 that differ by less than 2, a galaxy in the middle."""
    assert published["exists"].all()
    magnitude = published["magnitude"]
    assert magnitude.min() >= 18
    assert magnitude.max() <= 23
    assert (magnitude[:, 0] - magnitude[:, 1]).abs().max() <= 2
    for center in (published["x"], published["y"]):
        assert (center[:, 0] - 63.5).abs().max() <= 1
    assert set(published["source_type"].unique().tolist()) == {0, 1, 2, 3}
    share = torch.bincount(published["source_type"].flatten()) / published["source_type"].numel()
    np.testing.assert_allclose(share, Population.published().type_probabilities, atol=0.03)


def test_magnitudes_of_a_pair_are_drawn_together(false_alarm):
    """Independent draws of which those with a large difference are dropped, which is the factor of the program."""
    population = Population.published().replace(star_fraction=0.0)
    free = population.replace(max_difference=math.inf).sample(12000, FRAME, seed=5)
    kept = (free["magnitude"][:, 0] - free["magnitude"][:, 1]).abs() < 2
    drawn = population.sample(5000, FRAME, seed=6)
    for name in ("magnitude", "half_light_radius", "axis_ratio"):
        assert kstest(drawn[name][:, 0].numpy(), free[name][kept][:, 0].numpy()).pvalue > false_alarm
    difference = [(v[:, 1] - v[:, 0]).numpy() for v in (drawn["magnitude"], free["magnitude"][kept])]
    assert kstest(*difference).pvalue > false_alarm


def test_crowds_have_the_numbers_and_stars_they_should(crowds, false_alarm):
    number = crowds["exists"].sum(1)
    expected = np.array(Population.default().number) * len(number)
    found = torch.bincount(number, minlength=len(expected)).numpy()
    assert chisquare(found[expected > 0], expected[expected > 0]).pvalue > false_alarm
    kind = crowds["source_type"][crowds["exists"]]
    stars = int((kind == SOURCE_TYPES.index("star")).sum())
    assert binomtest(stars, len(kind), 0.15).pvalue > false_alarm


def test_signal_to_noise_ratios_are_log_uniform_up_to_either_limit(crowds, false_alarm):
    snr = crowds["ln_snr"][crowds["exists"]].numpy()
    low, first, second = np.log([5.0, 300.0, 3000.0])

    def share(value):
        return 0.65 * np.clip((value - low) / (first - low), 0, 1) + 0.35 * (value - low) / (second - low)

    assert kstest(snr, share).pvalue > false_alarm


def test_no_galaxy_is_larger_than_the_limit(crowds):
    galaxy = crowds["source_type"] != SOURCE_TYPES.index("star")
    assert float(crowds["half_light_radius"][galaxy].max()) <= 14 * SMALL.pixel_scale * 1.0001


def test_a_fixed_number_of_sources():
    drawn = Population.default().sample(7, SMALL, seed=1, number=3)
    assert drawn["exists"].shape == (7, 3)
    assert drawn["exists"].all()
    assert not Population.default().sample(4, SMALL, seed=1, number=0)["exists"].any()
    assert len(Population.default().sample(0, SMALL, seed=1)["x"]) == 0


def test_same_seed_same_scenes_and_no_global_state():
    before = torch.random.get_rng_state()
    first, again, other = (Population.default().sample(5, SMALL, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SETTINGS)
def test_json_and_back(name):
    assert Population.parse(SETTINGS[name].describe()) == SETTINGS[name]


def test_a_continued_population_is_fainter():
    wider = Population.published().extended(0.3)
    assert wider.magnitude_range == (18, 26)
    for weights in wider.weights:
        assert sum(weights) == pytest.approx(1, abs=1e-3)
    fractions = [
        float((p.sample(1000, FRAME, seed=1, number=1)["magnitude"] > 23).float().mean())
        for p in (Population.published(), wider.replace(max_difference=math.inf))
    ]
    assert fractions[0] == 0
    assert 0.2 < fractions[1] < 0.35
    with pytest.raises(ValueError, match="fraction must be at least 0 and less than 1, got 1"):
        wider.extended(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "rings"}, "layout must be one of centered, paired, clustered, anywhere, got 'rings'"),
        ({"star_fraction": 1.5}, "star_fraction must be between 0 and 1, got 1.5"),
        ({"close_fraction": -0.1}, "close_fraction must be between 0 and 1, got -0.1"),
        ({"magnitude_range": (23, 18)}, r"magnitude_range must increase, got \(23, 18\)"),
        ({"snr": (9.0, 9.0)}, r"snr must increase, got \(9.0, 9.0\)"),
        ({"max_difference": 0}, "max_difference must be positive, got 0"),
        ({"largest": -1.0}, "largest must be positive, got -1.0"),
        ({"number": (0.5, 0.4)}, r"number must be probabilities that sum to 1, got \(0.5, 0.4\)"),
        ({"number": ()}, r"number must be probabilities that sum to 1, got \(\)"),
    ],
)
def test_impossible_populations(change, message):
    with pytest.raises(ValueError, match=message):
        Population.published().replace(**change)


def test_counts_and_seeds_are_not_negative():
    for options in ({"count": -1, "seed": 0}, {"count": 1, "seed": -1}, {"count": 1, "seed": 0, "number": -1}):
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            Population.published().sample(frame=FRAME, **options)
