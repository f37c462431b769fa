"""The loss of the scene network: what it rewards, and what it leaves out."""

import pytest
import torch
from scenery import bumps, scenes

from probdeblend.networks.scene_loss import SceneLoss, with_false_peaks


def batch(*, sources=2, spurious=0, bands=1, size=64):
    """A batch as the stream of scenes yields it, of round sources."""
    image, good, psf, noise, x, y = scenes(sources=sources, bands=bands, size=size)
    light = bumps(x, y, size)[:, :, None].expand(-1, -1, bands, -1, -1)
    log_flux = torch.full((2, sources, bands, 2), 300.0).log()
    shape = torch.full((2, sources, 6), torch.nan)
    shape[..., 0], shape[..., 1], shape[..., 2:5] = x, y, 0.0
    heat = torch.zeros(2, 3, size // 2, size // 2)
    for scene, column, row in zip(torch.arange(2).repeat_interleave(sources), x.flatten(), y.flatten(), strict=True):
        heat[scene, 0, int(row // 2), int(column // 2)] = 1
    more = (size * torch.rand(2, spurious) for _ in range(2))
    listed = [torch.cat(pair, 1) for pair in zip((x, y), more, strict=True)]
    kind = torch.zeros(2, sources, dtype=torch.long)
    return [image, good, psf, noise, *listed, light, torch.zeros_like(image), log_flux, shape, kind, heat]


@pytest.mark.parametrize(
    "settings", [{}, {"sources": 0, "spurious": 2}, {"spurious": 1, "bands": 2}, {"sources": 0}, {"sources": 4}]
)
def test_every_part_is_finite(network, settings):
    loss = SceneLoss(network)
    value = loss(*batch(**settings))
    assert value.ndim == 0
    assert value.isfinite()
    value.backward()
    assert all(torch.isfinite(torch.tensor(list(loss.parts.values()))))
    expected = {"heat"} | (
        {"flux", "share", "mask", "shape", "kind", "existence"} if settings.get("sources", 2) else set()
    )
    assert expected <= set(loss.parts)


def test_a_few_steps_lower_every_part(network):
    """Trained on one batch, with and without a false source, the network learns all that it is asked for."""
    loss, given = SceneLoss(network).eval(), batch(spurious=1, size=32)
    real = [*(value[:, :2] if number in {4, 5} else value for number, value in enumerate(given))]

    def parts():
        loss(*given)
        existence = loss.parts["existence"]
        loss(*real)
        return loss.parts | {"existence": existence}

    before = parts()
    optimizer = torch.optim.AdamW(loss.parameters(), 2e-3)
    for step in range(32):
        optimizer.zero_grad()
        value = loss(*(given if step % 2 else real))
        value.backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 5.0)
        optimizer.step()
    after = parts()
    for name in ("flux", "share", "mask", "heat", "kind", "existence"):
        assert after[name] < before[name], name


@torch.no_grad()
def test_what_is_unknown_does_not_count(network):
    """Neither the total flux, nor shapes and classes that nobody knows, nor bad pixels and doubtful centers."""
    loss, given = SceneLoss(network), batch()
    loss(*given)
    known = dict(loss.parts)
    log_flux, shape, kind, heat = (value.clone() for value in given[8:])
    log_flux[..., 1], shape[:], kind[:] = torch.nan, torch.nan, -1
    loss(*given[:8], log_flux, shape, kind, heat)
    assert loss.parts["shape"] == loss.parts["kind"] == 0
    assert loss.parts["flux"] != known["flux"]
    assert torch.isfinite(torch.tensor(loss.parts["flux"]))
    heat[:, 0] = torch.where(heat[:, 0] == 0, -1.0, heat[:, 0])
    loss(*given[:8], log_flux, shape, kind, heat)
    assert loss.parts["heat"] < known["heat"]


@torch.no_grad()
def test_the_highest_false_peak_is_asked_for(network):
    """The first place without a source moves to the highest peak that is no center, the others stay."""
    given = batch(spurious=2)
    x, y, target = given[4], given[5], given[-1]
    heat = torch.full_like(target, -5.0)
    heat[:, 1:] = 0.25
    heat[:, 0] += 9 * target[:, 0]  # true centers are higher than anything else
    heat[:, 0, 5, 20], heat[:, 0, 9, 28] = 2.0, 1.0
    moved = with_false_peaks(x, y, heat, target, 2)
    for values, given_values, place in zip(moved, (x, y), (40.75, 10.75), strict=True):
        assert torch.equal(values[:, 2], torch.full((2,), place))
        assert torch.equal(values[:, [0, 1, 3]], given_values[:, [0, 1, 3]])
    target[:, 0] = -1  # nowhere is known to be empty
    assert all(map(torch.equal, with_false_peaks(x, y, heat, target, 2), (x, y)))


@torch.no_grad()
def test_spurious_sources_are_asked_for_their_existence_alone(network):
    """The truth of a source that does not exist is not needed; whether it exists is."""
    loss, given = SceneLoss(network), batch(spurious=1)
    loss(*given)
    assert loss.parts["existence"] > 0
    with torch.no_grad():
        network.answers.bias[-1] = -20.0
    loss(*given)
    sure = loss.parts["existence"]
    assert sure > 5  # two of three exist
