"""All unknowns of a scene as a vector."""

import pytest
import torch


@pytest.mark.parametrize(("count", "bands"), [(1, 1), (2, 2)])
def test_sensitivity_is_the_derivative_of_the_light(group, count, bands):
    unknowns, vector = group(count, bands=bands, log_flux=(6.0, 5.0), seed=1)
    with torch.no_grad():
        light, derivatives = unknowns.sensitivity(vector)
        assert light.shape == (count, bands, 32, 32)
        assert derivatives.shape == (len(vector), bands, 32, 32)
        steps = 2e-3 * torch.eye(len(vector))
        ahead, behind = (unknowns.light(vector + sign * steps).sum(1) for sign in (1, -1))
        slope = (ahead - behind) / 4e-3
        sky = slice(len(vector) - 2 * bands, len(vector) - bands)
        assert torch.equal(derivatives[sky].sum((1, 2, 3)), torch.full((bands,), 32.0**2))
        slope[sky] = derivatives[sky]
        scale = slope.abs().amax((1, 2, 3))
        assert ((derivatives - slope).abs().amax((1, 2, 3)) < 0.02 * scale).all()


def test_density_is_that_of_the_program(model, group):
    """Up to the constant of the Kron fluxes, which the vector lacks."""
    unknowns, vector = group(2, log_flux=(6.0, 5.0))
    values = unknowns.sites(vector[None]) | {"star": torch.zeros(1, 2)}
    assert float(unknowns.log_joint(vector[None])) == pytest.approx(float(model.log_joint(unknowns.listed, values)))


def test_stars_have_no_shape(group):
    unknowns, vector = group(2, star=1.0)
    assert len(vector) == 2 * 3 + 2
    parts = unknowns.parts(vector[None].double().numpy())
    assert torch.isnan(torch.from_numpy(parts["half_light_radius"])).all()
    assert unknowns.fluxes.tolist() == [[0], [3]]


def test_parts_are_physical(group):
    unknowns, vector = group(3, seed=4)
    parts = unknowns.parts(vector[None].double().numpy())
    assert parts["log_flux"].shape == (1, 3, 1)
    assert (abs(parts["x"] - unknowns.listed.x.numpy()) < 4).all()
    assert (parts["half_light_radius"] > 0).all()
    assert ((parts["axis_ratio"] > 0) & (parts["axis_ratio"] <= 1)).all()
    assert ((parts["sersic_index"] >= 0.5) & (parts["sersic_index"] <= 6)).all()


def test_vectors_stay_in_range(group):
    unknowns, vector = group(2)
    with torch.no_grad():
        for far in (1e3, -1e3):
            assert torch.isfinite(unknowns.log_joint(unknowns.clipped(vector + far)[None])).all()
