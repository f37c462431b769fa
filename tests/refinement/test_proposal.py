"""What refinement draws from."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t

from probdeblend.refinement.proposal import Mixture

CENTER = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]).double()
COVARIANCE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.5]]).double().expand(2, 3, 3)
HALF_WAY = 50  # effective draws that a mixture is worth


def single(center, covariance):
    """One mode per blend."""
    return Mixture(center[None], covariance[None], torch.ones(1, len(center)).double())


def test_moments_of_the_draws():
    drawn = single(CENTER, COVARIANCE).draw(40_000, [1, 2])
    assert drawn.shape == (40_000, 2, 3)
    assert float((drawn.mean(0) - CENTER).abs().max()) < 5 * math.sqrt(2 / 40_000)
    # The fourth moment is twice that of a normal distribution: standard errors of a variance are 0.011 of it.
    torch.testing.assert_close(torch.cov(drawn[:, 0].T), COVARIANCE[0], rtol=0.08, atol=0.05)


def test_the_density_is_that_of_the_distribution():
    place = single(CENTER, COVARIANCE).draw(50, [1, 2])
    known = [multivariate_t(center, (COVARIANCE[0] * 4 / 6).numpy(), 6) for center in CENTER.numpy()]
    expected = np.stack([one.logpdf(place[:, blend]) for blend, one in enumerate(known)], 1)
    np.testing.assert_allclose(single(CENTER, COVARIANCE).log_prob(place), expected)


def test_a_blend_has_its_own_draws():
    """The same seed gives the same draws, whatever is beside it."""
    both = single(CENTER, COVARIANCE).draw(10, [5, 6])
    alone = single(CENTER[1:], COVARIANCE[1:]).draw(10, [6])
    torch.testing.assert_close(both[:, 1:], alone)
    assert not torch.equal(both, single(CENTER, COVARIANCE).draw(10, [5, 7]))


def test_the_way_to_other_moments():
    """As many effective draws as the mixture is worth go half of the way, and none nowhere."""
    drawn = single(CENTER + 4, 3 * COVARIANCE).draw(HALF_WAY, [1, 2])
    weight = torch.tensor([[0.0, 1 / HALF_WAY]]).double().expand(HALF_WAY, 2)
    moved = single(CENTER, COVARIANCE).moved(drawn, weight)
    torch.testing.assert_close(moved.mean[0, 0], CENTER[0])
    torch.testing.assert_close(moved.covariance[0, 0], COVARIANCE[0])
    torch.testing.assert_close(moved.mean[0, 1], (CENTER[1] + drawn[:, 1].mean(0)) / 2)
    moments = torch.cov(drawn[:, 1].T, correction=0)
    torch.testing.assert_close(moved.covariance[0, 1], (COVARIANCE[1] + moments) / 2)


@pytest.fixture
def mixture():
    """Two modes; the second blend has the first one alone."""
    share = torch.tensor([[0.25, 1.0], [0.75, 0.0]]).double()
    return Mixture(torch.stack([CENTER, CENTER + 20]), torch.stack([COVARIANCE, 0.5 * COVARIANCE]), share)


def test_a_mixture_is_drawn_from_by_its_shares(mixture):
    drawn = mixture.draw(4000, [1, 2])
    assert (drawn[..., 0] > 10).double().mean(0).tolist() == [0.75, 0.0]
    torch.testing.assert_close(drawn[:, 1], single(CENTER, COVARIANCE).draw(4000, [1, 2])[:, 1])
    torch.testing.assert_close(mixture.draw(100, [1, 2])[:, 1:], mixture.select([1]).draw(100, [2]))


def test_the_density_of_a_mixture(mixture):
    drawn = mixture.draw(200, [1, 2])
    each = [single(*moments).log_prob(drawn).exp() for moments in zip(mixture.mean, mixture.covariance, strict=True)]
    torch.testing.assert_close(
        mixture.log_prob(drawn).exp(),
        0.25 * each[0] * torch.tensor([1.0, 4.0]) + 0.75 * each[1] * torch.tensor([1.0, 0.0]),
    )


def test_weights_are_divided_among_the_modes(mixture):
    """In proportion to their densities: halfway between two modes of one width to their shares."""
    even = Mixture(torch.stack([CENTER, CENTER + 2]), COVARIANCE.expand(2, 2, 3, 3), mixture.share)
    each = even.divided((CENTER + 1)[None], torch.tensor([[0.5, 2.0]]).double())
    torch.testing.assert_close(each[:, 0], torch.tensor([[0.125, 2.0], [0.375, 0.0]]).double())
    drawn = mixture.draw(50, [1, 2])
    weight = torch.linspace(0, 1, 100).double().reshape(50, 2)
    torch.testing.assert_close(mixture.divided(drawn, weight).sum(0), weight)


def test_some_blends_of_a_mixture(mixture):
    drawn = mixture.draw(50, [1, 2])
    torch.testing.assert_close(mixture.select(np.array([1])).log_prob(drawn[:, 1:]), mixture.log_prob(drawn)[:, 1:])


def test_a_mixture_learns_shares_and_moments(mixture):
    """The target: both modes as heavy as each other, the second a little aside. A blend without weights stays."""
    drawn = mixture.draw(20_000, [1, 2])
    second = drawn[:, 0, 0] > 10
    target = single(CENTER[:1] + 20.5, 0.5 * COVARIANCE[:1]).log_prob(drawn[:, :1])[:, 0]
    target = torch.where(second, target, single(CENTER, COVARIANCE).log_prob(drawn)[:, 0])
    weight = (target - mixture.log_prob(drawn)[:, 0]).exp()
    weight = torch.stack([weight / weight.sum(), torch.zeros_like(weight)], 1)
    moved = mixture.moved(drawn, weight)
    # The 5,000 and 15,000 draws, of which no less than a third is effective, give a share to 0.01.
    torch.testing.assert_close(moved.share[:, 0], torch.tensor([0.5, 0.5]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(moved.share[:, 1], mixture.share[:, 1])
    torch.testing.assert_close(moved.mean[1, 0], CENTER[0] + 20.5, atol=0.1, rtol=0)
    torch.testing.assert_close(moved.mean[0, 0], CENTER[0], atol=0.1, rtol=0)
    torch.testing.assert_close(moved.mean[0, 1], CENTER[1])


def test_refuses_what_is_no_covariance():
    with pytest.raises(torch.linalg.LinAlgError):
        single(CENTER, -COVARIANCE).draw(2, [1, 2])
