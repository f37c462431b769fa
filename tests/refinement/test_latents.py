"""Unknowns of sources and their prior."""

import math

import pytest
import torch

from probdeblend.refinement.latents import SHAPE_RANGE, FluxPrior, ShapePrior, Within
from probdeblend.simulation import Frame, Population


def test_within_maps_any_number_into_the_range():
    within = Within(-2.0, 3.0, 0.5)
    values = torch.tensor([-1e6, -4.0, -1.4, 0.0, 2.4, 2.6, 50.0], dtype=torch.float64, requires_grad=True)
    found = within(values)
    assert ((found > -2) & (found < 3)).all()
    assert (found.diff() > 0).all()
    assert torch.equal(found[2:5], values[2:5])
    assert torch.allclose(Within(-2.0, 3.0, 0.5).inv(found[1:].detach()), values[1:], rtol=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert torch.allclose(within.log_abs_det_jacobian(values, found), slope.log())


def test_shapes_have_the_moments_of_the_population():
    """Of galaxies drawn by the population's program; the errors are 0.01."""
    population, prior = Population.default(), ShapePrior(Population.default(), 0.1)
    frame = Frame((128, 128), 0.1, 3.0)
    galaxies = population.replace(star_fraction=0.0).sample(10000, frame, seed=3, number=1)
    q = galaxies["axis_ratio"]
    ln_radius = (galaxies["half_light_radius"] * q.sqrt() / 0.1).log()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = prior.sample((10000,))
    assert torch.isfinite(prior.log_prob(drawn)).all()
    assert float(drawn[:, 0].mean()) == pytest.approx(float(ln_radius.mean()), abs=0.05)
    assert float(drawn[:, 0].std()) == pytest.approx(float(ln_radius.std()), abs=0.05)
    ellipticity = (1 - q) / (1 + q)
    assert float(drawn[:, 1:3].square().sum(-1).mean()) == pytest.approx(float(ellipticity.square().mean()), abs=0.01)
    assert drawn[:, 1:3].mean(0).abs().max() < 0.02
    assert 0.1 < float((drawn[:, 3] > math.log(3.0)).float().mean()) < 0.3


def test_the_density_of_shapes_is_that_of_draws():
    prior = ShapePrior(Population.default(), 0.1)
    low, high, _ = (torch.tensor(ends) for ends in SHAPE_RANGE)
    uniform = low + (high - low) * torch.rand(100000, 4, generator=torch.Generator().manual_seed(2))
    weight = prior.log_prob(uniform).exp()
    assert float((high - low).prod() * weight.mean()) == pytest.approx(1, abs=0.03)


def test_no_density_beyond_the_range():
    prior = ShapePrior(Population.default(), 0.1)
    assert prior.log_prob(torch.tensor([0.5, 0.0, 0.0, 2.0])) == -math.inf
    assert FluxPrior(1).log_prob(torch.tensor([[18.0, 16.0]])) == -math.inf


def test_round_galaxies_have_a_finite_density_and_gradient():
    value = torch.tensor([0.5, 0.0, 0.0, 0.5], requires_grad=True)
    density = ShapePrior(Population.default(), 0.1).log_prob(value)
    density.backward()
    assert torch.isfinite(density)
    assert torch.isfinite(value.grad).all()


def test_fluxes_of_a_source_are_bright_or_faint_in_all_bands():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = FluxPrior(3).sample((4000,))
    total = drawn[..., 1]
    assert float(torch.corrcoef(total.T)[0, 1]) == pytest.approx(0.86, abs=0.03)
    aperture = drawn[..., 0] - total
    assert float(aperture.median()) == pytest.approx(-0.1, abs=0.01)
