"""The population as a Pyro program: its sites, its densities, and the published pairs that it must give."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from scipy.stats import binomtest, chisquare, kstest

from probdeblend.scene import SOURCE_TYPES
from probdeblend.simulation import Frame, Population
from probdeblend.simulation.mixtures import TruncatedMixture

FRAME = Frame((128, 128), 0.06, 3.0)
SMALL = Frame((80, 96), 0.05, 3.0)
FITTED = ("weights", "means", "covariances")
SETTINGS = {
    "published": Population.published(),
    "pairs": Population.pairs(),
    "default": Population.default(),
    "anywhere": Population.default().replace(layout="anywhere"),
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
    factors = {"difference"} if population.max_difference < 9 else set()
    assert set(sites) - {"scenes", "sources"} == per_source | {"number"} | factors
    exists = trace.nodes["_RETURN"]["value"]["exists"]
    for site in per_source:
        assert sites[site]["log_prob"].shape == exists.shape
        assert sites[site]["log_prob"].isfinite().all()
        assert (sites[site]["log_prob"][~exists] == 0).all()


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


def test_galaxies_have_the_moments_of_the_published_table():
    """Number, mean and covariance of magnitude and ln radius of the table's distinct galaxies, type by type.

    The fit keeps them, but for 0.001 that it adds to variances.
    """
    population = Population.published()
    counts, means = (
        [202, 222, 396, 230],
        [[21.3175, -1.8591], [21.9667, -0.6293], [20.8141, -0.9897], [21.948, -0.7182]],
    )
    variances = [
        [0.8524, -0.3171, 0.2342],
        [0.5579, -0.1146, 0.1212],
        [1.0851, -0.2593, 0.2162],
        [0.529, -0.0998, 0.1992],
    ]
    np.testing.assert_allclose(population.type_probabilities, np.array(counts) / 1050, atol=1e-4)
    laws = zip(population.weights, population.means, population.covariances, strict=True)
    for (weight, center, covariance), mean, variance in zip(laws, means, variances, strict=True):
        away = np.array(center) - mean
        spread = np.einsum("k,kij->ij", weight, covariance + away[:, :, None] * away[:, None, :])
        np.testing.assert_allclose(np.dot(weight, center), mean, atol=2e-3)
        np.testing.assert_allclose(
            spread, np.reshape(np.take(variance, [0, 1, 1, 2]), (2, 2)) + 1e-3 * np.eye(2), atol=1e-3
        )


def known_sites(population, **values):
    """Trace one source of each type, the last one a star, with known values of its sites."""
    data = {"source_type": torch.arange(5), "magnitude": torch.full((5,), 21.5)}
    data |= {name: torch.full((5,), value) for name, value in values.items()}
    with pyro.plate("sources", 5):
        trace = pyro.poutine.trace(pyro.poutine.condition(population.source, data)).get_trace(0.06)
    trace.compute_log_prob()
    return trace.nodes["_RETURN"]["value"], {name: node.get("log_prob") for name, node in trace.nodes.items()}


def test_shapes_and_colors_have_their_laws():
    """Densities in closed form; a star has no shape."""
    values = {"ln_radius": -0.5, "flattening": 0.3, "angle": 1.0, "sersic_quantile": 0.3, "bulge_fraction": 0.4}
    drawn, density = known_sites(Population.default(), slope=0.8, ln_snr=math.log(50), **values)
    expected = {
        "flattening": np.where(np.arange(4) == 0, stats.beta(1.2, 2.0).logpdf(0.3), stats.beta(1.4, 1.6).logpdf(0.3)),
        "angle": np.full(4, -math.log(math.pi)),
        "sersic_quantile": np.full(4, stats.beta(2.0, 2.0).logpdf(0.3)),
        "bulge_fraction": np.full(4, stats.beta(2.0, 2.2).logpdf(0.4)),
    }
    for name, of_galaxies in expected.items():
        np.testing.assert_allclose(density[name], [*of_galaxies, 0], atol=1e-5)
    slope = stats.norm([1.5, 0.9, 1.2, 0.6, 0.3], [0.6, 0.45, 0.5, 0.35, 1.2])
    np.testing.assert_allclose(density["slope"], slope.logpdf(0.8), atol=1e-5)
    np.testing.assert_allclose(density["ln_snr"], math.log(0.65 / math.log(60) + 0.35 / math.log(600)), atol=1e-5)
    np.testing.assert_allclose(drawn["axis_ratio"], [0.82, 0.76, 0.76, 0.76, 0.76], atol=1e-6)
    brighter = known_sites(Population.default(), ln_snr=math.log(1000))[1]["ln_snr"]
    np.testing.assert_allclose(brighter, math.log(0.35 / math.log(600)), atol=1e-5)


def test_radii_stay_between_their_limits():
    for ln_radius, radius in ((-9.0, 0.03), (-1.0, math.exp(-1)), (5.0, 3.0)):
        drawn, _ = known_sites(Population.published(), ln_radius=ln_radius)
        np.testing.assert_allclose(drawn["half_light_radius"], radius, rtol=1e-6)


def test_magnitudes_and_radii_are_those_of_the_joint_mixture():
    population = Population.published()
    _, density = known_sites(population, ln_radius=-0.5)
    for kind, law in enumerate(zip(population.weights, population.means, population.covariances, strict=True)):
        joint = sum(w * stats.multivariate_normal(m, c).pdf([21.5, -0.5]) for w, m, c in zip(*law, strict=True))
        inside = sum(
            w * np.diff(stats.norm(m[0], c[0][0] ** 0.5).cdf([18, 23]))[0] for w, m, c in zip(*law, strict=True)
        )
        found = float(density["magnitude"][kind] + density["ln_radius"][kind])
        assert found == pytest.approx(math.log(joint / inside), abs=1e-4)
    star = stats.truncnorm(-2.5 / 20, 2.5 / 20, 20.5, 20)
    assert float(density["magnitude"][4]) == pytest.approx(star.logpdf(21.5), abs=1e-5)


def test_radii_of_any_camera_scatter_more_up_to_the_largest():
    """Galaxies with bulge and disk, whose mixture has one component."""
    narrow = Population.published()
    (mean, ln_radius), ((variance, covariance), (_, spread)) = narrow.means[2][0], narrow.covariances[2][0]
    center = ln_radius + covariance / variance * (21.5 - mean)
    for added, largest in ((0.0, math.inf), (0.3, 14.0)):
        sd = (spread - covariance**2 / variance + added**2) ** 0.5
        law = stats.truncnorm(-math.inf, (math.log(largest * 0.06) - center) / sd, center, sd)
        population = narrow.replace(size_scatter=added, largest=largest)
        density = known_sites(population, ln_radius=-0.5)[1]["ln_radius"][2]
        assert float(density) == pytest.approx(law.logpdf(-0.5), abs=1e-4)
        assert math.isfinite(known_sites(population, ln_radius=0.2)[1]["ln_radius"][2]) == (largest == math.inf)


def test_what_networks_are_trained_on():
    published, pairs, crowds = Population.published(), Population.pairs(), Population.default()
    assert (published.layout, published.max_difference, published.magnitude_range) == ("centered", 2.0, (18, 23))
    assert (pairs.layout, pairs.max_difference, pairs.magnitude_range) == ("paired", 2.0, (18, 26))
    assert (pairs.anywhere_fraction, pairs.close_fraction) == (0.2, 0.1)
    assert (crowds.layout, crowds.max_difference, crowds.magnitude_range) == ("clustered", math.inf, (18, 26))
    assert (crowds.snr, crowds.size_scatter, crowds.largest, crowds.star_fraction) == ((5, 300), 0.3, 14, 0.15)
    for population in (pairs, crowds):
        for weights, means, variances in zip(*(getattr(population, n) for n in FITTED), strict=True):
            assert weights[-2:] == pytest.approx((0.15, 0.15))
            assert [magnitude for magnitude, _ in means[-2:]] == [23.6, 24.9]
            np.testing.assert_allclose([rows[0][0] for rows in variances[-2:]], 0.36)
    expected = dict(enumerate((0.02, 0.17, 0.18, 0.17, 0.12, 0.1, 0.07))) | {8: 0.08, 11: 0.05, 14: 0.04}
    np.testing.assert_allclose(crowds.number, [expected.get(number, 0) for number in range(15)])


def test_what_a_population_is_by_default():
    """Two galaxies anywhere, of magnitude 18 to 26 and of any size and difference."""
    given = Population.published()
    plain = Population(given.type_probabilities, *(getattr(given, name) for name in FITTED))
    assert plain == given.replace(magnitude_range=(18.0, 26.0), max_difference=math.inf, layout="anywhere")
    assert (plain.number, plain.snr, plain.star_fraction) == ((0, 0, 1), None, 0)
    assert (plain.anywhere_fraction, plain.close_fraction, plain.size_scatter, plain.largest) == (0, 0, 0, math.inf)


@pytest.mark.parametrize(("kind", "radius"), [("star", 1 / math.e), ("disk", 0.3 / 0.05 * 0.5)])
def test_sources_of_a_cluster_are_as_close_as_their_light(kind, radius):
    """Twice the sum of their circularized radii, beside the PSF; a star counts as 1/e of a pixel."""
    values = {"half_light_radius": 0.3, "axis_ratio": 0.25, "source_type": SOURCE_TYPES.index(kind)}
    values = {name: torch.full((4000, 2), value) for name, value in values.items()}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        places = Population.default().positions(values, Frame((100_000, 100_000), 0.05, SMALL.blur))
    apart = torch.hypot(*(places[:, 1] - places[:, 0]).T)
    largest = 2 * 2 * radius + 0.8 * SMALL.blur
    near = apart[apart < 500]  # chance brings 0.01 % so close
    assert 0.98 * largest < near.quantile(0.99) < largest
    assert len(near) / len(apart) == pytest.approx(0.725, abs=0.035)  # 4.5 standard errors; .5 to .95, evenly


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


def test_pairs_reach_fainter_magnitudes():
    wider = Population.pairs()
    assert wider.magnitude_range == (18, 26)
    for weights in wider.weights:
        assert sum(weights) == pytest.approx(1, abs=1e-3)
    fractions = [
        float((p.sample(1000, FRAME, seed=1, number=1)["magnitude"] > 23).float().mean())
        for p in (Population.published(), wider.replace(max_difference=math.inf))
    ]
    assert fractions[0] == 0
    assert 0.2 < fractions[1] < 0.35


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
        ({"number": (1.2, -0.2)}, r"number must be probabilities that sum to 1, got \(1.2, -0.2\)"),
        ({"number": ()}, r"number must be probabilities that sum to 1, got \(\)"),
    ],
)
def test_impossible_populations(change, message):
    with pytest.raises(ValueError, match=message):
        Population.published().replace(**change)


def test_counts_and_seeds_are_not_negative():
    for options in ({"count": -1, "seed": 0}, {"count": 1, "seed": -1}, {"count": 1, "seed": 0, "number": -1}):
        with pytest.raises(ValueError, match="must be at least 0, got -1"):
            Population.published().sample(frame=FRAME, **options)
