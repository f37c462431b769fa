"""Modes of the posterior of a scene."""

import torch

from probdeblend.refinement.mode import find_mode, find_modes, linearized


def test_climb_ends_at_the_mode(group):
    """From a guess that is off by many widths; there the gradient of the posterior is next to nothing."""
    unknowns, vector = group(2, bands=2, log_flux=(6.5, 6.0), seed=3)
    start = vector + 0.3 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        place, curvature, _ = find_mode(unknowns, start)
        (again,), _, share = find_modes(unknowns, vector[None])
    width = torch.linalg.inv(curvature).diagonal().sqrt()
    assert ((place - again).abs() < 0.3 * width).all()
    assert share.tolist() == [1.0]  # the sources are far from each other
    assert float((place - vector) @ curvature @ (place - vector)) < 45  # 20 numbers: a chance of 1 in 1,000


def test_curvature_is_the_fisher_information_and_the_prior(group):
    unknowns, vector = group(1, log_flux=(6.0,))
    with torch.no_grad():
        _, rows = linearized(unknowns, vector)
        _, curvature, _ = find_mode(unknowns, vector)
    own = (rows @ rows.T).double() + unknowns.prior[1]
    assert torch.allclose(own.diagonal(), curvature.diagonal(), rtol=0.5)


def test_other_divisions_of_the_light_of_close_sources_are_found(group):
    """Two point sources 1.5 pixels apart in an image that is the same when they are exchanged: two modes."""
    unknowns, vector = group(2, star=1.0, log_flux=(6.5, 5.5), seed=2)
    listed = unknowns.listed
    closer = listed._replace(x=torch.tensor([[14.0, 15.5]]), y=torch.tensor([[15.0, 15.0]]))
    place = vector.clone()
    place[unknowns.fluxes.flatten().repeat_interleave(2) + torch.tensor([1, 2, 1, 2])] = 0.0
    unknowns = type(unknowns)(unknowns.model, closer, unknowns.star)
    with torch.no_grad():
        image = unknowns.light(place[None]).sum(1)
        unknowns = type(unknowns)(unknowns.model, closer._replace(image=image), unknowns.star)
        places, _, share = find_modes(unknowns, place[None])
    assert len(places) == 2
    assert float(share.sum()) == 1.0
    brighter = places[:, unknowns.fluxes[0, 0]] > places[:, unknowns.fluxes[1, 0]]
    assert brighter.tolist() == [True, False]
