"""Images of any size, tile by tile: where the sources are, and what the network reads of each.

The trunk sees a tile with a margin beyond which nothing that matters for its sources lies, so that a source is read the
same whatever the tiles; it belongs to the tile, and in it to the patch, that its position lies in. Memory is bounded by
the tile, and by some kilobytes per source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

from ..networks.scenes import SceneNetwork
from ..networks.sources import REACH as SHARE_REACH
from ..networks.sources import SourceFeatures
from ..networks.trunk import FOLD, STRIDE, TrunkMaps
from ..networks.trunk import REACH as TRUNK_REACH
from ..scene import overlap_groups

__all__ = ["LINK", "Reading", "Window", "find_groups", "find_peaks", "read_image", "source_features"]

PATCH = 128  # pixels on a side whose sources are read together
NEAR = int(SHARE_REACH)  # pixels around a source where it may have light
MARGIN = 2 * NEAR + TRUNK_REACH  # pixels around a tile, a multiple of the stride
THRESHOLD = 0.5  # probability of a source around a peak
LISTED = 3.0  # pixels from a listed position within which a peak is that source
LINK = 1.0  # expected number of pixels that the masks of a group's neighbors share
EDGES = 3  # contested light, distance and overlap; the difference of brightness follows from the first guesses
FAINT = 0.02  # mask probability below which a cutout ends

Window = Callable[[slice, slice], tuple[Tensor, Tensor]]
"""A function that returns pixels over sky noise and good pixels ``(band, y, x)`` of rows and columns of an image."""


class Cut(NamedTuple):
    """What is cut out around a source: corner (y, x), mask probability ``(y, x)`` and share ``(band, y, x)``."""

    corner: tuple[int, int]
    mask: NDArray[np.float32]
    share: NDArray[np.float32]


@dataclass
class Reading:
    """What the network reads of an image, one row per source; edges join sources whose light may overlap.

    - `x`, `y`: positions in pixels; `peak`: probability of a source there, by the heat map.
    - `token`, `band_token`, `anchor`: see `SourceFeatures`.
    - `contested`: fraction of the light that others share; `unlisted`: whether the heat map has a peak nearby that
      is not in the list.
    - `first`, `second`, `edge`: edges between sources, and their features.
    - `overlap`: expected number of pixels that the masks share, per edge.
    - `cuts`: cutouts.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    peak: NDArray[np.float64]
    token: Tensor
    band_token: Tensor
    anchor: Tensor
    contested: NDArray[np.float64]
    unlisted: NDArray[np.bool_]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    edge: Tensor
    overlap: NDArray[np.float64]
    cuts: list[Cut] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.x)


