import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare, norm

from probdeblend.posterior import FluxPrior
from probdeblend.scene import LN_FLUX_UNIT
from probdeblend.simulation.conditions import Conditions
from probdeblend.simulation.prior import Prior

ZERO_POINT = 25.946
ONE_DEPTH = Conditions(sky_rms=(4e-3, 4e-3))


@pytest.fixture(scope="module")
def default():
    return Prior.default().flux_prior(Conditions().sky_rms, ZERO_POINT)


@pytest.fixture(scope="module")
def pairs():
    return sampled(Prior.default(), Conditions())


def sampled(prior, conditions, *, count=20_000):
    """Pairs of ln(flux / sky_rms), from the sampler that networks are trained with."""
    magnitude = prior.sample(count, seed=3)["magnitude"].numpy().astype(float)
    low, high = np.log(conditions.sky_rms)
    rms = np.random.default_rng(4).uniform(low, high, size=(count, 1))
    return (ZERO_POINT - magnitude) / LN_FLUX_UNIT - rms


def cells(edges, nodes):
    """Gauss-Legendre points and weights within cells ``(cell * node,)``."""
    place, weight = np.polynomial.legendre.leggauss(nodes)
    half = np.diff(edges)[:, None] / 2
    return ((edges[1:] + edges[:-1])[:, None] / 2 + half * place).ravel(), (half * weight).ravel()


def shares(prior, means, differences, nodes=6):
    """Probability of the cells of mean and difference of the pair, by integration of the density."""
    (mean, across), (difference, along) = cells(means, nodes), cells(differences, nodes)
    mean, difference = mean[:, None], difference[None]
    density = np.exp(prior.log_prob(np.stack([mean + difference / 2, mean - difference / 2], -1)))
    weighted = density * across[:, None] * along
    return weighted.reshape(len(means) - 1, nodes, len(differences) - 1, nodes).sum((1, 3))


def edges_of(prior, rows=24, columns=12):
    low, high = prior.magnitude_range
    least, most = np.log(prior.sky_rms)
    means = np.linspace((ZERO_POINT - high) / LN_FLUX_UNIT - most, (ZERO_POINT - low) / LN_FLUX_UNIT - least, rows + 1)
    widest = prior.max_difference / LN_FLUX_UNIT
    return means, np.linspace(-widest, widest, columns + 1)


def p_value(density, pairs, edges):
    expected = shares(density, *edges) * len(pairs)
    found = np.histogram2d(pairs.mean(1), pairs[:, 0] - pairs[:, 1], edges)[0]
    enough = expected > 10
    counts, means = np.append(found[enough], found[~enough].sum()), np.append(expected[enough], expected[~enough].sum())
    return chisquare(counts, means * counts.sum() / means.sum()).pvalue


@pytest.mark.parametrize(
    ("prior", "conditions"),
    [
        (Prior.default(), Conditions()),
        (Prior.default(), ONE_DEPTH),
        (replace(Prior.published(), max_difference=0.7), Conditions(sky_rms=(1e-3, 5e-2))),
    ],
)
def test_pairs_of_the_training_have_this_density(prior, conditions, pairs, false_alarm):
    density = prior.flux_prior(conditions.sky_rms, ZERO_POINT)
    edges = edges_of(density)
    if (prior, conditions) != (Prior.default(), Conditions()):
        pairs = sampled(prior, conditions)
    assert shares(density, *edges).sum() == pytest.approx(1, abs=2e-3)
    assert np.isfinite(density.log_prob(pairs)).all()
    assert p_value(density, pairs, edges) > false_alarm


@pytest.mark.parametrize(
    "wrong", [{"zero_point": ZERO_POINT + 0.1}, {"sky_rms": (2e-3, 6e-3)}, {"magnitude_range": (18.0, 25.5)}]
)
def test_another_density_is_rejected(default, pairs, wrong, false_alarm):
    assert p_value(replace(default, **wrong), pairs, edges_of(default)) < false_alarm


