"""Refinement: weighted draws of the posterior, and what becomes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.bound import van_trees_bound
from probdeblend.posterior.reweight import systematic
from probdeblend.refinement import Refined, misfit, refine
from probdeblend.refinement.importance import weighted_draws
from probdeblend.refinement.latents import FLUXES
from probdeblend.refinement.mode import find_modes
from probdeblend.refinement.model import Observed
from probdeblend.refinement.proposal import Mixture


@pytest.mark.slow
def test_refined_draws(model, pairs, refined):
    _, unknown, _ = pairs
    np.testing.assert_allclose(np.exp(refined.log_weight).sum(0), 1)
    assert (refined.effective > 30).mean() > 0.6
    assert (refined.k_hat < 0.7).mean() > 0.6
    good = refined.k_hat < 0.7
    mean, covariance = refined.moments()
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert np.abs((mean - unknown.numpy()) / scale)[good][:, FLUXES].max() < 5
    assert np.nanmedian(refined.chi_square[good]) == pytest.approx(1, abs=0.15)
    assert refined.log_evidence_error.max() < 1
    bound = np.sqrt(np.diagonal(van_trees_bound(model, pairs[0], unknown), axis1=1, axis2=2))
    assert 0.7 < np.median((scale / bound)[good][:, FLUXES]) < 1.5


def test_draws_are_taken_as_often_as_their_weights_say(rng):
    weights = np.array([[1.0, 2.0, 0.0, 5.0], [0.0, 0.0, 3.0, 0.0], [np.nan] * 4])
    chosen = systematic(weights, 800, rng=rng)
    times = [np.bincount(row, minlength=4).tolist() for row in chosen]
    assert np.abs(np.array(times[0]) - [100, 200, 0, 500]).max() <= 1
    assert times[1] == [0, 0, 800, 0]
    assert times[2] == [800, 0, 0, 0]
    assert (np.diff(chosen[0]) < 0).any()


@pytest.mark.slow
def test_weights_become_draws(refined):
    drawn = refined.resampled(4000, seed=3)
    mean, covariance = refined.moments()
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert drawn.shape == (4000, 5, 16)
    # Systematic resampling: means follow the weights closer than independent draws would.
    assert np.abs((drawn.mean(0) - mean) / scale).max() < 4 / np.sqrt(4000) * 2
    np.testing.assert_array_equal(drawn, refined.resampled(4000, seed=3))


def test_moments_are_in_the_order_of_most_draws(rng):
    """Three of four draws of the second blend are to be exchanged."""
    unknown = rng.normal(size=(100, 2, 16))
    order = np.zeros((100, 2), dtype=int)
    order[:75, 1] = 1
    even = np.full((100, 2), -np.log(100))
    found = Refined(unknown, order, np.ones((100, 2)), even, *[np.zeros(2)] * 5)
    mean, covariance = found.moments()
    exchanged = [*range(7, 14), *range(7), 14, 15]
    np.testing.assert_allclose(mean, [unknown[:, 0].mean(0), unknown[:, 1].mean(0)[exchanged]])
    np.testing.assert_allclose(covariance[1], np.cov(unknown[:, 1][:, exchanged].T, bias=True))
    first = np.arange(100)[:, None] < [60, 90]
    mean, covariance = replace(found, heaviest=first.astype(float)).moments()
    np.testing.assert_allclose(mean, [unknown[:60, 0].mean(0), unknown[:90, 1].mean(0)[exchanged]])
    np.testing.assert_allclose(covariance[0], np.cov(unknown[:60, 0].T, bias=True))


@pytest.mark.slow
def test_same_seed_same_answer_in_any_batch(model, pairs):
    observed, _, start = pairs
    first, again = (refine(model, observed, start, draws=100, attempts=1, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.unknown, again.unknown)
    few = observed.select(slice(2))
    part = refine(model, few, start[:2], draws=100, attempts=1, seed=5)
    np.testing.assert_allclose(part.unknown, first.unknown[:, :2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_blends_with_one_mode_and_with_several_in_one_batch(model, pairs, nested):
    """Each is what it is without those behind it."""
    order = [0, 5, 1, 6]
    observed = Observed(*(torch.cat(values)[order] for values in zip(nested[0], pairs[0], strict=True)))
    start = torch.cat([nested[2], pairs[2][:, : model.numbers]])[order]
    both = refine(model, observed, start, draws=100, attempts=1, seed=5)
    few = observed.select(slice(2))
    part = refine(model, few, start[:2], draws=100, attempts=1, seed=5)
    assert (both.heaviest[:, [0, 2]] < 0.5).any()
    assert (both.heaviest[:, [1, 3]] == 1).all()
    np.testing.assert_allclose(part.unknown, both.unknown[:, :2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_where_the_climb_begins_does_not_matter(model, nested):
    observed, unknown, guess = nested
    right, found = (refine(model, observed, start, attempts=1, seed=1) for start in (unknown, guess))
    assert np.abs(found.log_evidence - right.log_evidence).max() < 1
    assert (misfit(model, observed, *found.moments()) > 1e-4).all()
    for answer in (right, found):
        draws = answer.resampled(1000, seed=1)[..., FLUXES]
        assert (np.abs(draws.mean(0) - unknown[:, FLUXES].numpy()) < 3 * draws.std(0)).all()


@pytest.mark.slow
def test_a_wrong_model_shows_in_chi_square(model, pairs):
    """A ring that no Sérsic galaxy has."""
    observed, _, start = pairs
    axis = torch.arange(48) - 23.5
    distance = torch.hypot(axis[:, None], axis)
    ringed = observed._replace(image=observed.image + 40 * torch.exp(-((distance - 6) ** 2)))
    found = refine(model, ringed, start, draws=100, attempts=1)
    assert (found.chi_square[:, 0] > 2).all()


@pytest.mark.slow
def test_what_is_taken_as_known_stays_known(model, pairs):
    """With no sky level and no PSF growth, draws keep to zero and are as effective as with tiny ones."""
    observed, _, start = pairs
    few = observed.select(slice(2))
    answers = [
        refine(replace(model, sky_level=size, psf_growth=size), few, start[:2], draws=100, attempts=1, seed=3)
        for size in (0.0, 1e-6)
    ]
    for found in answers:
        assert np.abs(found.unknown[..., -2:]).max() < 1e-4
    np.testing.assert_allclose(answers[0].log_evidence, answers[1].log_evidence, atol=0.5)
    np.testing.assert_allclose(answers[0].effective, answers[1].effective, rtol=0.2)


@pytest.mark.slow
def test_blends_with_poor_weights_go_on_from_what_was_learned(model, pairs):
    """Proposals of two blends begin far too wide: these alone go on, and others keep what they have."""
    observed, _, start = pairs
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        place, precision, share = find_modes(model, observed, start)
        wider = torch.tensor([25.0, 1.0, 1.0, 25.0, 1.0])[:, None, None]
        proposal = Mixture(place, wider * torch.linalg.inv(precision), share)
        settings = {"draws": 400, "seed": (1, 0)}
        one, three = (weighted_draws(model, observed, proposal, attempts=n, **settings) for n in (1, 3))
    poor = ~one.usable | (one.effective < 100)
    assert poor[[0, 3]].all()
    assert not poor.all()
    np.testing.assert_array_equal(three.unknown[:, ~poor], one.unknown[:, ~poor])
    np.testing.assert_array_equal(three.log_evidence[~poor], one.log_evidence[~poor])
    assert (three.effective >= one.effective).all()
    assert (three.effective / one.effective)[poor].max() > 2
    assert (np.abs(three.log_evidence - one.log_evidence) < 1)[one.usable].all()


def test_which_weights_are_reliable():
    """With 100 draws the limit is 1 - 1/2, with very many it is 0.7."""
    empty, k_hat = np.zeros((4, 2)), np.array([0.4, 0.6, 0.8, np.inf])
    found = Refined(np.zeros((100, 4, 3)), empty, empty, empty, k_hat, *[empty] * 4)
    assert found.usable.tolist() == [True, False, False, False]
    assert replace(found, unknown=np.zeros((100_000, 4, 3))).usable.tolist() == [True, True, False, False]


def test_refuses(model, pairs):
    observed, _, start = pairs
    with pytest.raises(
        ValueError, match=r"image must hold stamps of the model's 64 x 64 pixels, got shape \(5, 48, 48"
    ):
        refine(replace(model, size=64), observed, start)
    with pytest.raises(ValueError, match=r"start must have the shape \(blend, number\) \(5, 16\), got \(5, 3\)"):
        refine(model, observed, start[:, :3])
    with pytest.raises(ValueError, match="start must be finite, got NaN or infinity in 5 of 5 blends"):
        refine(model, observed, start * math.nan)
    for name, least in (("draws", 100), ("attempts", 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got 0"):
            refine(model, observed, start, **{name: 0})
