"""Refinement of a scene: from a guess to the posterior under the generative model."""

import numpy as np
import pytest
import torch
from scipy import stats

from probdeblend.refinement import refine


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
