"""Shares of the light, masks, and features of sources and of pairs of them."""

import torch
from scenery import bumps, scenes, understand

from probdeblend.networks import sources
from probdeblend.networks.sources import pair_features, read_at


@torch.no_grad()
def test_shares_add_up_to_one_with_the_rest(network):
    shares, *_ = understand(network, sources=4, bands=2)
    assert shares.share.shape == (2, 4, 2, 64, 64)
    assert (shares.share >= 0).all()
    rest = shares.log_share[:, -1].exp()
    torch.testing.assert_close(shares.share.sum(1) + rest, torch.ones_like(rest))


@torch.no_grad()
def test_a_source_has_no_share_far_away(network):
    *inputs, _, _ = scenes(number=1, size=160)
    shares, _ = network.read(network.encode(*inputs), torch.tensor([[20.0]]), torch.tensor([[80.0]]))
    assert shares.share[0, 0, 0, 80, 90:].amax() == 0
    assert shares.share[0, 0, 0, 80, 20] > 0


@torch.no_grad()
def test_windows_around_sources_change_nothing(network, monkeypatch):
    """Far from a source, where its share is nothing, its networks need not be evaluated."""
    *inputs, _, _ = scenes(number=2, size=240, bands=2)
    maps = network.encode(*inputs)
    x, y = torch.tensor([[-5.0, 63.9, 130.2, 238.0], [70.0, 71.0, 1.0, 150.0]]), 240 * torch.rand(2, 4)
    windowed, features = network.read(maps, x, y)
    monkeypatch.setattr(sources, "SPAN", 10_000)
    whole, other = network.read(maps, x, y)
    torch.testing.assert_close(windowed.log_share, whole.log_share)
    torch.testing.assert_close(windowed.mask.sigmoid(), whole.mask.sigmoid())
    torch.testing.assert_close(features.token, other.token)


@torch.no_grad()
def test_a_bad_pixel_does_not_matter(network):
    """Whatever stands in a pixel that is not good, the answer is the same."""
    image, good, psf, noise, x, y = scenes()
    good[:, :, 20:24, 30] = 0
    answers = []
    for value in (0.0, 1e4):
        image[:, :, 20:24, 30] = value
        answers.append(network.read(network.encode(image, good, psf, noise), x, y)[1].token)
    torch.testing.assert_close(*answers)


@torch.no_grad()
def test_features_of_the_first_sources_are_those_of_all(network):
    """Neighbors that share the light but have no features of their own change nothing for the others."""
    *inputs, x, y = scenes(sources=4)
    maps = network.encode(*inputs)
    _, features = network.read(maps, x, y)
    _, first = network.read(maps, x, y, queries=network.reader.queries(maps, x, y), wanted=2)
    assert first.token.shape[1] == 2
    other = maps._replace(image=maps.image.expand(-1, 2, -1, -1).contiguous(memory_format=torch.channels_last)[:, :1])
    torch.testing.assert_close(network.read(other, x, y)[1].token, features.token)
    torch.testing.assert_close(first.band_token, features.band_token[:, :2])
    torch.testing.assert_close(first.anchor, features.anchor[:, :2])


def test_maps_are_read_between_their_cells():
    """A map that rises linearly is read exactly, in cells of any size."""
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    x, y = torch.tensor([[3.0, 11.25]]), torch.tensor([[6.0, 9.5]])
    found = read_at(torch.stack([column, row])[None], x, y, 2)
    torch.testing.assert_close(found, torch.stack([(x - 0.5) / 2, (y - 0.5) / 2], -1))


@torch.no_grad()
def test_the_contested_fraction_of_equal_sources_at_one_place_is_a_half(network):
    """Where two sources have half of all light each, half of each one's light lies where the other has a share."""
    *inputs, _, _ = scenes(number=1, sources=1)
    x = y = torch.full((1, 2), 30.0)
    image = bumps(x[:, :1], y[:, :1], 64)
    maps = network.encode(image, torch.ones_like(image), *inputs[2:])
    share = torch.full((1, 2, 1, 64, 64), 0.5)
    mask = (image[:, :1] > 1).float().expand(1, 2, 64, 64)
    edge, overlap = pair_features(maps, share, mask, x, y, torch.zeros(1, 2, 1))
    torch.testing.assert_close(edge[0, 0, 1, 0], torch.tensor(0.5).log() / 4 + 1)
    assert overlap[0, 0, 1] == mask[0, 0].sum()
    assert (overlap.diagonal(dim1=1, dim2=2) == 0).all()
