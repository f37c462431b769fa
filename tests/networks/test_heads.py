"""Heads: their distributions, draws and gradients, and what they learn."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy.stats import chi2, norm

from probdeblend.networks import Blend2Flux, MixtureHead, NormalHead, PointHead, StudentTHead, TotalRatioHead


def bent(head, fluxes=2, seed=1):
    """A head of three features whose parameters are far from those at the start."""
    torch.manual_seed(seed)
    network = head(3, fluxes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def bent_numbers(network, blends):
    """Numbers of random blends in double precision."""
    return network.numbers(torch.randn(blends, 3), torch.zeros(blends, network.fluxes)).detach().double()


def trained(network, simulate, steps):
    """Maximum likelihood on fresh simulations, the rate falling to zero."""
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        features, truth = simulate(256)
        optimizer.zero_grad()
        (-network(features).log_prob(truth).mean()).backward()
        optimizer.step()
        schedule.step()
    return network


@pytest.mark.parametrize("fluxes", [1, 2, 14])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_shapes(batch, fluxes):
    network = MixtureHead(5, fluxes)
    numbers = network.numbers(torch.randn(batch, 5), torch.zeros(batch, fluxes))
    assert numbers.shape == (batch, network.count)
    exact = network.distribution(numbers)
    assert exact.batch_shape == (batch,)
    assert exact.event_shape == (fluxes,)
    draws = network.sample(numbers, 3)
    assert draws.shape == (3, batch, fluxes)
    if batch == 0:
        # PyTorch's normal distribution cannot evaluate the density of an empty batch.
        return
    assert exact.log_prob(draws).shape == (3, batch)
    passes = torch.stack([numbers, numbers])
    assert network.sample(passes, 4).shape == (4, 2, batch, fluxes)
    assert network.distribution(passes).log_prob(draws[0]).shape == (2, batch)


def test_locations_are_counted_from_the_start():
    network = bent(MixtureHead)
    features, start = torch.randn(4, 3), torch.randn(4, 2)
    values = torch.randn(4, 2)
    torch.testing.assert_close(network(features, start).log_prob(values + start), network(features).log_prob(values))


@pytest.mark.parametrize("head", [MixtureHead, NormalHead, StudentTHead, TotalRatioHead])
def test_gradient_reaches_every_parameter(head):
    torch.manual_seed(0)
    network = Blend2Flux(first_filters=4, hidden=32, dropout=0.0, head=head)
    network(3 * torch.randn(4, 1, 128, 128)).flux.log_prob(torch.randn(4, 2)).mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def _as_normal(network):
    """The normal head of the same weights as a mixture of one component."""
    normal = NormalHead(network.out.in_features)
    with torch.no_grad():
        normal.out.weight.copy_(network.out.weight[: normal.count])
    return normal


def test_one_component_is_a_normal_head():
    network, features = MixtureHead(50, components=1), torch.randn(6, 50)
    normal = _as_normal(network)
    truth = normal(features).sample((100,))
    torch.testing.assert_close(network(features).log_prob(truth), normal(features).log_prob(truth))


def test_components_start_apart():
    torch.manual_seed(0)
    location = MixtureHead(4)(torch.zeros(1, 4)).component_distribution.loc[0]
    assert torch.pdist(location).min() > 0.02
    assert location.abs().max() < 4 * 0.3


def test_density_integrates_to_one():
    network = bent(MixtureHead)
    for numbers in bent_numbers(network, 3):
        exact = network.distribution(numbers)
        draws = exact.sample((2000,))
        axes = [
            torch.linspace(-9, 9, 220, dtype=torch.double) * spread + middle
            for middle, spread in zip(draws.mean(0), draws.std(0), strict=True)
        ]
        cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
        with torch.no_grad():
            density = exact.log_prob(torch.cartesian_prod(*axes)).exp()
        assert density.sum() * cell == pytest.approx(1, abs=2e-3)


def _cells(distribution, draws, *, cells=12, inner=16):
    """Counts and expectations in a grid of cells that the density gives, and outside it."""
    low, high = draws.quantile(0.005, 0), draws.quantile(0.995, 0)
    middles = (torch.arange(cells * inner, dtype=torch.double) + 0.5) / (cells * inner)
    axes = [a + (b - a) * middles for a, b in zip(low, high, strict=True)]
    size = ((high - low) / (cells * inner)).prod()
    with torch.no_grad():
        density = distribution.log_prob(torch.cartesian_prod(*axes)).exp().reshape(cells, inner, cells, inner)
    expected = ((density.sum((1, 3)) * size).flatten() * len(draws)).numpy()
    edges = [np.linspace(a.item(), b.item(), cells + 1) for a, b in zip(low, high, strict=True)]
    observed = np.histogram2d(*draws.T.numpy(), bins=edges)[0].flatten()
    kept = expected > 10
    observed, expected = observed[kept], expected[kept]
    return np.append(observed, len(draws) - observed.sum()), np.append(expected, len(draws) - expected.sum())


def test_draws_follow_the_density(false_alarm):
    network = bent(MixtureHead)
    numbers = bent_numbers(network, 2)
    torch.manual_seed(5)
    for blend in range(2):
        exact = network.distribution(numbers[blend])
        draws = network.sample(numbers[blend], 40_000)
        observed, expected = _cells(exact, draws)
        distance = ((observed - expected) ** 2 / expected).sum()
        assert chi2.sf(distance, len(observed) - 1) > false_alarm
    # The test sees a shift of a tenth of the spread.
    observed, expected = _cells(exact, draws + 0.1 * draws.std(0))
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1) < false_alarm


@pytest.mark.slow
def test_score_of_draws_is_zero_on_average_in_14_dimensions(false_alarm):
    # The gradient of log q by what q depends on has mean zero over draws from q, and from nothing else in general.
    network = bent(MixtureHead, 14)
    numbers = bent_numbers(network, 1).expand(4000, -1)
    torch.manual_seed(6)
    draws = network.distribution(numbers).sample()
    free = numbers.clone().requires_grad_()
    network.distribution(free).log_prob(draws).sum().backward()
    score = free.grad
    deviation = score.mean(0) / (score.std(0) / len(score) ** 0.5)
    limit = norm.isf(false_alarm / 2 / len(deviation))
    assert deviation.abs().max() < limit
    free.grad = None
    network.distribution(free).log_prob(draws * 1.05).sum().backward()
    assert (free.grad.mean(0) / (score.std(0) / len(score) ** 0.5)).abs().max() > limit


def test_gradients_of_the_density():
    network = bent(MixtureHead, 3)
    numbers = bent_numbers(network, 2).requires_grad_()
    value = (network.sample(numbers.detach(), 1)[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda n, v: network.distribution(n).log_prob(v), (numbers, value))


def test_guide_under_a_plate():
    network = bent(MixtureHead)
    features = torch.randn(7, 3)

    def guide():
        with pyro.plate("blend", 7):
            return pyro.sample("flux", network(features))

    truth = torch.randn(7, 2)
    site = poutine.trace(poutine.condition(guide, data={"flux": truth})).get_trace().nodes["flux"]
    torch.testing.assert_close(site["fn"].log_prob(site["value"]), network(features).log_prob(truth))
    with pyro.plate("particle", 5, dim=-2):
        trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["flux"]["value"].shape == (5, 7, 2)
    assert trace.nodes["flux"]["log_prob"].shape == (5, 7)
    assert trace.nodes["flux"]["value"].unique().numel() == 70


def test_loaded_head_draws_the_same(tmp_path):
    network = bent(MixtureHead)
    torch.save(network.state_dict(), tmp_path / "head.pt")
    other = MixtureHead(3)
    other.load_state_dict(torch.load(tmp_path / "head.pt"))
    draws = []
    for each in (network, other):
        torch.manual_seed(8)
        draws.append(each.sample(each.numbers(torch.ones(2, 3), torch.zeros(2, 2)), 5))
    assert torch.equal(*draws)


@pytest.mark.gpu
def test_gpu_head_draws_from_numbers_on_the_cpu():
    network = bent(MixtureHead)
    numbers = bent_numbers(network, 2).float()
    torch.manual_seed(0)
    draws = network.sample(numbers, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(network.cuda().sample(numbers, 3), draws)


def test_exact_posterior_of_a_linear_model():
    # x = A theta + noise with a standard normal prior: the posterior is normal, its mean linear in x.
    matrix, noise = torch.tensor([[1.0, 0.8], [-0.4, 0.6], [0.5, 0.5]]), 0.5

    def simulate(count):
        theta = torch.randn(count, 2)
        return theta @ matrix.T + noise * torch.randn(count, 3), theta

    torch.manual_seed(3)
    network = trained(MixtureHead(3), simulate, 250)
    covariance = torch.linalg.inv(torch.eye(2) + matrix.T @ matrix / noise**2)
    features, _ = simulate(50)
    mean = features @ matrix @ covariance / noise**2
    with torch.no_grad():
        draws = network(features).sample((2000,))
    spread = covariance.diagonal().sqrt()
    # In units of the posterior's spread; the means of 2000 draws have standard errors of 0.022 each.
    off = (draws.mean(0) - mean) / spread
    assert off.square().mean().sqrt() < 0.2
    centered = (draws - draws.mean(0)) / spread
    found = torch.einsum("nbi,nbj->bij", centered, centered) / len(draws)
    expected = covariance / spread[:, None] / spread
    torch.testing.assert_close(found.mean(0), expected, atol=0.1, rtol=0)


@pytest.mark.slow
def test_a_mixture_beats_the_normal_head_on_a_bent_target_with_two_modes():
    def simulate(count):
        features = torch.rand(count, 1) * 2 - 1
        sign = 2 * torch.randint(2, (count, 1)) - 1
        first = 0.6 * sign + 0.3 * features + 0.15 * torch.randn(count, 1)
        second = first.square() - features + 0.15 * torch.randn(count, 1)
        return features, torch.cat([first, second], 1)

    torch.manual_seed(4)
    features, truth = simulate(5000)
    score = {}
    for head in (NormalHead, MixtureHead):
        network = trained(head(1), simulate, 250)
        with torch.no_grad():
            score[head] = network(features).log_prob(truth)
    first, second = truth.unbind(1)
    modes = [norm.pdf(first, mode + 0.3 * features[:, 0], 0.15) for mode in (0.6, -0.6)]
    exact = np.log(0.5 * sum(modes)) + norm.logpdf(second, first.square() - features[:, 0], 0.15)
    # The mixture can follow the curved dependence on the features only roughly.
    gain, lost = score[MixtureHead] - score[NormalHead], exact - score[MixtureHead].numpy()
    # The two modes alone are worth nearly log 2. Four standard errors are to either side.
    assert gain.mean() - 4 * gain.std() / len(gain) ** 0.5 > 0.8
    assert lost.mean() + 4 * lost.std() / len(lost) ** 0.5 < 0.3


@pytest.mark.parametrize("batch", [1, 7])
def test_total_and_ratio_have_the_shapes_of_any_head(batch):
    network = bent(TotalRatioHead)
    numbers = network.numbers(torch.randn(batch, 3), torch.zeros(batch, 2))
    draws = network.sample(torch.stack([numbers, numbers]), 4)
    assert draws.shape == (4, 2, batch, 2)
    exact = network.distribution(numbers)
    assert (exact.batch_shape, exact.event_shape) == ((batch,), (2,))
    assert exact.log_prob(draws[:, 0]).shape == (4, batch)


def test_total_and_ratio_make_both_fluxes():
    network, start = TotalRatioHead(3, components=1), torch.tensor([[1.0, 2.0], [5.0, 3.0]])
    total, ratio = network.numbers(torch.zeros(2, 3), start)[:, :2].unbind(-1)
    torch.testing.assert_close(total, start.logsumexp(-1))
    torch.testing.assert_close(ratio, start[:, 1] - start[:, 0])
    torch.testing.assert_close(network.division(torch.stack([total, ratio], -1)), start)
    torch.testing.assert_close(network.numbers(torch.zeros(1, 3), 0.0)[0, :2], torch.tensor([math.log(2), 0.0]))


def test_densities_of_total_and_ratio_carry_over_as_they_are():
    network = bent(TotalRatioHead)
    numbers, pair = bent_numbers(network, 1), torch.tensor([[0.4, -0.9]]).double()
    jacobian = torch.autograd.functional.jacobian(network.division, network.division.inv(pair)[0])
    assert torch.linalg.det(jacobian) == pytest.approx(1.0)
    grid = torch.linspace(-8, 8, 401).double()
    mesh = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)[..., None, :]
    density = network.distribution(numbers).log_prob(mesh).exp()
    assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_mean_of_the_log_fluxes(false_alarm):
    """It has no closed form for total and ratio: it is that of draws, and gradients pass through it."""
    network = bent(TotalRatioHead)
    features = torch.randn(3, 3)
    answer = network(features, torch.tensor([5.0, 3.0]))
    draws = answer.sample((100_000,)).double()
    error = (draws.mean(0) - answer.mean) / (draws.std(0) / 100_000**0.5)
    assert error.abs().max() < norm.isf(false_alarm / 12)
    answer.mean.sum().backward()
    assert network.out.weight.grad.abs().sum() > 0


def test_an_unknown_division_leaves_the_total_known():
    """Ratios over a factor of thirty, a total known to a percent: no ellipse of log-fluxes has both."""
    network = TotalRatioHead(1, components=1)
    scale = [math.log(math.expm1(value)) - math.log(math.expm1(0.3)) for value in (0.01, 1.0)]
    torch.manual_seed(0)
    draws = network.sample(torch.tensor([[7.0, 0.0, *scale, 0.0, 0.0]]), 20_000)[:, 0]
    total, ratio = draws.logsumexp(-1), draws[:, 1] - draws[:, 0]
    # The standard error of such a spread is half a percent.
    assert total.std() == pytest.approx(0.011, rel=0.02)
    assert ratio.std() == pytest.approx(1.001, rel=0.02)
    ellipse = torch.distributions.MultivariateNormal(draws.mean(0), torch.cov(draws.T)).sample((20_000,))
    assert ellipse.logsumexp(-1).std() > 5 * total.std()


def test_head_distributions():
    numbers = torch.zeros(5, 5)
    numbers[:, 4] = -0.5
    normal = NormalHead(3).distribution(numbers)
    scale = normal.scale_tril[0]
    assert scale[0, 0] == pytest.approx(0.301, abs=1e-3)
    assert scale[1, 0] == pytest.approx(-0.5 * scale[1, 1].item(), abs=1e-6)
    student = StudentTHead(3).distribution(torch.zeros(5, 6))
    assert (student.df > 3).all()
    assert PointHead(3)(torch.randn(4, 3), torch.ones(4, 2)).sample().shape == (4, 2)


def test_student_draws_stay_in_the_99_percent_region():
    torch.manual_seed(0)
    head = StudentTHead(3)
    numbers = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, -4.0]])
    exact = head.distribution(numbers)
    free, kept = exact.sample((20_000,)), head.sample(numbers, 20_000)
    assert kept.shape == (20_000, 1, 2)

    def radius(draws):
        whitened = torch.linalg.solve_triangular(exact.scale_tril, (draws - exact.loc)[..., None], upper=False)
        return whitened.square().sum((-2, -1)).flatten().sqrt()

    edge = radius(free).quantile(0.99)
    assert radius(kept).max() == pytest.approx(edge.item(), rel=0.1)
    assert radius(kept).median() == pytest.approx(radius(free).median().item(), rel=0.03)


def test_head_fits_a_correlated_gaussian():
    # Maximum likelihood must find mean and covariance: the head has no blind spot.
    torch.manual_seed(1)
    true = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -1.0]), torch.tensor([[0.04, -0.02], [-0.02, 0.09]])
    )
    data = true.sample((1000,))
    head = NormalHead(1)
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -head(torch.ones(len(data), 1)).log_prob(data).mean()
        loss.backward()
        optimizer.step()
    fitted = head(torch.ones(1, 1))
    assert torch.allclose(fitted.mean[0], data.mean(0), atol=0.01)
    assert torch.allclose(fitted.covariance_matrix[0], torch.cov(data.T), atol=0.006)


def test_errors():
    with pytest.raises(ValueError, match="fluxes must be 2 to have a ratio, got 3"):
        TotalRatioHead(3, 3)
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        MixtureHead(3, components=0)
