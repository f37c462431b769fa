"""Proposals by variational inference: what is fitted, how well, and that draws are weighted to the same posterior."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import test_exact as exact
import torch
from scipy.stats import norm
from test_refine import near_pairs

from probdeblend.refinement.mode import find_mode
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.refine import refine
from probdeblend.refinement.support import Support
from probdeblend.refinement.variational import NormalGuide, Relaxed, fit_elbo
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

HST = Instrument.candels_f160w()


@pytest.fixture(scope="module")
def sersic():
    return BlendModel(Prior.default(), HST, size=32)


@pytest.fixture(scope="module")
def pairs(sersic):
    """Blends, and the mode of their posteriors with the precision there."""
    taken, unknown, start = near_pairs(sersic, 3, seed=4)
    with torch.no_grad():
        return taken, unknown, *find_mode(sersic, taken, start, steps=8)[:2]


def started(sersic, pairs):
    """The guide before it is fitted, and the density that it is fitted to."""
    taken, _, mode, precision = pairs
    covariance = torch.linalg.inv(precision)
    support = Support(sersic, taken, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    guide = NormalGuide(support, mode, covariance)
    with torch.no_grad():
        density = Relaxed(sersic, taken, support(guide.place(noise(256))))
    return guide, density


def noise(draws, seed=9):
    return torch.randn(draws, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(proposal):
    return NormalGuide(proposal.coordinates, proposal.center, proposal.covariance)


@pytest.fixture
def linear(monkeypatch):
    """A blend that is linear in its fluxes, with the central galaxy where the population has it, and its image."""
    monkeypatch.setattr(exact, "KNOWN", exact.KNOWN + 0.7 * torch.eye(16)[[1, 8]].sum(0))
    model = exact.KnownShapes(Prior.default(), HST.replace(exposure=math.inf), size=32)
    dark = Observed(torch.empty(0), torch.ones(2), torch.full((2,), math.inf))
    latents, sky_level, growth = model.split(model.draw_unknown(2, sky_rms=dark.sky_rms, seed=4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        image = model.noisy(model.light(latents, growth).sum(1), sky_level, dark).sample()
    return model, dark._replace(image=image)


@pytest.mark.slow
def test_it_finds_the_exact_posterior(linear, false_alarm):
    """Weighted draws to their noise, the fit itself nearly: a flux is normal, its logarithm is not quite."""
    model, observed = linear
    means, covariance = exact.exact_posterior(model, observed)
    start = exact.KNOWN.expand(2, -1)
    with torch.no_grad():
        proposal = fit_elbo(model, observed, *find_mode(model, observed, start, steps=8)[:2])
    found = refine(model, observed, start, draws=1000, rounds=1, seed=1, fits=[lambda *_: proposal])
    assert found.usable.all()
    assert found.effective.min() > 400
    limit = norm.isf(false_alarm / 2 / 10)
    assert np.abs(exact.of_refined(found, means, covariance)).max() < limit
    # The test sees whether the prior was used.
    assert np.abs(exact.of_refined(found, *exact.exact_posterior(model, observed, 100 * exact.SPREADS))).max() > limit
    guide = fitted(proposal)
    flux = guide.support(guide.place(noise(4000)))[..., exact.FLUX].exp().detach().numpy()
    spread = np.sqrt(np.diag(covariance))
    # The standard error of so many draws is 0.016 of a spread, and 0.011 of its logarithm.
    np.testing.assert_allclose((flux.mean(0) - means) / spread, 0, atol=0.15)
    np.testing.assert_allclose(flux.std(0) / spread, 1, atol=0.1)
    correlation = [np.corrcoef(flux[:, blend].T)[0, 1] for blend in range(2)]
    np.testing.assert_allclose(correlation, covariance[0, 1] / spread.prod(), atol=0.1)


@pytest.mark.slow
def test_the_elbo_rises_to_the_evidence(sersic, pairs):
    """It gains on the curvature at the mode, and stays below the evidence that weights find."""
    taken, _, mode, precision = pairs
    before, density = started(sersic, pairs)
    after = fitted(fit_elbo(sersic, taken, mode, precision, updates=150))
    with torch.no_grad():
        losses = [float(guide.negative_elbo(density, noise(100))) for guide in (before, after)]
    assert losses[1] < losses[0] - 0.5
    fit = partial(fit_elbo, updates=150)
    found = refine(sersic, taken, mode, draws=400, steps=1, rounds=1, seed=2, fits=[fit])
    assert found.usable.all()
    assert -losses[1] < found.log_evidence.sum() + 1
    assert -losses[1] > found.log_evidence.sum() - 5


@pytest.mark.slow
def test_it_agrees_with_the_curvature(sersic, pairs, false_alarm):
    taken, _, mode, _ = pairs
    one, other = (
        refine(sersic, taken, mode, draws=600, steps=2, seed=3, fits=[fit])
        for fit in (None, partial(fit_elbo, updates=100))
    )
    both = one.usable & other.usable
    assert both.sum() >= 2
    (mean, covariance), (second, _) = one.moments(), other.moments()
    variance = np.diagonal(covariance, axis1=1, axis2=2) * (1 / one.effective + 1 / other.effective)[:, None]
    scores = ((mean - second) / np.sqrt(variance))[both]
    assert np.abs(scores).max() < norm.isf(false_alarm / 2 / scores.size)
    evidence = np.hypot(one.log_evidence_error, other.log_evidence_error)
    assert (np.abs(one.log_evidence - other.log_evidence) < 4 * evidence)[both].all()


def test_neighbors_do_not_matter(sersic, pairs):
    """Within rounding, and the same seed gives the same fit."""
    taken, _, mode, precision = pairs
    fit = partial(fit_elbo, sersic, updates=3, seed=7)
    whole, again = fit(taken, mode, precision), fit(taken, mode, precision)
    torch.testing.assert_close(whole.center, again.center, rtol=0, atol=0)
    last = Observed(*(value[2:] for value in taken))
    alone = fit(last, mode[2:], precision[2:])
    width, among = (found.covariance.diagonal(dim1=-2, dim2=-1).sqrt() for found in (alone, whole))
    assert float(((alone.center - whole.center[2:]) / width).abs().max()) < 0.01
    assert float((width / among[2:] - 1).abs().max()) < 0.01
    other = fit_elbo(sersic, taken, mode, precision, updates=3, seed=8)
    assert float(((other.center - whole.center)[2:] / width).abs().max()) > 0.01


@pytest.mark.parametrize("prior", [Prior.default(), Prior.published()])
def test_the_elbo_is_finite_where_that_of_the_unknowns_is_not(sersic, pairs, prior):
    """With draws ten times too wide, and companions that are anywhere or nowhere but in their ring."""
    sersic = replace(sersic, prior=prior)
    taken, unknown, mode, precision = pairs
    guide, density = started(sersic, (taken, unknown, mode, precision / 100))
    loss = guide.negative_elbo(density, noise(20))
    loss.backward()
    assert bool(torch.isfinite(loss))
    for name, parameter in guide.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name
    plain = guide.place(noise(20)).float()
    assert not bool(torch.isfinite(sersic.log_prior(plain, taken)).all(0).any())


def test_slopes_where_the_population_jumps(sersic, pairs):
    """Half the ring's density just inside its inner edge, all of it and none of it ten slopes on either side."""
    taken, unknown, _, _ = pairs
    _, density = started(sersic, pairs)
    moved = unknown.double().clone()
    distance, inner, _ = density._ring(moved)
    direction = (moved[:, 8:10] - moved[:, 1:3]) / distance[:, None]
    values = []
    for steps in (-10, 0.01, 10):
        moved[:, 8:10] = moved[:, 1:3] + (inner + steps * density.slope)[:, None] * direction
        values.append(density.log_prior(moved))
    outside, edge, inside = values
    hard = sersic.log_prior(moved.float(), taken).double()
    torch.testing.assert_close(inside, hard, rtol=0, atol=0.05)
    torch.testing.assert_close(edge - inside, torch.full_like(edge, np.log(0.5)), rtol=0, atol=0.1)
    assert bool((outside < edge - 2).all())
    moved[:, 8:10] = moved[:, 1:3] + inner[:, None] * direction
    moved.requires_grad_()
    density.log_prior(moved).sum().backward()
    assert bool(((moved.grad[:, 8:10] * direction).sum(-1) > 0).all())


@pytest.mark.parametrize("galaxies", [1, 3])
def test_other_numbers_of_galaxies(galaxies):
    crowd = BlendModel(Prior.default(), HST, size=32, galaxies=galaxies)
    taken, unknown = crowd.simulate(2, seed=2)
    precision = torch.diag_embed(torch.full(unknown.shape, 1e4)).double()
    found = fit_elbo(crowd, taken, unknown, precision, updates=2)
    assert found.center.shape == unknown.shape
    assert found.covariance.shape == (*unknown.shape, unknown.shape[1])
    assert bool(torch.isfinite(crowd.log_prior(found.coordinates(found.center).float(), taken)).all())


def test_refuses(sersic, pairs):
    taken, _, mode, precision = pairs
    with pytest.raises(ValueError, match="updates must be positive, got 0"):
        fit_elbo(sersic, taken, mode, precision, updates=0)
    with pytest.raises(ValueError, match="draws must be positive, got -1"):
        fit_elbo(sersic, taken, mode, precision, draws=-1)
