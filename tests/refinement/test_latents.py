"""Latents describe the galaxies that the population has, and their densities are those of its draws."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from probdeblend.refinement.latents import LATENTS, SHAPE, GalaxyPrior, PositionPrior, to_components, to_latents
from probdeblend.scene import STAMP_CENTER, Instrument
from probdeblend.simulation.prior import Prior

ZERO_POINT = Instrument.candels_f160w().zero_point
NOISE = 4e-3


@pytest.fixture(scope="module")
def prior():
    return replace(Prior.default(), smooth=True)


@pytest.fixture(scope="module")
def galaxy_prior(prior):
    return GalaxyPrior(prior, ZERO_POINT, torch.full((1,), math.log(NOISE)))


@pytest.fixture(scope="module")
def drawn(galaxy_prior):
    torch.manual_seed(1)
    return galaxy_prior.sample((60_000,))[:, 0]


def test_components_come_back(prior):
    pairs = prior.sample(200, seed=1)
    components = prior.components(pairs, Instrument.candels_f160w(), seed=0)
    latents = to_latents(components, sky_rms=torch.full((200,), NOISE))
    again = to_components(latents)
    assert latents.shape == (200, 2, len(LATENTS))
    for field in fields(again):
        if field.name not in ("flux", "angle", "present"):
            given = getattr(components, field.name)[..., :1]
            torch.testing.assert_close(getattr(again, field.name), given, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.flux * NOISE, components.flux[..., :1], rtol=1e-4, atol=1e-6)
    turned = (again.angle - components.angle[..., :1]).remainder(math.pi)
    clear = components.axis_ratio[..., :1] < 0.95
    assert float(torch.minimum(turned, math.pi - turned)[clear].max()) < 1e-3
    assert bool(again.present.all())


def test_the_middle_of_the_stamp():
    components = to_components(torch.zeros(1, 1, len(LATENTS)), present=torch.tensor([[False]]))
    assert float(components.x) == float(components.y) == STAMP_CENTER
    assert float(components.sersic_index) == pytest.approx(3.25)
    assert float(components.axis_ratio) == pytest.approx(1, abs=1e-5)
    assert not bool(components.present)


def test_the_density_integrates_to_one(galaxy_prior, drawn):
    """The mean of h / p over draws of p is one for any density h inside its support."""
    inner = torch.distributions.MultivariateNormal(drawn.mean(0), torch.cov(drawn.T) * 0.3)
    ratio = (inner.log_prob(drawn) - galaxy_prior.log_prob(drawn)).exp()
    ratio = torch.where(galaxy_prior.log_prob(drawn).isfinite(), ratio, 0.0)
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.02
    # Draws at the floor of the radii, two in a hundred, lie denser than the model says.
    assert abs(ratio.mean() - 1) < 4 * error + 0.01


def test_draws_follow_the_density(galaxy_prior, drawn, false_alarm):
    """Moving draws by a Metropolis step that leaves the density as it is leaves their distribution as it is."""
    torch.manual_seed(2)
    inside = drawn[(drawn[:, 1] > math.log(0.08)) & galaxy_prior.log_prob(drawn).isfinite()][:20_000]
    half = len(inside) // 2
    place, reference = inside[:half].clone(), inside[half:]
    scale = torch.cov(drawn.T).diagonal().sqrt() * 0.5
    for _ in range(20):
        ahead = place + scale * torch.randn_like(place)
        ratio = galaxy_prior.log_prob(ahead) - galaxy_prior.log_prob(place)
        taken = (torch.rand(half).log() < ratio) & (ahead[:, 1] > math.log(0.08))
        place = torch.where(taken[:, None], ahead, place)
    for column in range(len(SHAPE)):
        assert (place[:, column] != inside[:half, column]).float().mean() > 0.9
        assert stats.ks_2samp(place[:, column], reference[:, column]).pvalue > false_alarm / len(SHAPE)


def test_limits_of_the_population(galaxy_prior, prior):
    faint = (ZERO_POINT - prior.magnitude_range[1] - 0.1) * math.log(10) / 2.5 - math.log(NOISE)
    value = torch.tensor([[faint, math.log(0.3), 0.0, 0.1, 0.0], [faint + 0.3, math.log(0.3), 0.0, 0.1, 0.0]])
    assert galaxy_prior.log_prob(value).isfinite().tolist() == [False, True]


def test_gradients_are_finite_and_right(galaxy_prior, drawn):
    place = drawn[:50].clone().requires_grad_()
    value = galaxy_prior.log_prob(place)
    value.sum().backward()
    assert bool(place.grad[value.isfinite()].isfinite().all())
    step = torch.zeros(5)
    step[2] = 1e-2
    with torch.no_grad():
        slope = (galaxy_prior.log_prob(place + step) - galaxy_prior.log_prob(place - step)) / 2e-2
    smooth = slope.isfinite() & value.isfinite() & (slope.abs() < 20)
    assert smooth.sum() > 25
    error = (slope - place.grad[:, 2])[smooth].abs()
    assert float(error.median()) < 0.01


def test_positions_of_pairs(prior):
    """The density of a companion's place, over a grid around it, integrates to one; draws are inside."""
    major = torch.tensor([[0.5, 0.4]])
    places = PositionPrior(prior, major)
    torch.manual_seed(0)
    drawn = places.sample((4000,))[:, 0]
    assert bool(places.log_prob(drawn).isfinite().all())
    axis = torch.arange(-60.0, 60.0, 0.25) + 0.125
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([torch.zeros(x.numel(), 2), torch.stack([x.flatten(), y.flatten()], -1)], 1)
    total = places.log_prob(grid).exp().sum() * 0.25**2 * 4
    assert float(total) == pytest.approx(1, abs=0.01)
    distance = (drawn[:, 1] - drawn[:, 0]).norm(dim=-1)
    near = float((distance < 4 * 0.4 / 0.06).float().mean())
    share = 1 - prior.anywhere_fraction
    assert share - 0.03 < near < share + 0.15
    outside = drawn.clone()
    outside[:, 0] += 3
    assert not bool(places.log_prob(outside).isfinite().any())


def test_batches_expand(galaxy_prior, prior):
    assert galaxy_prior.expand(torch.Size([3, 4])).sample().shape == (3, 4, 5)
    assert PositionPrior(prior, torch.ones(2, 3)).expand(torch.Size([5, 2])).sample().shape == (5, 2, 3, 2)
    with pytest.raises(ValueError, match="prior must have the rule of separation 'published', got 'anywhere'"):
        PositionPrior(replace(prior, separation="anywhere"), torch.ones(1, 2))


def test_types_are_summed_over(galaxy_prior, prior):
    """With spheroids alone no galaxy has an index below theirs."""
    alone = replace(prior, type_probabilities=(1.0, 0.0, 0.0, 0.0))
    spheroids = GalaxyPrior(alone, ZERO_POINT, torch.full((1,), math.log(NOISE)))
    index = math.log((1.2 - 0.5) / (6 - 1.2))
    value = torch.tensor([[7.0, math.log(0.3), index, 0.1, 0.0]])
    assert not bool(spheroids.log_prob(value).isfinite())
    assert bool(galaxy_prior.log_prob(value).isfinite())
    assert np.isfinite(float(spheroids.log_prob(value + torch.tensor([0, 0, 1.0, 0, 0]))))
