"""The trunk: what it sees, and how far."""

import pytest
import torch
from scenery import gaussian_psf, scenes

from probdeblend.networks.trunk import REACH, STRIDE, Trunk, describe_bands, matched_filter


@pytest.fixture
def trunk(network):
    return network.trunk


@torch.no_grad()
def test_maps_have_the_size_of_the_image(trunk):
    image, good, psf, noise, *_ = scenes(number=3, bands=2, size=48)
    maps = trunk(image, good, psf, noise)
    assert maps.heat.shape == (3, 3, 24, 24)
    assert maps.union.shape == (3, 48, 48)
    assert maps.unlisted.shape == (3, 2, 48, 48)
    torch.testing.assert_close(maps.gate.sum(1), torch.ones(3, 24, 24))


@torch.no_grad()
def test_it_does_not_see_beyond_its_reach(trunk):
    """A bright source appears; nothing changes farther away than `REACH`, and something changes nearer."""
    size, edge = 2 * REACH + 4 * STRIDE, 2 * STRIDE
    image, good, psf, noise, *_ = scenes(number=1, size=size)
    other = image.clone()
    other[..., :edge] += 1000 * torch.rand(edge)
    before, after = (trunk(value, good, psf, noise) for value in (image, other))
    for name in ("union", "unlisted", "heat"):
        changed = (getattr(before, name) - getattr(after, name)).abs().flatten(0, -2).amax(0)
        cells = len(changed)
        far = (edge + REACH) * cells // size
        assert changed[far:].amax() < 1e-4, name
        assert changed[edge * cells // size + 1] > 1e-3, name


@torch.no_grad()
def test_a_tile_agrees_with_the_whole_image(trunk):
    """A tile that starts at a multiple of the stride gives the same maps, but for its margin at the cut sides."""
    start, size = 2 * STRIDE, 2 * REACH + 2 * STRIDE
    image, good, psf, noise, *_ = scenes(number=1, size=start + size)
    whole = trunk(image, good, psf, noise).union[:, start:, start:]
    tile = trunk(image[..., start:, start:], good[..., start:, start:], psf, noise).union
    torch.testing.assert_close(tile[:, REACH:, REACH:], whole[:, REACH:, REACH:], rtol=1e-4, atol=1e-4)
    assert (tile - whole)[:, 0].abs().amax() > 1e-3


def test_the_matched_filter_is_the_signal_to_noise_ratio_of_a_star():
    """At the place of a star it is flux times the root of the PSF's sum of squares, and white noise keeps its width."""
    psf = gaussian_psf(1, 1)
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 10:51, 5:46] = 50 * psf[0, 0]
    found = matched_filter(image, psf)[0, 0]
    assert found.argmax() == 30 * 64 + 25
    assert float(found.amax()) == pytest.approx(50 * float(psf[0, 0].square().sum().sqrt()), rel=1e-4)
    noise = matched_filter(torch.randn(1, 1, 256, 256), psf)[0, 0, 30:-30, 30:-30]
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_the_description_tells_psfs_apart():
    """Wider PSFs hold less light within each radius; one stretched along x has a positive shape."""
    noise = torch.zeros(2, 5)
    narrow, wide = describe_bands(torch.stack([gaussian_psf(), gaussian_psf(sigma=3.0)]), noise)
    assert narrow[0] < wide[0]
    assert (narrow[1:6] > wide[1:6]).all()
    place = torch.arange(41) - 20.0
    stretched = torch.exp(-(place**2 / 12 + place[:, None] ** 2 / 4))
    assert describe_bands(stretched / stretched.sum(), noise[0])[6] > 0.5
    assert abs(float(narrow[6])) < 1e-4


@torch.no_grad()
def test_the_description_of_a_band_reaches_the_features():
    image, good, psf, noise, *_ = scenes(number=1)
    trunk = Trunk()
    for block in (*trunk.down, *trunk.up):
        torch.nn.init.normal_(block.modulation.weight, std=0.1)
    assert not torch.equal(trunk(image, good, psf, noise).union, trunk(image, good, psf, noise + 1).union)
