"""Goodness of fit."""

import math

import torch

from probdeblend.refinement import misfit
from probdeblend.refinement.mode import find_mode


def probability(unknowns, vector):
    with torch.no_grad():
        place, curvature, _ = find_mode(unknowns, vector)
    return misfit(unknowns, place.numpy(), torch.linalg.inv(curvature).numpy())


def test_right_model_fits(group):
    """In three scenes the p-values are not all small, nor all large: a chance of 1 in 1,000 each."""
    found = [probability(*group(1, bands=2, log_flux=(6.5,), seed=seed)) for seed in range(3)]
    assert max(found) > 0.1
    assert min(found) < 0.9
    assert min(found) > 1e-4


def test_light_that_the_model_lacks_is_seen(group):
    unknowns, vector = group(1, log_flux=(6.5,), seed=1)
    place = torch.arange(32.0)
    knot = torch.exp(-((place - 18).square() + (place[:, None] - 17).square()) / 3)
    listed = unknowns.listed._replace(image=unknowns.listed.image + 8.0 * knot)
    assert probability(type(unknowns)(unknowns.model, listed, unknowns.star), vector) < 1e-3


def test_scene_without_light_fits(group):
    unknowns, vector = group(1, log_flux=(-2.0,))
    assert misfit(unknowns, vector.double().numpy(), torch.eye(len(vector)).double().numpy()) == 1.0
    assert math.isfinite(float(unknowns.log_joint(vector[None])))
