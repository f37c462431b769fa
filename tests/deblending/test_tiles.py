"""Peaks of a heat map, what is read of sources tile by tile, and the groups they make."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from tiny_weights import PSF, light_of, noise_of

from probdeblend.deblending.inputs import observe
from probdeblend.deblending.tiles import Reading, find_peaks, read_image, source_features
from probdeblend.networks.dropout import kept_units

SIZE = 96
KEPT = kept_units(0.1, 6, 0).query
PLACES = np.array([[30.2, 40.1], [38.5, 43.7], [70.0, 60.5], [64.8, 66.1]])


@pytest.fixture(scope="module")
def seen():
    pixels = light_of((SIZE, SIZE), *PLACES.T, [900, 500, 700, 1500]) + noise_of((SIZE, SIZE))
    with observe(pixels, psf=PSF, sky_rms=1.0) as observation:
        yield observation


def heat_map(*peaks, size=24, offset=0.0):
    """Logits and offsets of a map of cells, with peaks at (row, column, logit)."""
    heat = torch.full((3, size, size), offset)
    heat[0] = -8.0
    for row, column, logit in peaks:
        heat[0, row, column] = logit
    return heat


def test_peaks_are_cells_higher_than_their_neighbors():
    x, y, column, row = find_peaks(heat_map((3, 5, 3.0), (3, 6, 2.0), (10, 20, 1.0), (23, 0, 4.0)))
    assert list(zip(row, column, strict=True)) == [(3, 5), (10, 20), (23, 0)]
    np.testing.assert_allclose(x, 2 * column + 0.5)
    np.testing.assert_allclose(y, 2 * row + 0.5)


def test_a_faint_source_between_two_cells_is_found_once():
    assert len(find_peaks(heat_map((3, 5, -0.4), (3, 6, -0.5)))[0]) == 1
    assert not len(find_peaks(heat_map((3, 5, -0.4)))[0])


def test_saturated_peaks_are_one_source():
    """Their probabilities are 1 to rounding, but one is higher."""
    assert len(find_peaks(heat_map((3, 5, 40.0), (3, 6, 41.0)))[0]) == 1


def test_peaks_that_point_to_one_place_are_one_source():
    heat = heat_map((3, 5, 3.0), (3, 7, 4.0))
    assert len(find_peaks(heat)[0]) == 2
    heat[1, 3, 5], heat[1, 3, 7] = 1.4, -1.4
    x, _, column, _ = find_peaks(heat)
    assert (x.tolist(), column.tolist()) == ([pytest.approx(13.1)], [7])


@pytest.mark.parametrize("heat", [-20.0, 20.0])
def test_a_map_without_peaks_has_none(heat):
    assert len(find_peaks(heat_map(offset=heat))[0]) == 0


class Kept(torch.nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, values):
        return values * self.factors


@torch.no_grad()
def mask_spread(network, maps):
    """Standard deviation of the masks, the whole network being run once per dropout pass."""
    dropout, masks = network.reader.drop, []
    for factors in KEPT:
        network.reader.drop = Kept(factors)
        masks.append(network.reader(maps, *torch.from_numpy(PLACES.T).float()[:, None]).mask[0].sigmoid())
    network.reader.drop = dropout
    return torch.stack(masks).std(0, correction=0)


def test_a_scene_is_read_as_the_network_reads_it(blank, seen):
    """Patches, sparse pairs and groups lose nothing."""
    reading = read_image(blank.network, seen, positions=tuple(PLACES.T), kept=KEPT)
    np.testing.assert_array_equal([reading.x, reading.y], PLACES.T)
    image, good = seen.window(slice(0, SIZE), slice(0, SIZE))
    with torch.no_grad():
        maps = blank.network.encode(image[None], good[None], seen.psf[None], seen.noise[None])
        shares, features = blank.network.read(maps, *torch.from_numpy(PLACES.T).float()[:, None])
    groups = [[0, 1, 2, 3]]
    for one, other in zip(source_features(reading, groups), features, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    for number, cut in enumerate(reading.cuts):
        rows, columns = (slice(c, c + n) for c, n in zip(cut.corner, cut.mask.shape, strict=True))
        np.testing.assert_allclose(cut.share, shares.share[0, number, :, rows, columns], atol=1e-5)
        np.testing.assert_allclose(cut.mask, shares.mask[0, number, rows, columns].sigmoid(), atol=1e-5)
    spread = mask_spread(blank.network, maps)
    assert spread.max() > 1e-3
    for number, cut in enumerate(reading.cuts):
        rows, columns = (slice(c, c + n) for c, n in zip(cut.corner, cut.mask.shape, strict=True))
        np.testing.assert_allclose(cut.mask_std, spread[number, rows, columns], atol=1e-5)
    one, other = (source_features(reading, groups) for groups in ([[2, 0]], [[0, 2], [1, 3]]))
    torch.testing.assert_close(one.edge[0].transpose(0, 1)[..., 1], other.edge[0, ..., 1])
    torch.testing.assert_close(one.token[0].flip(0), other.token[0])


@pytest.mark.parametrize("tile", [40, 96])
def test_every_listed_source_is_read_once_whatever_the_tiles(blank, seen, tile):
    rng = np.random.default_rng(4)
    edges = [[-0.5, -0.5], [SIZE - 0.51, 3], [39.5, 40], [39.49, 16], [15.5, 15.49], [-3.2, 50.0], [60.0, SIZE + 2.0]]
    places = np.concatenate([edges, rng.uniform(-0.5, SIZE - 0.5, (10, 2))])
    reading = read_image(blank.network, seen, positions=tuple(places.T), kept=KEPT, tile=tile)
    np.testing.assert_array_equal(np.stack([reading.x, reading.y], 1), places)
    assert len(reading.token) == len(reading.cuts) == len(places)
    assert reading.overlap.shape == (len(places),) * 2


def reading_of(overlap):
    count = len(overlap)
    empty = np.zeros(count)
    pairs = csr_array(np.array(overlap, dtype=float))
    return Reading(empty, empty, *[torch.zeros(count, 1)] * 3, empty, empty.astype(bool), pairs, pairs, [])


def test_groups_are_friends_of_friends_whichever_sees_the_other():
    overlap = [[0, 0, 0, 0, 9], [0, 0, 0, 0.5, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0]]
    assert reading_of(overlap).groups == [[0, 2, 3, 4], [1]]
    assert reading_of(np.zeros((3, 3))).groups == [[0], [1], [2]]
    assert reading_of(np.zeros((0, 0))).groups == []


def test_large_groups_are_cut_at_their_weakest_link():
    chain = np.diag(np.r_[np.full(13, 5.0), 2.0, np.full(13, 5.0)], 1)
    assert reading_of(chain).groups == [list(range(14)), list(range(14, 28))]
