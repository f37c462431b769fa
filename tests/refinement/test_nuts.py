"""The reference sampler agrees with refinement, and knows whether it has converged."""

from dataclasses import replace

import numpy as np
import pytest

from probdeblend.refinement import Reference, Refined, sample_reference


def test_what_counts_as_converged():
    draws = np.zeros((2, 5, 3))
    good = Reference(draws, np.full(3, 1.005), np.full(3, 500.0))
    assert good.converged
    assert not replace(good, r_hat=np.array([1.0, 1.02, 1.0])).converged
    assert not replace(good, effective=np.array([500.0, 500.0, 300.0])).converged


@pytest.mark.slow
def test_the_reference_agrees(model, pairs, refined):
    """NUTS on the same density: means and widths within what so few draws tell."""
    blend = int(refined.effective.argmax())
    reference = sample_reference(model, pairs[0], refined, blend=blend, draws=60, progress=False)
    assert reference.unknown.shape == (2, 60, 16)
    assert (reference.r_hat < 1.2).all()
    drawn = reference.unknown.reshape(-1, 16)
    mean, covariance = (moment[blend] for moment in refined.moments())
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((drawn.mean(0) - mean) / scale).max() < 0.6
    assert np.exp(np.abs(np.log(drawn.std(0) / scale))).max() < 1.6


def test_refuses():
    """The limit of k-hat is 1 - 1/2 with 100 draws, and 0.7 with very many."""
    empty, k_hat = np.zeros((4, 2)), np.array([0.4, 0.6, 0.8, np.inf])
    found = Refined(np.zeros((100, 4, 3)), empty, empty, empty, k_hat, *[empty] * 4)
    for changed, message in (
        ({"blend": 4}, "blend must be at least 0 and below 4, got 4"),
        ({"draws": 3}, "draws must be at least 50 per chain, got 3"),
        ({"blend": 2}, "blend must have reliable weights to start from, got a k-hat of 0.80"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_reference(None, None, found, **changed)
