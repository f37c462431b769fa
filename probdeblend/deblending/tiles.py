"""Images of any size, tile by tile: where the sources are, and what the network reads of each.

The trunk sees a tile with a margin beyond which nothing that matters for its sources lies, so that a source is read the
same whatever the tiles; it belongs to the tile, and in it to the patch, that its pixel lies in. Memory is bounded by
the tile, and by some kilobytes per source.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from ..networks.scenes import SceneNetwork
from ..networks.sources import REACH as SHARE_REACH
from ..networks.sources import TOKEN, SourceFeatures, edges
from ..networks.trunk import FOLD, STRIDE, TrunkMaps
from ..networks.trunk import REACH as TRUNK_REACH
from ..scene import overlap_groups
from .inputs import Observation

__all__ = ["FAINT", "NEAR", "Cut", "Reading", "find_peaks", "read_image", "source_features"]

PATCH = 128  # pixels on a side whose sources are read together
NEAR = int(SHARE_REACH)  # pixels around a source where it may have light
MARGIN = 2 * NEAR + TRUNK_REACH  # pixels around a tile, a multiple of the stride
THRESHOLD = 0.5  # probability of a source around a peak
LISTED = 3.0  # pixels from a listed position within which a peak is that source
FLUX_WINDOW = 24.0  # pixels around a source that its flux is read from
LINK = 1.0  # expected number of pixels that the masks of a group's neighbors share
UNCONTESTED = 1e-4  # least contested fraction that the network knows
NEGLIGIBLE = 2.5e-3  # contested fraction that is not kept
MASK_PASSES = 8  # dropout passes that tell the spread of a mask to a quarter of itself
FAINT, FOREIGN = 0.02, 0.5  # mask probability and share of the light below which a cutout ends


class Cut(NamedTuple):
    """What is cut out around a source: corner (y, x), mask probability ``(y, x)`` and share ``(band, y, x)``.

    The mask is that without dropout; `mask_std` is its standard deviation over dropout passes.
    """

    corner: tuple[int, int]
    mask: NDArray[np.float32]
    mask_std: NDArray[np.float32]
    share: NDArray[np.float32]


@dataclass(eq=False)
class Reading:
    """What the network reads of an image, one row per source.

    - `x`, `y`: positions in pixels.
    - `token`, `band_token`, `anchor`: see `SourceFeatures`.
    - `contested`: fraction of the light that others share; `unlisted`: whether the heat map has a peak nearby that
      is not in the list.
    - `taken`: fraction of a source's light that lies where another has a share ``(source, source)``; `overlap`: the
      expected number of pixels that their masks share.
    - `cuts`: cutouts.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    token: Tensor
    band_token: Tensor
    anchor: Tensor
    contested: NDArray[np.float64]
    unlisted: NDArray[np.bool_]
    taken: csr_array
    overlap: csr_array
    cuts: list[Cut]

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def groups(self) -> list[list[int]]:
        """Sources whose masks overlap, ordered by their first member."""
        count, member = connected_components(self.overlap > LINK, directed=False)
        order, groups = np.argsort(member, kind="stable"), []
        for sources in np.split(order, np.cumsum(np.bincount(member, minlength=count))[:-1]):
            dense = torch.from_numpy(self.overlap[sources][:, sources].toarray())
            found = overlap_groups(torch.maximum(dense, dense.T), link=LINK)
            groups += [sources[members].tolist() for members in found]
        return sorted(groups)

    @property
    def group(self) -> NDArray[np.int64]:
        """Number of the group of each source."""
        number = np.zeros(len(self), dtype=np.int64)
        for group, members in enumerate(self.groups):
            number[members] = group
        return number


