"""Unknowns of sources and their prior."""

import math

import pytest
import torch

from probdeblend.refinement.latents import SHAPE_RANGE, FluxPrior, ShapePrior, Within
from probdeblend.simulation import Population


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


def test_shapes_have_the_density_of_the_population():
    """Fractions of galaxies drawn by the population's program, and integrals of the density; the errors are 0.005."""
    prior = ShapePrior(Population.default(), 0.1)
    low, high, _ = (torch.tensor(ends) for ends in SHAPE_RANGE)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = prior.sample((30000,))
    assert torch.isfinite(prior.log_prob(drawn)).all()
    uniform = low + (high - low) * torch.rand(300000, 4, generator=torch.Generator().manual_seed(2))
    weight = prior.log_prob(uniform).exp()
    volume = float((high - low).prod())
    for inside in (
        lambda v: torch.ones_like(v[:, 0]),
        lambda v: v[:, 0] < 1.0,
        lambda v: v[:, 1:3].norm(dim=-1) > 0.2,
        lambda v: v[:, 3] < math.log(1.5),
        lambda v: (v[:, 3] > math.log(3.0)) & (v[:, 1:3].norm(dim=-1) > 0.25),
    ):
        integral = volume * float((weight * inside(uniform)).mean())
        assert integral == pytest.approx(float(inside(drawn).float().mean()), abs=0.03)


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
