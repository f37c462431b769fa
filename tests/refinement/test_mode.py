"""Modes of the posterior, the curvature there, and the bound on what can be known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.bound import fisher_information, van_trees_bound
from probdeblend.refinement.latents import FLUXES
from probdeblend.refinement.mode import find_mode, find_modes, prior_moments, sensitivity
from probdeblend.refinement.model import in_all_orders


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


@pytest.fixture(scope="module")
def climbed(model, pairs):
    observed, _, start = pairs
    return find_mode(model, observed, start)


def test_the_mode_is_found(pairs, climbed):
    """Errors of the mode, in units of the curvature, are those of a normal distribution; the guess is far off."""
    _, unknown, start = pairs
    mode, precision, _ = climbed
    covariance = torch.linalg.inv(precision)
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((start - unknown) / scale).square().mean().sqrt()) > 3
    assert float(((mode - unknown) / scale)[:, FLUXES].abs().max()) < 4.5
    assert float(((mode - unknown) / scale).square().mean().sqrt()) < 1.6


def test_galaxies_that_are_far_apart_have_one_mode(model, pairs, climbed):
    observed, _, start = pairs
    modes, curvature, share = find_modes(model, observed, start)
    place, precision, _ = climbed
    assert share.tolist() == [[1.0] * 5]
    torch.testing.assert_close(modes, place[None])
    torch.testing.assert_close(curvature, precision[None])


def distances(first, second, precision):
    """Squared distances of unknowns ``(blend, number)`` from others, galaxies in the order that is nearest."""
    offset = in_all_orders(first) - second
    return torch.einsum("obn,bnm,obm->ob", offset, precision, offset).amin(0)


@pytest.mark.slow
def test_galaxies_that_are_close_have_several_modes(model, nested):
    """They are different, and the same from the truth and from a guess that divides the light in another way."""
    observed, unknown, guess = nested
    (right, width, _), (found, precision, share) = (find_modes(model, observed, start) for start in (unknown, guess))
    torch.testing.assert_close(share.sum(0), torch.ones(4).double())
    assert (share.diff(dim=0) <= 0).all()
    assert (share[1] > 0.1).all()
    assert (distances(found[1], found[0], precision[0]) >= 1).all()
    assert (distances(found[0], right[0], width[0]) < 1).all()
    # Beyond the last mode of a blend stands the first one.
    none = share == 0
    assert none.any()
    torch.testing.assert_close(found[none], found[:1].expand_as(found)[none])


def test_more_exposure_is_more_information(model, pairs):
    observed, unknown, _ = pairs
    deeper = observed._replace(exposure=4 * observed.exposure)
    first, second = (fisher_information(model, taken, unknown) for taken in (observed, deeper))
    assert bool((second.diagonal(dim1=-2, dim2=-1) >= first.diagonal(dim1=-2, dim2=-1) * 0.999).all())
    bound, known = (
        np.diagonal(van_trees_bound(chosen, observed, unknown), axis1=1, axis2=2)
        for chosen in (model, replace(model, sky_level=1e-6, psf_growth=1e-6))
    )
    assert (known[:, FLUXES] <= bound[:, FLUXES] * 1.001).all()
    assert (known[:, FLUXES] < 0.99 * bound[:, FLUXES]).any()


def test_moments_of_the_prior(model, pairs):
    observed, _, _ = pairs
    mean, precision = prior_moments(model, observed)
    drawn = model.draw_unknown(3000, sky_rms=observed.sky_rms[:1].expand(3000), seed=9).double()
    np.testing.assert_allclose(mean[0], drawn.mean(0), atol=4 * drawn.std(0).max() / np.sqrt(3000))
    scale = torch.linalg.inv(precision).diagonal().sqrt()
    np.testing.assert_allclose(scale / drawn.std(0), 1, atol=0.08)