class _Sources(NamedTuple):
    """Sources of a tile at `x`, `y`; each is known by its number in the list or of its cell, and by its pixel."""

    key: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    unlisted: NDArray[np.bool_]

    def chosen(self, index: NDArray) -> Self:
        """Return some of the sources."""
        return self._make(value[index] for value in self)

    def within(self, part: Sequence[slice], margin: int = 0) -> NDArray[np.bool_]:
        """Whether sources lie in a part of the image, or in its margin."""
        inside = (self.column >= part[1].start - margin) & (self.column < part[1].stop + margin)
        return inside & (self.row >= part[0].start - margin) & (self.row < part[0].stop + margin)

    def places(self, part: Sequence[slice]) -> tuple[Tensor, Tensor]:
        """Return x and y ``(1, source)`` from the first pixel of a part of the image."""
        starts = ((self.x, part[1].start), (self.y, part[0].start))
        return tuple(torch.from_numpy(value - start).float()[None] for value, start in starts)


class _Part(NamedTuple):
    """What is read of the sources of a patch; `near` are their numbers and those of their neighbors."""

    own: _Sources
    near: NDArray[np.int64]
    features: SourceFeatures
    contested: NDArray[np.float64]
    cuts: list[Cut]


def find_peaks(heat: Tensor) -> tuple[NDArray[np.float64], ...]:
    """Return x and y in pixels of the peaks of a heat map ``(3, y, x)``, and the column and row of their cells.

    The probability of a source is the sum over a peak's cell and its neighbors, as a faint source may lie in either.
    Of two peaks at one place, within a cell's size, the higher remains.
    """
    cell = heat[0].sigmoid()
    around = functional.avg_pool2d(cell[None], 3, stride=1, padding=1, divisor_override=1)[0]
    highest = functional.max_pool2d(heat[:1], 3, stride=1, padding=1)[0]
    found = (heat[0] == highest) & (around > THRESHOLD) & (cell > 0.2 * THRESHOLD)
    row, column = found.nonzero(as_tuple=True)
    offset = heat[1:, row, column].clamp(-1.5, 1.5)
    place = (FOLD * torch.stack([column, row]) + ((FOLD - 1) / 2 + offset)).double().cpu().numpy()
    height = heat[0, row, column].cpu().numpy()
    pairs = cKDTree(place.T).query_pairs(FOLD, output_type="ndarray")
    kept = np.ones(len(height), dtype=bool)
    kept[np.where(height[pairs[:, 0]] < height[pairs[:, 1]], *pairs.T)] = False
    return (*place[:, kept], *(value.cpu().numpy()[kept] for value in (column, row)))


