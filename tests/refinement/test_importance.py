"""Refinement of a scene: from a guess to the posterior under the generative model."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from probdeblend.posterior.moments import import_arviz
from probdeblend.refinement import importance, refine
from probdeblend.refinement.importance import Mixture


def start_of(vector, scale=0.1):
    return vector + scale * torch.randn(2, len(vector), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("count", "bands"), [(1, 2), (3, 1)])
def test_posterior_holds_the_truth(group, count, bands):
    """For any number of sources and bands: the squared distance of the fluxes, with a chance of 1 in 1,000."""
    unknowns, vector = group(count, bands=bands, log_flux=(6.5, 6.0, 5.5), seed=count)
    found = refine(unknowns, start_of(vector), draws=200, attempts=4, seed=1)
    assert found.usable
    assert found.effective > 20
    pick = unknowns.fluxes.flatten().numpy()
    mean, covariance = found.moments()
    offset = (vector.double().numpy() - mean)[pick]
    distance = offset @ np.linalg.solve(covariance[np.ix_(pick, pick)], offset)
    assert distance < 1.3 * stats.chi2.isf(1e-3, len(pick))


def test_same_seed_same_draws_and_nothing_else_changes(group):
    unknowns, vector = group(1, log_flux=(6.0,))
    start = start_of(vector)
    state = torch.random.get_rng_state()
    one, other = (refine(unknowns, start, draws=100, attempts=1, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(one.vector, other.vector)
    assert np.array_equal(one.log_weight, other.log_weight)
    assert not np.array_equal(one.vector, refine(unknowns, start, draws=100, attempts=1, seed=4).vector)
    drawn = one.resampled(5000, seed=1)
    mean, covariance = one.moments()
    assert np.allclose(drawn.mean(0), mean, atol=0.1 * np.sqrt(np.diag(covariance)).max())
    assert np.allclose(np.cov(drawn.T), covariance, rtol=0.1, atol=0.05 * np.diag(covariance).max())


def test_bad_starts_are_refused(group):
    unknowns, vector = group(1)
    with pytest.raises(ValueError, match=r"starts must have the shape \(guess, 9\), got \(2, 8\)"):
        refine(unknowns, vector.expand(2, -1)[:, :8])
    with pytest.raises(ValueError, match="starts must be finite, got NaN or infinity in 9 numbers"):
        refine(unknowns, vector[None] * torch.nan)
    with pytest.raises(ValueError, match="draws must be at least 100, got 10"):
        refine(unknowns, vector[None], draws=10)


@pytest.mark.slow
def test_intervals_cover(group):
    """24 scenes of two sources: 48 fluxes; squared errors over variances are chi-square, within 4 standard errors."""
    square = []
    for seed in range(24):
        unknowns, vector = group(2, log_flux=(6.0, 5.5), seed=seed)
        mean, covariance = refine(unknowns, start_of(vector), draws=400, seed=1).moments()
        pick = unknowns.fluxes.flatten().numpy()
        offset = vector.double().numpy()[pick] - mean[pick]
        square.append(offset @ np.linalg.solve(covariance[np.ix_(pick, pick)], offset))
    assert 0.4 < np.mean(square) / 2 < 1.6


def two():
    mean = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    covariance = torch.tensor([[[1.0, 0.5], [0.5, 1.0]], [[0.2, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    return Mixture(mean, covariance, torch.tensor([0.3, 0.7], dtype=torch.float64))


def drawn(mixture, draws, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mixture.draw(draws)


def test_draws_have_the_moments_and_shares_of_the_modes():
    values = drawn(two(), 40000)
    first = values[:, 0] < 0
    assert abs(float(first.double().mean()) - 0.3) < 0.01
    assert torch.allclose(torch.cov(values[first].T), two().covariance[0], atol=0.1)


def test_density_is_that_of_the_draws():
    """The mean of 1 / density over draws, in a box, is the area of the box: 1, with an error of 1 %."""
    values = drawn(two(), 40000)
    inside = (values - torch.tensor([3.0, 1.0])).abs().amax(-1) < 0.5
    area = (torch.exp(-two().log_prob(values)) * inside).mean()
    assert abs(float(area) - 1.0) < 0.03


def test_proposal_learns_from_weighted_draws():
    """Target: a normal about (-2, 0.5); the mode nearby moves there and takes all the share."""
    mixture = two()
    target = torch.distributions.MultivariateNormal(torch.tensor([-2.0, 0.5]).double(), 0.5 * torch.eye(2).double())
    for step in range(4):
        values = drawn(mixture, 4000, seed=step)
        mixture = mixture.moved(values, (target.log_prob(values) - mixture.log_prob(values)).softmax(0))
    assert float(mixture.share[0]) > 0.98
    assert torch.allclose(mixture.mean[0], target.mean, atol=0.1)
    assert torch.allclose(mixture.covariance[0], target.covariance_matrix, atol=0.15)


def test_no_weight_moves_nothing():
    values = drawn(two(), 100)
    assert torch.allclose(two().moved(values, torch.zeros(100).double()).mean, two().mean)


@pytest.mark.skipif(not hasattr(import_arviz(), "psislw"), reason="ArviZ 1.x does nothing else")
def test_arviz_1_takes_weights_with_their_sign_reversed(monkeypatch):
    """Its function is for log-likelihoods, whose negative values are the weights."""
    weight = 2 * np.random.default_rng(0).normal(size=2000)
    smoothed, k_hat = importance._smoothed(weight)
    older = import_arviz()
    newer = SimpleNamespace(array_stats=SimpleNamespace(psislw=lambda values: older.psislw(-values)))
    monkeypatch.setitem(sys.modules, "arviz_stats", SimpleNamespace(base=newer))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", newer)
    monkeypatch.setattr(importance, "import_arviz", SimpleNamespace)
    again = importance._smoothed(weight)
    np.testing.assert_allclose(again[0], smoothed)
    assert again[1] == k_hat
    assert np.argmax(smoothed) == np.argmax(weight)
