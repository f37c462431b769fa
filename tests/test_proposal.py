"""What refinement draws from."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from torch.distributions.transforms import ExpTransform, IndependentTransform

from probdeblend.proposal import Proposal

CENTER = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]).double()
COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.5]]).double().expand(2, 3, 3)


def test_moments_of_the_draws():
    drawn = Proposal(CENTER, COVARIANCE).draw(40_000, [1, 2])
    assert drawn.shape == (40_000, 2, 3)
    assert float((drawn.mean(0) - CENTER).abs().max()) < 5 * math.sqrt(2 / 40_000)
    # The fourth moment is twice that of a normal distribution: standard errors of a variance are 0.011 of it.
    torch.testing.assert_close(torch.cov(drawn[:, 0].T), COVARIANCE[0], rtol=0.08, atol=0.05)


def test_the_density_is_that_of_the_distribution():
    place = Proposal(CENTER, COVARIANCE).draw(50, [1, 2])
    known = [multivariate_t(center, (COVARIANCE[0] * 4 / 6).numpy(), 6) for center in CENTER.numpy()]
    expected = np.stack([one.logpdf(place[:, blend]) for blend, one in enumerate(known)], 1)
    np.testing.assert_allclose(Proposal(CENTER, COVARIANCE).log_prob(place), expected)
    bent = Proposal(CENTER, COVARIANCE, IndependentTransform(ExpTransform(), 1))
    np.testing.assert_allclose(bent.log_prob(place.exp()), expected - place.sum(-1).numpy())
    np.testing.assert_allclose(bent.draw(50, [1, 2]), place.exp())


def test_what_coordinates_do_not_reach_has_no_density():
    bent = Proposal(CENTER, COVARIANCE, IndependentTransform(ExpTransform(), 1))
    unknown = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]]).double()
    assert torch.isfinite(bent.log_prob(unknown)).tolist() == [True, False]
    assert float(bent.log_prob(unknown)[1]) == -math.inf


def test_a_blend_has_its_own_draws():
    """The same seed gives the same draws, whatever is beside it."""
    both = Proposal(CENTER, COVARIANCE).draw(10, [5, 6])
    alone = Proposal(CENTER[1:], COVARIANCE[1:]).draw(10, [6])
    torch.testing.assert_close(both[:, 1:], alone)
    assert not torch.equal(both, Proposal(CENTER, COVARIANCE).draw(10, [5, 7]))


def test_the_way_to_other_moments():
    share = torch.tensor([0.0, 0.25]).double()
    moved = Proposal(CENTER, COVARIANCE).moved(CENTER + 4, 3 * COVARIANCE, share)
    torch.testing.assert_close(moved.center, CENTER + torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(moved.covariance, COVARIANCE * torch.tensor([1.0, 1.5])[:, None, None])


def test_refuses_what_is_no_covariance():
    with pytest.raises(torch.linalg.LinAlgError):
        Proposal(CENTER, -COVARIANCE).draw(2, [1, 2])