def read_image(
    network: SceneNetwork,
    seen: Observation,
    positions: tuple[NDArray, NDArray] | None = None,
    *,
    kept: Tensor,
    tile: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Find the sources of an image, or take them at `positions` x, y, and read each.

    `kept` are the factors of the dropout passes on the queries. Sources that are found are ordered by row, then by
    column; given ones keep their order.
    """
    if tile < STRIDE:
        raise ValueError(f"tile must be at least {STRIDE} pixels, got {tile}")
    tiles = _squares([slice(0, size) for size in seen.shape], tile)
    parts: list[_Part] = []
    report = progress or (lambda *_: None)
    report(0, len(tiles))
    with torch.inference_mode():
        for number, core in enumerate(tiles):
            parts += _read_tile(network, seen, core, positions, kept)
            report(number + 1, len(tiles))
    return _joined(parts, bands=len(seen.psf))


def _squares(area: Sequence[slice], side: int) -> list[tuple[slice, slice]]:
    """Divide rows and columns of an image into squares of `side` pixels; the last ones may be smaller."""
    parts = ([slice(n, min(n + side, part.stop)) for n in range(part.start, part.stop, side)] for part in area)
    return list(product(*parts))


def _aligned(side: slice, margin: int, size: int) -> slice:
    """Widen a range of pixels to multiples of the stride, within an image whose last stride may be incomplete."""
    end = -(-size // STRIDE) * STRIDE
    start = max((side.start - margin) // STRIDE * STRIDE, 0)
    return slice(start, min(-(-(side.stop + margin) // STRIDE) * STRIDE, end))


def _read_tile(
    network: SceneNetwork,
    seen: Observation,
    core: tuple[slice, slice],
    positions: tuple[NDArray, NDArray] | None,
    kept: Tensor,
) -> Iterator[_Part]:
    device = network.trunk.gate.weight.device
    rows, columns = (_aligned(side, MARGIN, size) for side, size in zip(core, seen.shape, strict=True))
    image, good = (value[None].to(device) for value in seen.network_window(rows, columns))
    if positions is None and not bool(good.any()):
        return
    maps = network.encode(image, good, seen.psf[None].to(device), seen.noise[None].to(device))
    sources = _sources(maps.heat[0], seen.shape, (rows, columns), positions)
    if not sources.within(core).any():
        return
    queries = network.reader.queries(maps, *(place.to(device) for place in sources.places((rows, columns))))
    for patch in _squares(core, PATCH):
        own = sources.within(patch)
        if not own.any():
            continue
        domain = tuple(_aligned(side, NEAR, size) for side, size in zip(patch, seen.shape, strict=True))
        order = np.concatenate([np.flatnonzero(own), np.flatnonzero(sources.within(domain, NEAR) & ~own)])
        local = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(domain, (rows, columns), strict=True))
        part = (maps.crop(*local), sources.chosen(order), queries[:, order])
        yield _read_patch(network, *part, int(own.sum()), domain, seen.shape, kept)


def _sources(
    heat: Tensor, shape: tuple[int, int], part: tuple[slice, slice], positions: tuple[NDArray, NDArray] | None
) -> _Sources:
    """Return the peaks of a tile's heat map, or the given sources in the tile."""
    x, y, column, row = find_peaks(heat)
    x, y = x + part[1].start, y + part[0].start
    if positions is None:
        column, row = FOLD * column + part[1].start, FOLD * row + part[0].start
        found = _Sources(row * (shape[1] + FOLD) + column, x, y, column, row, np.zeros(len(x), dtype=bool))
        inside = (x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)
        return found.chosen(inside & (column < shape[1]) & (row < shape[0]))
    # A center beyond the edge belongs to the nearest pixel.
    nearest = zip(positions, shape[::-1], strict=True)
    column, row = (np.floor(value + 0.5).clip(0, size - 1).astype(np.int64) for value, size in nearest)
    number = np.arange(len(row))
    listed = _Sources(number, *positions, column, row, np.zeros(len(row), dtype=bool))
    listed = listed.chosen(listed.within(part))
    peaks, own = np.stack([x, y], 1), np.stack([listed.x, listed.y], 1)
    extra = peaks[cKDTree(own).query(peaks)[0] > LISTED]
    return listed._replace(unlisted=cKDTree(extra).query(own)[0] < FLUX_WINDOW)


def _read_patch(
    network: SceneNetwork,
    maps: TrunkMaps,
    sources: _Sources,
    queries: Tensor,
    own: int,
    domain: tuple[slice, slice],
    shape: tuple[int, int],
    kept: Tensor,
) -> _Part:
    """Read the first sources of a patch, whose maps are those of its domain, the others being their neighbors."""
    corner = (domain[0].start, domain[1].start)
    places = tuple(place.to(queries.device) for place in sources.places(domain))
    shares, features = network.read(maps, *places, queries=queries, wanted=own)
    share, light = shares.share[0, :own], maps.image[0].clamp(min=0)
    weight = (share * light).sum((1, 2, 3)).clamp(min=1e-6)
    contested = 1 - (share.square() * light).sum((1, 2, 3)) / weight
    probability = shares.mask[0, :own].sigmoid()
    visible = (probability > FAINT) | (share.amax(1) > FOREIGN)
    limit = [min(n, size - start) for n, size, start in zip(visible.shape[1:], shape, corner, strict=True)]
    centers = np.stack([sources.row - corner[0], sources.column - corner[1]], 1)[:own].tolist()
    cuts = []
    for source, center in enumerate(centers):
        part = _box(visible[source], center, limit)
        place = (float(value[0, source]) for value in places)
        spread = network.reader.mask_spread(maps, shares, source, *place, part, kept[:MASK_PASSES])
        first = (corner[0] + part[0].start, corner[1] + part[1].start)
        pixels = (probability[source, *part], spread, share[source, :, *part])
        cuts.append(Cut(first, *(value.cpu().numpy().copy() for value in pixels)))  # views would keep the patch
    return _Part(
        own=sources.chosen(np.arange(own)),
        near=sources.key,
        features=SourceFeatures(*(value[0].cpu() for value in features)),
        contested=contested.double().cpu().numpy(),
        cuts=cuts,
    )


def _box(visible: Tensor, center: Sequence[int], limit: Sequence[int]) -> tuple[slice, slice]:
    """Return rows and columns of the smallest box around a source where it may have light."""
    sides = []
    for axis, middle, size in zip((1, 0), center, limit, strict=True):
        there = visible[: limit[0], : limit[1]].any(axis).nonzero()[:, 0].tolist()
        low, high = min([middle - 4, *there[:1]]), max([middle + 4, *there[-1:]])
        sides.append(slice(max(low, middle - NEAR, 0), min(high + 1, middle + NEAR + 1, size)))
    return tuple(sides)


def _joined(parts: list[_Part], bands: int) -> Reading:
    """Put patches together: sources in order, pairs by the sources' new numbers."""
    key = np.concatenate([np.zeros(0, dtype=np.int64), *(part.own.key for part in parts)])
    order = np.argsort(key, kind="stable")
    key = key[order]
    pairs, values = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((2, 0))]
    for part in parts:
        overlap = part.features.overlap.double().numpy()
        taken = np.exp(4 * part.features.edge[..., 0].double().numpy() - 4)
        i, j = np.nonzero((overlap > LINK / 4) | (taken > NEGLIGIBLE))
        other = part.near[j]
        place = np.searchsorted(key, other).clip(max=len(key) - 1)
        kept = (key[place] == other) & (part.own.key[i] != other)  # neighbors beyond the image's tiles are no sources
        pairs.append(np.stack([np.searchsorted(key, part.own.key[i]), place])[:, kept])
        values.append(np.stack([taken[i, j], overlap[i, j]])[:, kept])
    index = np.concatenate(pairs, 1)
    taken, overlap = (csr_array((v, tuple(index)), shape=(len(key),) * 2) for v in np.concatenate(values, 1))
    place = np.concatenate([np.zeros((2, 0)), *(np.stack([part.own.x, part.own.y]) for part in parts)], 1)[:, order]
    shapes = {"token": (0, TOKEN), "band_token": (0, bands, TOKEN), "anchor": (0, bands)}
    features = {
        name: torch.cat([torch.zeros(shape), *(getattr(part.features, name) for part in parts)])[order].float()
        for name, shape in shapes.items()
    }
    cuts = [cut for part in parts for cut in part.cuts]
    return Reading(
        *place,
        **features,
        contested=np.concatenate([np.zeros(0), *(part.contested for part in parts)])[order],
        unlisted=np.concatenate([np.zeros(0, dtype=bool), *(part.own.unlisted for part in parts)])[order],
        taken=taken,
        overlap=overlap,
        cuts=[cuts[i] for i in order],
    )


def source_features(reading: Reading, groups: list[list[int]]) -> SourceFeatures:
    """Return the features of groups of equal size, each as a scene of its own."""
    member = np.array(groups)
    pairs = np.broadcast_arrays(member[:, :, None], member[:, None])

    def known(values: csr_array) -> Tensor:
        found = values[pairs[0].ravel(), pairs[1].ravel()]
        return torch.from_numpy(found).float().reshape(pairs[0].shape)

    anchor = reading.anchor[member]
    place = np.stack([reading.x, reading.y], -1)[member]
    distance = torch.from_numpy(np.linalg.norm(place[:, :, None] - place[:, None], axis=-1)).float()
    taken = known(reading.taken).clamp(min=UNCONTESTED)
    of_pairs = edges(taken, distance, anchor.mean(-1), known(reading.overlap))
    return SourceFeatures(reading.token[member], reading.band_token[member], anchor, *of_pairs)