def test_density_is_the_mean_over_depths(default, pairs):
    pairs, ends = pairs[:40], np.linspace(*np.log(default.sky_rms), 101)
    depths = np.exp((ends[1:] + ends[:-1]) / 2)
    each = [np.exp(replace(default, sky_rms=(depth, depth)).log_prob(pairs)) for depth in depths]
    np.testing.assert_allclose(np.exp(default.log_prob(pairs)), np.mean(each, 0), rtol=0.03)


def test_density_integrates_to_one_exactly_where_nothing_is_cut(rng):
    """One Gaussian and one depth: the density of two normal variables."""
    wide = FluxPrior(((1.0, 22.0, 0.5),), (10.0, 34.0), 30.0, (2.0, 2.0), 22.0)
    pairs = rng.normal(-np.log(2), 1, size=(100, 2))
    expected = norm.logpdf(pairs, -np.log(2), 0.5 / LN_FLUX_UNIT).sum(-1)
    np.testing.assert_allclose(wide.log_prob(pairs), expected, atol=1e-6)


@pytest.mark.parametrize("magnitude", [13.0, 31.0])
def test_far_tails_do_not_cancel(magnitude):
    narrow = FluxPrior(((1.0, 22.0, 0.5),), (10.0, 34.0), 30.0, (1.0, 1.001), 22.0)
    pair = (22 - magnitude) / LN_FLUX_UNIT - np.log(1.0005)
    expected = 2 * (norm.logpdf(magnitude, 22, 0.5) + np.log(LN_FLUX_UNIT))
    assert narrow.log_prob([pair, pair]) == pytest.approx(expected, abs=1e-3)


def test_any_order_and_shape(default, pairs):
    pairs = pairs[:24]
    density = default.log_prob(pairs)
    np.testing.assert_allclose(default.log_prob(pairs[:, ::-1]), density)
    np.testing.assert_array_equal(default.log_prob(pairs.reshape(2, 3, 4, 2)), density.reshape(2, 3, 4))
    assert default.log_prob(pairs[0]).shape == ()
    assert default.log_prob(np.empty((0, 5, 2))).shape == (0, 5)


def test_long_lists_are_done_in_parts(default, pairs):
    """One list is longer than a part, which holds 16,384 pairs."""
    whole = default.log_prob(pairs)
    np.testing.assert_array_equal(whole[16_000:], default.log_prob(pairs[16_000:]))


def test_what_training_never_saw_has_no_density(default):
    brightest = (ZERO_POINT - 18) / LN_FLUX_UNIT - np.log(2e-3)
    faintest = (ZERO_POINT - 26) / LN_FLUX_UNIT - np.log(8e-3)
    inside = [[brightest - 0.01] * 2, [faintest + 0.01] * 2, [5.0, 5.0 + 1.99 / LN_FLUX_UNIT]]
    outside = [[brightest + 0.01, brightest], [faintest, faintest - 0.01], [5.0, 5.0 + 2.01 / LN_FLUX_UNIT]]
    assert np.isfinite(default.log_prob(inside)).all()
    assert (default.log_prob([*outside, [-np.inf, 3.0], [np.inf, np.inf]]) == -np.inf).all()
    assert np.isnan(default.log_prob([[np.nan, 5.0], [5.0, np.nan]])).all()


def test_gaussians_of_no_weight_are_left_out(default):
    weights = np.array(default.gaussians)[:, 0]
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-3)
    assert len({tuple(row[1:]) for row in default.gaussians}) == len(weights)


def test_mistakes_are_named(default):
    with pytest.raises(ValueError, match=r"must have the shape \(\.\.\., 2\), got \(4, 3\)"):
        default.log_prob(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"must have the shape \(\.\.\., 2\), got \(\)"):
        default.log_prob(1.0)
    with pytest.raises(ValueError, match="zero_point must be finite, got nan"):
        Prior.default().flux_prior(Conditions().sky_rms, math.nan)
    with pytest.raises(ValueError, match=r"prior must be of pairs, .* got \(0.5, 0.5\)"):
        replace(Prior.default(), crowding=(0.5, 0.5)).flux_prior(Conditions().sky_rms, ZERO_POINT)
    with pytest.raises(ValueError, match=r"gaussians must reach into magnitude_range \(60.0, 70.0\)"):
        replace(default, magnitude_range=(60.0, 70.0))
