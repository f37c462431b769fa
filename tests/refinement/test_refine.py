"""Refinement under the model, the bound on it, and the reference that judges it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import probdeblend.refinement.refine as room
from benchmarks.bound import fisher_information, van_trees_bound
from probdeblend.posterior.reweight import systematic
from probdeblend.refinement.latents import LATENTS
from probdeblend.refinement.mode import Modes, find_mode, prior_moments, sensitivity
from probdeblend.refinement.model import BlendModel, Observed, in_all_orders
from probdeblend.refinement.nuts import Reference, sample_reference
from probdeblend.refinement.proposal import Proposal
from probdeblend.refinement.refine import Refined, refine
from probdeblend.refinement.residuals import misfit
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

FLUX = [0, len(LATENTS)]


@pytest.fixture(scope="module")
def model():
    return BlendModel(Prior.default(), Instrument.candels_f160w(), size=48)


def near_pairs(model, count, *, seed):
    """Blends whose companion is well inside the small images, and a guess that is off."""
    observed, unknown = model.simulate(6 * count, seed=seed)
    place = unknown[:, [8, 9]].abs().amax(-1)
    rows = (place < 14).nonzero()[:count, 0]
    assert len(rows) == count
    unknown = unknown[rows]
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.5, 0.1, 0.1] * 2 + [0.0, 0.0])
    start = unknown + scale * torch.randn(unknown.shape, generator=generator)
    return Observed(*(value[rows] for value in observed)), unknown, start


@pytest.fixture(scope="module")
def pairs(model):
    return near_pairs(model, 5, seed=2)


@pytest.fixture(scope="module")
def nested(model):
    """A compact galaxy on an extended one, 1.5 pixels off its center; as a guess, one galaxy and a faint companion."""
    extended = torch.tensor([9.2, 0.0, 0.0, -0.9, -1.9, 0.4, 0.4])
    compact = torch.tensor([8.5, 0.8, 1.3, -1.4, -0.2, -0.2, -0.2])
    unknown = torch.cat([extended, compact, torch.zeros(2)]).expand(4, -1)
    light = model.light(model.split(unknown)[0], torch.zeros(4)).sum(1)
    taken = Observed(light, torch.full((4,), 8e-3), torch.full((4,), 3e3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        image = model.noisy(light, torch.zeros(4), taken).sample()
    bright = torch.tensor([9.4, 0.8, 0.7, -1.15, -1.2, 0.15, 0.2])
    faint = torch.tensor([7.8, -2.0, -0.6, -1.3, -1.5, 0.3, 0.15])
    return taken._replace(image=image), unknown, torch.cat([bright, faint, torch.zeros(2)]).expand(4, -1)


@pytest.fixture(scope="module")
def refined(model, pairs):
    observed, _, start = pairs
    return refine(model, observed, start, draws=200, seed=1)


def test_derivatives_are_those_of_the_light(model, pairs):
    """Central differences over a step twice as long agree."""
    _, unknown, _ = pairs
    light, derivatives = sensitivity(model, unknown)
    assert light.shape == (5, 2, 48, 48)
    assert derivatives.shape == (5, 16, 48, 48)
    for number, step in ((0, 0.02), (1, 0.05), (10, 0.02), (12, 0.05), (15, 0.01)):
        moved = torch.zeros(16)
        moved[number] = step
        ends = []
        for sign in (1, -1):
            latents, _, growth = model.split(unknown + sign * moved)
            ends.append(model.light(latents, growth).sum(1))
        found = (ends[0] - ends[1]) / (2 * step)
        scale = found.abs().amax((-2, -1)).clamp(min=1.0)
        assert float(((found - derivatives[:, number]).abs().amax((-2, -1)) / scale).max()) < 0.02


def test_the_mode_is_found(model, pairs):
    """Errors of the mode, in units of the curvature, are those of a normal distribution; the guess is far off."""
    observed, unknown, start = pairs
    mode, precision, _ = find_mode(model, observed, start, steps=10)
    covariance = torch.linalg.inv(precision)
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((start - unknown) / scale).square().mean().sqrt()) > 3
    assert float(((mode - unknown) / scale)[:, FLUX].abs().max()) < 4.5
    assert float(((mode - unknown) / scale).square().mean().sqrt()) < 1.6


@pytest.mark.slow
def test_refined_draws(model, pairs, refined):
    _, unknown, _ = pairs
    np.testing.assert_allclose(np.exp(refined.log_weight).sum(0), 1)
    assert (refined.effective > 30).mean() > 0.6
    assert (refined.k_hat < 0.7).mean() > 0.6
    good = refined.k_hat < 0.7
    mean, covariance = refined.moments()
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert np.abs((mean - unknown.numpy()) / scale)[good][:, FLUX].max() < 5
    assert np.nanmedian(refined.chi_square[good]) == pytest.approx(1, abs=0.15)
    assert refined.log_evidence_error.max() < 1
    bound = np.sqrt(np.diagonal(van_trees_bound(model, pairs[0], unknown), axis1=1, axis2=2))
    assert 0.7 < np.median((scale / bound)[good][:, FLUX]) < 1.5


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
    first, again = (refine(model, observed, start, draws=100, steps=2, rounds=1, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.unknown, again.unknown)
    few = Observed(*(value[:2] for value in observed))
    part = refine(model, few, start[:2], draws=100, steps=2, rounds=1, seed=5)
    np.testing.assert_allclose(part.unknown, first.unknown[:, :2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_blends_with_one_mode_and_with_several_in_one_batch(model, pairs, nested):
    """Each is what it is without those behind it."""
    order = [0, 5, 1, 6]
    observed = Observed(*(torch.cat(values)[order] for values in zip(nested[0], pairs[0], strict=True)))
    start = torch.cat([nested[2], pairs[2][:, : model.numbers]])[order]
    both = refine(model, observed, start, draws=100, rounds=1, seed=5)
    few = Observed(*(value[:2] for value in observed))
    part = refine(model, few, start[:2], draws=100, rounds=1, seed=5)
    assert (both.heaviest[:, [0, 2]] < 0.5).any()
    assert (both.heaviest[:, [1, 3]] == 1).all()
    np.testing.assert_allclose(part.unknown, both.unknown[:, :2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_blends_of_which_little_comes_go_on(model, pairs, monkeypatch):
    """The first proposal is far off for one blend: it alone is proposed again, and others keep what they had."""
    monkeypatch.setattr(room, "ENOUGH", 10.0)
    observed, _, start = pairs
    asked = []

    def astray(model, some, mode, precision):
        found = room._curvature(model, some, mode, precision)
        center = found.center.clone()
        center[0] += 30 * found.covariance[0].diagonal().sqrt()
        return replace(found, center=center)

    def again(*arguments):
        asked.append(len(arguments[2]))
        return room._curvature(*arguments)

    alone, both = (refine(model, observed, start, draws=400, seed=1, fits=fits) for fits in ([astray], [astray, again]))
    assert alone.poor.tolist() == [0]
    assert asked == [1]
    assert both.poor.tolist() == []
    assert both.effective[0] > 10 * alone.effective[0]
    np.testing.assert_array_equal(both.unknown[:, 1:], alone.unknown[:, 1:])
    np.testing.assert_array_equal(both.log_evidence[1:], alone.log_evidence[1:])


def test_galaxies_that_are_far_apart_have_one_mode(model, pairs):
    observed, _, start = pairs
    modes = Modes.find(model, observed, start, steps=8)
    place, precision, _ = find_mode(model, observed, start, steps=8)
    assert (modes.share[0] == 1).all()
    torch.testing.assert_close(modes.place[0], place)
    torch.testing.assert_close(modes.precision[0], precision)
    assert [blends.tolist() for blends in modes.alike()] == [[0, 1, 2, 3, 4]]


def distances(first, second, precision):
    """Squared distances of unknowns ``(blend, number)`` from others, galaxies in the order that is nearest."""
    offset = in_all_orders(first) - second
    return torch.einsum("obn,bnm,obm->ob", offset, precision, offset).amin(0)


@pytest.mark.slow
def test_galaxies_that_are_close_have_several_modes(model, nested):
    """They are different, and the same from the truth and from a guess that divides the light in another way."""
    observed, unknown, guess = nested
    right, found = (Modes.find(model, observed, start, steps=40) for start in (unknown, guess))
    torch.testing.assert_close(found.share.sum(0), torch.ones(4).double())
    assert (found.share.diff(dim=0) <= 0).all()
    assert (found.share[1] > 0.1).all()
    assert (distances(found.place[1], found.place[0], found.precision[0]) >= 1).all()
    assert (distances(found.place[0], right.place[0], right.precision[0]) < 1).all()
    parts = found.alike()
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3]
    assert len(parts) > 1
    for blends in parts:
        chosen = found.select(blends)
        assert (chosen.share > 0).all()
        torch.testing.assert_close(chosen.place, found.place[: len(chosen.share), blends])


@pytest.mark.slow
def test_where_the_climb_begins_does_not_matter(model, nested):
    observed, unknown, guess = nested
    right, found = (refine(model, observed, start, seed=1) for start in (unknown, guess))
    assert np.abs(found.log_evidence - right.log_evidence).max() < 1
    assert (misfit(model, observed, *found.moments()) > 1e-4).all()
    for answer in (right, found):
        draws = answer.resampled(1000, seed=1)[..., FLUX]
        assert (np.abs(draws.mean(0) - unknown[:, FLUX].numpy()) < 3 * draws.std(0)).all()


@pytest.mark.slow
def test_what_was_learned_is_gone_on_from(model, pairs, monkeypatch):
    """Proposals that begin twice as wide as the curvature have learned from 800 draws, when they go on."""
    monkeypatch.setattr(room, "ENOUGH", math.inf)
    monkeypatch.setattr(room, "_curvature", lambda *given: Proposal(given[2], 4 * torch.linalg.inv(given[3])))
    observed, _, start = pairs
    alone, both = (refine(model, observed, start, draws=400, seed=1, fits=fits) for fits in ([None], [None, None]))
    assert (both.effective >= alone.effective).all()
    assert np.median(both.effective / alone.effective) > 1.5
    assert (np.abs(both.log_evidence - alone.log_evidence) < 1)[alone.usable].all()


@pytest.mark.slow
def test_a_wrong_model_shows_in_chi_square(model, pairs):
    """A ring that no Sérsic galaxy has."""
    observed, _, start = pairs
    axis = torch.arange(48) - 23.5
    distance = torch.hypot(axis[:, None], axis)
    ringed = observed._replace(image=observed.image + 40 * torch.exp(-((distance - 6) ** 2)))
    found = refine(model, ringed, start, draws=100, steps=4, rounds=1)
    assert (found.chi_square[:, 0] > 2).all()


def test_more_exposure_is_more_information(model, pairs):
    observed, unknown, _ = pairs
    deeper = observed._replace(exposure=4 * observed.exposure)
    first, second = (fisher_information(model, taken, unknown) for taken in (observed, deeper))
    assert bool((second.diagonal(dim1=-2, dim2=-1) >= first.diagonal(dim1=-2, dim2=-1) * 0.999).all())
    bound, known = (
        np.diagonal(van_trees_bound(chosen, observed, unknown), axis1=1, axis2=2)
        for chosen in (model, replace(model, sky_level=1e-6, psf_growth=1e-6))
    )
    assert (known[:, FLUX] <= bound[:, FLUX] * 1.001).all()
    assert (known[:, FLUX] < 0.99 * bound[:, FLUX]).any()


def test_moments_of_the_prior(model, pairs):
    observed, _, _ = pairs
    mean, precision = prior_moments(model, observed)
    drawn = model.draw_unknown(3000, sky_rms=observed.sky_rms[:1].expand(3000), seed=9).double()
    np.testing.assert_allclose(mean[0], drawn.mean(0), atol=4 * drawn.std(0).max() / np.sqrt(3000))
    scale = torch.linalg.inv(precision).diagonal().sqrt()
    np.testing.assert_allclose(scale / drawn.std(0), 1, atol=0.08)


@pytest.mark.slow
def test_refuses(model, pairs, refined):
    observed, _, start = pairs
    with pytest.raises(ValueError, match=r"image must have the model's 64 pixels a side, got \(5, 48, 48\)"):
        refine(replace(model, size=64), observed, start)
    with pytest.raises(ValueError, match=r"start must have the shape \(blend, number\) \(5, 16\), got \(5, 3\)"):
        refine(model, observed, start[:, :3])
    with pytest.raises(ValueError, match="start must be finite, got NaN or infinity in 5 of 5 blends"):
        refine(model, observed, start * math.nan)
    for name, least in (("draws", 100), ("steps", 1), ("rounds", 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got 0"):
            refine(model, observed, start, **{name: 0})
    for changed, message in (
        ({"blend": 5}, "blend must be one of 5, got 5"),
        ({"chains": 1}, "chains must be at least 2, so that they can be compared, got 1"),
        ({"draws": 3}, "draws must be at least 50 a chain, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_reference(model, observed, refined, **changed)


def test_weights_that_are_no_use():
    """With 100 draws the limit is 1 - 1/2, with very many it is 0.7."""
    empty, k_hat = np.zeros((4, 2)), np.array([0.4, 0.6, 0.8, np.inf])
    found = Refined(np.zeros((100, 4, 3)), empty, empty, empty, k_hat, *[empty] * 4)
    assert found.usable.tolist() == [True, False, False, False]
    assert replace(found, unknown=np.zeros((100_000, 4, 3))).usable.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"blend must have usable weights to start from, got a k-hat of 0.80"):
        sample_reference(None, None, found, blend=2)


def test_what_counts_as_converged():
    draws = np.zeros((2, 5, 3))
    good = Reference(draws, np.full(3, 1.005), np.full(3, 500.0))
    assert good.converged
    assert not replace(good, r_hat=np.array([1.0, 1.02, 1.0])).converged
    assert not replace(good, effective=np.array([500.0, 500.0, 300.0])).converged


@pytest.mark.slow
def test_the_reference_agrees(model, pairs):
    """NUTS on the same density: means and widths within what so few draws tell."""
    observed, _, start = pairs
    found = refine(model, observed, start, draws=400, seed=1)
    assert isinstance(found, Refined)
    blend = int(found.effective.argmax())
    reference = sample_reference(model, observed, found, blend=blend, draws=60, progress=False)
    assert reference.unknown.shape == (2, 60, 16)
    assert (reference.r_hat < 1.2).all()
    drawn = reference.unknown.reshape(-1, 16)
    mean, covariance = (moment[blend] for moment in found.moments())
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((drawn.mean(0) - mean) / scale).max() < 0.6
    assert np.exp(np.abs(np.log(drawn.std(0) / scale))).max() < 1.6


@pytest.mark.slow
def test_what_is_taken_as_known_stays_known(model, pairs):
    """With no sky level and no PSF growth, draws keep to zero and are as effective as with tiny ones."""
    observed, _, start = pairs
    few = Observed(*(value[:2] for value in observed))
    answers = [
        refine(replace(model, sky_level=size, psf_growth=size), few, start[:2], draws=100, rounds=1, seed=3)
        for size in (0.0, 1e-6)
    ]
    for found in answers:
        assert np.abs(found.unknown[..., -2:]).max() < 1e-4
    np.testing.assert_allclose(answers[0].log_evidence, answers[1].log_evidence, atol=0.5)
    np.testing.assert_allclose(answers[0].effective, answers[1].effective, rtol=0.2)
