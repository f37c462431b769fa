"""What refinement draws from."""

import torch

from probdeblend.refinement.proposal import Mixture


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