def find_peaks(heat: Tensor, *, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and y in pixels of the peaks of a heat map ``(3, y, x)``, and the probability of a source around each.

    That probability is the sum over a peak's cell and its neighbors, as a faint source may lie in either.
    """
    cell = heat[0].sigmoid()
    around = functional.avg_pool2d(cell[None], 3, stride=1, padding=1, divisor_override=1)[0]
    highest = functional.max_pool2d(cell[None], 3, stride=1, padding=1)[0]
    row, column = ((cell == highest) & (around > threshold) & (cell > 0.2 * threshold)).nonzero(as_tuple=True)
    dx, dy = heat[1:, row, column].clamp(-1.5, 1.5)
    middle = (FOLD - 1) / 2
    return FOLD * column + middle + dx, FOLD * row + middle + dy, around[row, column].clamp(max=1)


def read_image(
    network: SceneNetwork,
    window: Window,
    shape: tuple[int, int],
    bands: tuple[Tensor, Tensor],
    *,
    positions: tuple[NDArray, NDArray] | None = None,
    tile: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Find the sources of an image, or take them at `positions` x, y, and read each.

    `bands` are their PSFs and noise numbers. Sources that are found are ordered by row, then by column; given ones keep
    their order.
    """
    tiles = [(y, x) for y in range(0, shape[0], tile) for x in range(0, shape[1], tile)]
    parts: list[_Part] = []
    with torch.inference_mode():
        for number, (top, left) in enumerate(tiles):
            core = (slice(top, min(top + tile, shape[0])), slice(left, min(left + tile, shape[1])))
            parts += _read_tile(network, window, shape, bands, core, positions)
            if progress is not None:
                progress(number + 1, len(tiles))
    return _joined(parts, None if positions is None else len(positions[0]))


@dataclass
class _Part:
    """What is read of the sources of a patch; a source is known by its number in the list, or by its cell."""

    key: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    peak: NDArray[np.float64]
    features: SourceFeatures
    near: NDArray[np.int64]
    contested: NDArray[np.float64]
    unlisted: NDArray[np.bool_]
    cuts: list[Cut]


def _aligned(side: slice, margin: int, size: int) -> slice:
    """Widen a range of pixels to multiples of the stride, within an image whose last stride may be incomplete."""
    end = -(-size // STRIDE) * STRIDE
    start = max((side.start - margin) // STRIDE * STRIDE, 0)
    return slice(start, min(-(-(side.stop + margin) // STRIDE) * STRIDE, end))


class _Sources(NamedTuple):
    """Sources of a tile, at positions from its first pixel; `column` and `row` are whole pixels of the image."""

    key: NDArray[np.int64]
    x: Tensor
    y: Tensor
    column: NDArray[np.int64]
    row: NDArray[np.int64]
    peak: Tensor
    unlisted: NDArray[np.bool_]

    def chosen(self, index: NDArray) -> _Sources:
        """Return some of the sources."""
        return _Sources(*(value[index] for value in self))

    def within(self, part: Sequence[slice], margin: int) -> NDArray[np.bool_]:
        """Whether sources lie in a part of the image, or in its margin."""
        low, high = part[1].start - margin, part[1].stop + margin
        inside = (self.column >= low) & (self.column < high)
        return inside & (self.row >= part[0].start - margin) & (self.row < part[0].stop + margin)


def _read_tile(
    network: SceneNetwork,
    window: Window,
    shape: tuple[int, int],
    bands: tuple[Tensor, Tensor],
    core: tuple[slice, slice],
    positions: tuple[NDArray, NDArray] | None,
) -> Iterator[_Part]:
    rows, columns = (_aligned(side, MARGIN, size) for side, size in zip(core, shape, strict=True))
    image, good = window(rows, columns)
    if not bool(good.any()):
        return
    maps = network.encode(image[None], good[None], *(value[None] for value in bands))
    origin = (rows.start, columns.start)
    sources = _sources(maps.heat[0], shape, origin, positions)
    if not len(sources.key):
        return
    queries = network.reader.queries(maps, sources.x[None], sources.y[None])
    for top in range(core[0].start, core[0].stop, PATCH):
        for left in range(core[1].start, core[1].stop, PATCH):
            patch = (slice(top, min(top + PATCH, core[0].stop)), slice(left, min(left + PATCH, core[1].stop)))
            own = sources.within(patch, 0)
            if not own.any():
                continue
            domain = [_aligned(side, NEAR, size) for side, size in zip(patch, shape, strict=True)]
            order = np.concatenate([np.flatnonzero(own), np.flatnonzero(sources.within(domain, NEAR) & ~own)])
            local = [slice(side.start - first, side.stop - first) for side, first in zip(domain, origin, strict=True)]
            here = sources.chosen(order)
            here = here._replace(x=here.x - local[1].start, y=here.y - local[0].start)
            corner = (domain[0].start, domain[1].start)
            yield _read_patch(network, maps.crop(*local), here, queries[:, order], int(own.sum()), corner, shape)


def _sources(
    heat: Tensor, shape: tuple[int, int], origin: tuple[int, int], positions: tuple[NDArray, NDArray] | None
) -> _Sources:
    """Return the peaks of a tile's heat map, or the given sources in the tile."""
    found_x, found_y, peak = find_peaks(heat)
    if positions is None:
        inside = (found_x >= -0.5) & (found_x < shape[1] - 0.5 - origin[1])
        inside &= (found_y >= -0.5) & (found_y < shape[0] - 0.5 - origin[0])
        x, y = found_x[inside], found_y[inside]
        cell_y, cell_x = ((value / FOLD + 0.25).floor().long().cpu().numpy() for value in (y, x))
        column, row = FOLD * cell_x + origin[1], FOLD * cell_y + origin[0]
        return _Sources(row * (shape[1] + FOLD) + column, x, y, column, row, peak[inside], np.zeros(len(x), dtype=bool))
    height, width = (FOLD * size for size in heat.shape[-2:])
    column, row = (np.floor(value + 0.5).astype(np.int64) for value in positions)
    inside = (column >= origin[1]) & (column < origin[1] + width) & (row >= origin[0]) & (row < origin[0] + height)
    key = np.flatnonzero(inside)
    x, y = (
        torch.from_numpy(value[key] - first).float().to(heat.device)
        for value, first in zip(positions, (origin[1], origin[0]), strict=True)
    )
    unlisted = _unlisted(x, y, found_x, found_y)
    return _Sources(key, x, y, column[key], row[key], _nearest_peak(x, y, found_x, found_y, peak), unlisted)


def _read_patch(
    network: SceneNetwork,
    maps: TrunkMaps,
    sources: _Sources,
    queries: Tensor,
    own: int,
    corner: tuple[int, int],
    shape: tuple[int, int],
) -> _Part:
    """Read the first sources of a patch, whose maps begin at `corner`, the others being their neighbors."""
    shares, features = network.read(maps, sources.x[None], sources.y[None], queries=queries, wanted=own)
    share, light = shares.share[0, :own], maps.image[0].clamp(min=0)
    weight = (share * light).sum((1, 2, 3)).clamp(min=1e-6)
    contested = 1 - (share.square() * light).sum((1, 2, 3)) / weight
    probability = shares.mask[0, :own].sigmoid()
    x, y, peak = (value[:own].double().cpu().numpy() for value in (sources.x, sources.y, sources.peak))
    places = zip(x.tolist(), y.tolist(), strict=True)
    return _Part(
        key=sources.key[:own],
        x=x + corner[1],
        y=y + corner[0],
        peak=peak,
        features=SourceFeatures(*(value[0].cpu() for value in features)),
        near=sources.key,
        contested=contested.double().cpu().numpy(),
        unlisted=sources.unlisted[:own],
        cuts=[_cut(probability[i], share[i], place, corner, shape) for i, place in enumerate(places)],
    )


def _cut(
    probability: Tensor, share: Tensor, place: tuple[float, float], corner: tuple[int, int], shape: tuple[int, int]
) -> Cut:
    """Cut out the smallest box around a source where it may have light."""
    height, width = (min(n, size - start) for n, size, start in zip(probability.shape, shape, corner, strict=True))
    seen = probability[:height, :width] > FAINT
    row, column = min(max(round(place[1]), 0), height - 1), min(max(round(place[0]), 0), width - 1)
    sides = []
    for axis, middle, size in ((1, row, height), (0, column, width)):
        there = seen.any(axis).nonzero()[:, 0]
        low = min(int(there[0]) if len(there) else middle, middle - 4)
        high = max(int(there[-1]) if len(there) else middle, middle + 4)
        sides.append(slice(max(low, middle - NEAR, 0), min(high + 1, middle + NEAR + 1, size)))
    rows, columns = sides
    return Cut(
        (corner[0] + rows.start, corner[1] + columns.start),
        probability[rows, columns].cpu().numpy(),
        share[:, rows, columns].cpu().numpy(),
    )


def _nearest_peak(x: Tensor, y: Tensor, found_x: Tensor, found_y: Tensor, peak: Tensor) -> Tensor:
    """Probability of the peak at each position, 0 where there is none."""
    if not len(found_x) or not len(x):
        return torch.zeros_like(x)
    distance = torch.hypot(x[:, None] - found_x, y[:, None] - found_y)
    nearest = distance.argmin(1)
    return torch.where(distance.amin(1) < LISTED, peak[nearest], 0.0)


def _unlisted(x: Tensor, y: Tensor, found_x: Tensor, found_y: Tensor) -> NDArray[np.bool_]:
    """Whether a peak that is none of the listed sources lies within a flux window of each."""
    if not len(found_x) or not len(x):
        return np.zeros(len(x), dtype=bool)
    distance = torch.hypot(x[:, None] - found_x, y[:, None] - found_y)
    extra = distance.amin(0) > LISTED
    return ((distance < 24.0) & extra).any(1).cpu().numpy()


def _joined(parts: list[_Part], listed: int | None) -> Reading:
    """Put patches together: sources in order, edges by the sources' new numbers."""
    key = np.concatenate([part.key for part in parts]) if parts else np.zeros(0, dtype=np.int64)
    order = np.argsort(key, kind="stable")
    number = {int(value): i for i, value in enumerate(key[order])}
    first, second, edge, overlap = [], [], [], []
    for part in parts:
        joined = part.features.overlap > LINK / 4
        joined |= part.features.edge[..., 0] > -0.5  # a contested fraction above 2.5e-3
        for i, j in joined.nonzero().tolist():
            if (other := number.get(int(part.near[j]))) is not None and part.key[i] != part.near[j]:
                first.append(number[int(part.key[i])])
                second.append(other)
                edge.append(part.features.edge[i, j, [0, 1, 3]])
                overlap.append(float(part.features.overlap[i, j]))

    def ordered(name: str) -> NDArray:
        values = [getattr(part, name) for part in parts]
        return np.concatenate(values)[order] if values else np.zeros(0)

    def features(name: str) -> Tensor:
        values = [getattr(part.features, name) for part in parts]
        return torch.cat(values)[order] if values else torch.zeros(0)

    cuts = [cut for part in parts for cut in part.cuts]
    return Reading(
        x=ordered("x"),
        y=ordered("y"),
        peak=ordered("peak"),
        token=features("token"),
        band_token=features("band_token"),
        anchor=features("anchor"),
        contested=ordered("contested"),
        unlisted=ordered("unlisted").astype(bool),
        first=np.array(first, dtype=np.int64),
        second=np.array(second, dtype=np.int64),
        edge=torch.stack(edge) if edge else torch.zeros(0, EDGES),
        overlap=np.array(overlap),
        cuts=[cuts[i] for i in order],
    )


def find_groups(reading: Reading) -> list[list[int]]:
    """Return the groups of sources whose masks overlap, ordered by their first member."""
    linked = reading.overlap > LINK
    links = (reading.first[linked], reading.second[linked])
    graph = coo_array((reading.overlap[linked], links), shape=(len(reading),) * 2)
    count, member = connected_components(graph, directed=False)
    joined = np.argsort(member, kind="stable")
    groups = []
    matrix = graph.tocsr()
    for sources in np.split(joined, np.cumsum(np.bincount(member, minlength=count))[:-1]):
        if len(sources) < 2:
            groups += [[int(source)] for source in sources]
            continue
        dense = torch.from_numpy(matrix[sources][:, sources].toarray())
        dense = torch.maximum(dense, dense.T)
        groups += [[int(sources[i]) for i in members] for members in overlap_groups(dense, link=LINK)]
    return sorted(groups)


def source_features(reading: Reading, groups: list[list[int]]) -> SourceFeatures:
    """Return the features of groups of equal size, each as a scene of its own."""
    member = torch.tensor(groups)
    count, size = member.shape
    place = {source: (g, i) for g, sources in enumerate(groups) for i, source in enumerate(sources)}
    anchor = reading.anchor[member]
    x, y = torch.from_numpy(reading.x).float()[member], torch.from_numpy(reading.y).float()[member]
    edge = torch.zeros(count, size, size, 4)
    different = 1 - torch.eye(size)
    distance = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None])
    edge[..., 0] = (np.log(1e-4) / 4 + 1) * different
    edge[..., 1] = ((distance + 1).log() - 2) * different
    edge[..., 2] = (anchor.mean(-1)[:, :, None] - anchor.mean(-1)[:, None]) / 3 * different
    overlap = torch.zeros(count, size, size)
    for number, (i, j) in enumerate(zip(reading.first.tolist(), reading.second.tolist(), strict=True)):
        if i in place and j in place and place[i][0] == place[j][0]:
            at = (place[i][0], place[i][1], place[j][1])
            edge[(*at, 0)], edge[(*at, 3)] = reading.edge[number, 0], reading.edge[number, 2]
            overlap[at] = reading.overlap[number]
    return SourceFeatures(reading.token[member], reading.band_token[member], anchor, edge, overlap)
