import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy.stats import chi2, norm

from probdeblend.networks.composite import Blend2Flux
from probdeblend.networks.flexible import MixtureHead, SplineHead, TotalRatioHead
from probdeblend.networks.heads import NormalHead

HEADS = [MixtureHead, SplineHead]
both = pytest.mark.parametrize("head", HEADS)


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


@both
@pytest.mark.parametrize("fluxes", [1, 2, 14])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_shapes(head, batch, fluxes):
    network = head(5, fluxes)
    numbers = network.numbers(torch.randn(batch, 5), torch.zeros(batch, fluxes))
    assert numbers.shape == (batch, network.count)
    exact = network.distribution(numbers)
    assert exact.batch_shape == (batch,)
    assert exact.event_shape == (fluxes,)
    draws = network.sample(numbers, 3)
    assert draws.shape == (3, batch, fluxes)
    if batch == 0 and head is MixtureHead:
        # PyTorch's normal distribution has no density of nothing.
        return
    assert exact.log_prob(draws).shape == (3, batch)
    passes = torch.stack([numbers, numbers])
    assert network.sample(passes, 4).shape == (4, 2, batch, fluxes)
    assert network.distribution(passes).log_prob(draws[0]).shape == (2, batch)


@both
def test_locations_are_counted_from_the_start(head):
    network = bent(head)
    features, start = torch.randn(4, 3), torch.randn(4, 2)
    values = torch.randn(4, 2)
    torch.testing.assert_close(network(features, start).log_prob(values + start), network(features).log_prob(values))


@pytest.mark.parametrize("head", [*HEADS, TotalRatioHead])
def test_gradient_reaches_every_parameter(head):
    torch.manual_seed(0)
    network = Blend2Flux(first_filters=4, hidden=32, dropout=0.0, head=head)
    network(3 * torch.randn(4, 1, 128, 128)).flux.log_prob(torch.randn(4, 2)).mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def _as_normal(network):
    """The normal head that a head is before its splines or further components change anything."""
    normal = NormalHead(network.out.in_features)
    with torch.no_grad():
        normal.out.weight.copy_(network.out.weight[: normal.count])
    return normal


def test_spline_head_starts_as_a_normal_head():
    torch.manual_seed(0)
    network, features = SplineHead(50), torch.randn(6, 50)
    normal = _as_normal(network)
    # Beyond five standard deviations too.
    truth = normal(features).sample((500,)) * torch.tensor([[1.0, 1.0], [1.0, 3.0]]).repeat(250, 1)[:, None]
    expected = normal(features).log_prob(truth)
    assert (network(features).log_prob(truth) - expected)[::2].abs().mean() < 0.05
    with torch.no_grad():
        network.weight.zero_()
    torch.testing.assert_close(network(features).log_prob(truth), expected, atol=1e-4, rtol=1e-4)


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


@both
def test_density_integrates_to_one(head):
    network = bent(head)
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


@both
def test_draws_follow_the_density(head, false_alarm):
    network = bent(head)
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


@both
@pytest.mark.slow
def test_score_of_draws_is_zero_on_average_in_14_dimensions(head, false_alarm):
    # The gradient of log q by what q depends on has mean zero over draws from q, and from nothing else in general.
    network = bent(head, 14)
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


@both
def test_gradients_of_the_density(head):
    network = bent(head, 3)
    numbers = bent_numbers(network, 2).requires_grad_()
    value = (network.sample(numbers.detach(), 1)[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda n, v: network.distribution(n).log_prob(v), (numbers, value))


@pytest.mark.slow
def test_gradients_of_reparameterized_draws():
    network = bent(SplineHead, 3)

    def draw(numbers):
        torch.manual_seed(4)
        return network.distribution(numbers).rsample((5,))

    assert torch.autograd.gradcheck(draw, (bent_numbers(network, 2).requires_grad_(),))
    draw(bent_numbers(network, 2)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (network.earlier, network.weight, network.bias))


def test_far_draws_keep_finite_gradients():
    network = bent(SplineHead)
    numbers = bent_numbers(network, 1).float().requires_grad_()
    far = torch.tensor([[1e4, -1e4], [0.0, 0.0], [30.0, -30.0]])
    network.distribution(numbers).log_prob(far).sum().backward()
    assert numbers.grad.isfinite().all()
    assert network.weight.grad.isfinite().all()


@both
def test_guide_under_a_plate(head):
    network = bent(head)
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


@pytest.mark.slow
def test_elbo_trains_the_spline_head():
    # The divergence, zero at best, of the guide from a model without data is what the ELBO loses.
    torch.manual_seed(2)
    network = SplineHead(1)
    target = dist.MultivariateNormal(torch.tensor([0.5, -0.5]), torch.tensor([[0.5, -0.3], [-0.3, 0.4]]))

    def model():
        with pyro.plate("draw", 500):
            pyro.sample("flux", target)

    def guide():
        with pyro.plate("draw", 500):
            pyro.sample("flux", network(torch.ones(500, 1)))

    def divergence():
        exact = network(torch.ones(1, 1))
        draws = exact.sample((5000,))
        return (exact.log_prob(draws) - target.log_prob(draws)).mean().item()

    assert divergence() > 0.5
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for _ in range(80):
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(model, guide).backward()
        optimizer.step()
        schedule.step()
    assert divergence() < 0.05


@both
def test_loaded_head_draws_the_same(head, tmp_path):
    network = bent(head)
    torch.save(network.state_dict(), tmp_path / "head.pt")
    other = head(3)
    other.load_state_dict(torch.load(tmp_path / "head.pt"))
    draws = []
    for each in (network, other):
        torch.manual_seed(8)
        draws.append(each.sample(each.numbers(torch.ones(2, 3), torch.zeros(2, 2)), 5))
    assert torch.equal(*draws)


def test_half_precision_leaves_the_splines_alone():
    network = bent(SplineHead)
    numbers = bent_numbers(network, 4).float()
    value = network.sample(numbers, 1)[0]
    expected = network.distribution(numbers).log_prob(value)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(4, 3)).log_prob(value).dtype == torch.float32
        assert torch.equal(network.distribution(numbers).log_prob(value), expected)
        torch.manual_seed(0)
        half = network.sample(numbers, 3)
    torch.manual_seed(0)
    assert torch.equal(network.sample(numbers, 3), half)


