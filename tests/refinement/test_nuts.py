"""The reference sampler."""

import numpy as np
import pytest
import torch

from benchmarks._nuts import sample_reference
from probdeblend.refinement import refine


@pytest.mark.slow
def test_refinement_agrees_with_the_reference_on_a_group_of_three(group):
    """Means and widths of the fluxes within 5 standard errors, from the effective numbers of draws of both."""
    unknowns, vector = group(3, log_flux=(7.5, 7.2, 7.0), seed=1)
    refined = refine(unknowns, vector[None], draws=400, attempts=4, seed=1)
    assert refined.usable
    state = torch.random.get_rng_state()
    reference = sample_reference(unknowns, refined, draws=50, seed=1, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    pick = unknowns.fluxes.flatten().numpy()
    assert (reference.effective[pick] > 10).all()
    mean, covariance = refined.moments()
    width = np.sqrt(np.diag(covariance))[pick]
    other = reference.vector.reshape(-1, len(vector))[:, pick]
    error = np.sqrt(1 / refined.effective + 1 / reference.effective[pick])
    assert (np.abs(other.mean(0) - mean[pick]) < 5 * error * width).all()
    assert (np.abs(np.log(other.std(0) / width)) < 5 * error / np.sqrt(2)).all()


def test_bad_requests_are_refused(group):
    unknowns, vector = group(1, log_flux=(6.0,))
    refined = refine(unknowns, vector[None], draws=100, attempts=1)
    with pytest.raises(ValueError, match="draws must be at least 50 per chain, got 10"):
        sample_reference(unknowns, refined, draws=10)
    poor = type(refined)(refined.vector, refined.log_weight, 0.9, 1.0)
    with pytest.raises(ValueError, match=r"reliable weights to start from, got a k-hat of 0\.90"):
        sample_reference(unknowns, poor)