@pytest.mark.gpu
@both
def test_gpu_head_draws_from_numbers_on_the_cpu(head):
    network = bent(head)
    numbers = bent_numbers(network, 2).float()
    torch.manual_seed(0)
    draws = network.sample(numbers, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(network.cuda().sample(numbers, 3), draws)


@both
def test_exact_posterior_of_a_linear_model(head):
    # x = A theta + noise with a standard normal prior: the posterior is normal, its mean linear in x.
    matrix, noise = torch.tensor([[1.0, 0.8], [-0.4, 0.6], [0.5, 0.5]]), 0.5

    def simulate(count):
        theta = torch.randn(count, 2)
        return theta @ matrix.T + noise * torch.randn(count, 3), theta

    torch.manual_seed(3)
    network = trained(head(3), simulate, 250)
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
def test_bent_heads_beat_the_normal_head_on_a_bent_target_with_two_modes():
    def simulate(count):
        features = torch.rand(count, 1) * 2 - 1
        sign = 2 * torch.randint(2, (count, 1)) - 1
        first = 0.6 * sign + 0.3 * features + 0.15 * torch.randn(count, 1)
        second = first.square() - features + 0.15 * torch.randn(count, 1)
        return features, torch.cat([first, second], 1)

    torch.manual_seed(4)
    features, truth = simulate(5000)
    score = {}
    for head in (NormalHead, *HEADS):
        network = trained(head(1), simulate, 250)
        with torch.no_grad():
            score[head] = network(features).log_prob(truth)
    first, second = truth.unbind(1)
    modes = [norm.pdf(first, mode + 0.3 * features[:, 0], 0.15) for mode in (0.6, -0.6)]
    exact = np.log(0.5 * sum(modes)) + norm.logpdf(second, first.square() - features[:, 0], 0.15)
    # The mixture can follow the curved dependence on the features only roughly.
    for head, tolerance in ((MixtureHead, 0.3), (SplineHead, 0.15)):
        gain, lost = score[head] - score[NormalHead], exact - score[head].numpy()
        # The two modes alone are worth nearly log 2. Four standard errors are to either side.
        assert gain.mean() - 4 * gain.std() / len(gain) ** 0.5 > 0.8
        assert lost.mean() + 4 * lost.std() / len(lost) ** 0.5 < tolerance


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
    grid = torch.linspace(-8, 8, 801).double()
    mesh = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)[..., None, :]
    density = network.distribution(numbers).log_prob(mesh).exp()
    assert density.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_mean_of_the_log_fluxes(false_alarm):
    """Of total and ratio it is no closed form: draws have it, and gradients come back from it."""
    network = bent(TotalRatioHead)
    features = torch.randn(3, 3)
    answer = network(features, torch.tensor([5.0, 3.0]))
    draws = answer.sample((100_000,)).double()
    error = (draws.mean(0) - answer.mean) / (draws.std(0) / 100_000**0.5)
    assert error.abs().max() < norm.isf(false_alarm / 12)
    answer.mean.sum().backward()
    assert network.out.weight.grad.abs().sum() > 0


def test_a_division_that_nobody_knows_leaves_the_total_known():
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


def test_errors():
    with pytest.raises(ValueError, match="fluxes must be 2 to have a ratio, got 3"):
        TotalRatioHead(3, 3)
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        MixtureHead(3, components=0)
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        SplineHead(3, bins=1)
