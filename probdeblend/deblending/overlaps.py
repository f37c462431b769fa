"""Which sources of an image overlap, and which of them are deblended together.

Two sources overlap where their Kron ellipses or their segments touch; touching segments are parts of one parent, which
SEP has split. A galaxy with several neighbors is paired with the one that overlaps it most among those without a
partner; if none is left, it is deblended with the one that overlaps it most, and only its own row is kept.

The overlap of ellipses is the contact function of Perram & Wertheim (1985, doi:10.1016/0021-9991(85)90171-8): the
squared factor by which both must grow to touch, below 1 where they overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..photometry.detection import Detection, kron_radius

__all__ = ["contact", "find_pairs", "pair_up"]

REACH = 56  # pixels on each axis within which a companion is well inside the stamp


def find_pairs(detection: Detection, pixels: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return the pairs to deblend, and what belongs to the sources of an image.

    These are the sources ``(blend, galaxy)`` of each pair, the brighter one first; whether its row is kept, of the same
    shape; whether a source is in a group of more than two ``(source,)``; and the matrices E ``(source, 2, 2)`` of the
    Kron ellipses, on which r E^-1 r = 1.
    """
    radius = kron_radius(pixels, detection)
    axes = np.stack([np.cos(detection.angle), np.sin(detection.angle)], axis=-1)
    major = axes[:, :, None] * axes[:, None, :]
    minor = np.eye(2) - major
    semi = np.stack([radius * detection.semi_major, radius * detection.semi_minor])[:, :, None, None] ** 2
    ellipses = semi[0] * major + semi[1] * minor
    position = np.stack([detection.x, detection.y], axis=-1)
    links = cKDTree(position).query_pairs(REACH, p=np.inf, output_type="ndarray").reshape(-1, 2)
    depth = contact(position[links[:, 1]] - position[links[:, 0]], *(ellipses[i] for i in links.T))
    touching = (depth < 1) | np.isin(_key(links, len(detection)), _adjacent(detection))
    links, depth = links[touching], depth[touching]
    graph = coo_array((np.ones(len(links)), tuple(links.T)), shape=(len(detection),) * 2)
    _, group = connected_components(graph, directed=False)
    crowded = np.bincount(group)[group] > 2
    return *pair_up(detection.flux, links, depth), crowded, ellipses


def contact(offset: NDArray, first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Return the contact function of pairs of ellipses with centers apart by an offset ``(pair, 2)``."""
    greatest = np.zeros(len(offset))
    for weight in np.linspace(0, 1, 34)[1:-1]:
        mixed = (1 - weight) * first + weight * second
        solved = np.linalg.solve(mixed, offset[..., None])[..., 0]
        greatest = np.maximum(greatest, weight * (1 - weight) * (offset * solved).sum(-1))
    return greatest


def _key(links: NDArray, count: int) -> NDArray[np.int64]:
    return links.min(-1).astype(np.int64) * count + links.max(-1)


def _adjacent(detection: Detection) -> NDArray[np.int64]:
    labels = detection.segmentation
    sides = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    sides = np.concatenate([np.stack(side, axis=-1).reshape(-1, 2) for side in sides])
    sides = sides[(sides > 0).all(-1) & (sides[:, 0] != sides[:, 1])]
    return np.unique(_key(sides - 1, len(detection)))


def pair_up(flux: NDArray, links: NDArray, depths: NDArray) -> tuple[NDArray, NDArray]:
    """Pair sources with their links ``(link, 2)``, of which the lowest contact function is the deepest overlap."""
    neighbors: list[list[tuple[float, int]]] = [[] for _ in flux]
    for (first, second), depth in zip(links.tolist(), depths.tolist(), strict=True):
        neighbors[first].append((depth, second))
        neighbors[second].append((depth, first))
    done: set[int] = set()
    pairs, kept = [], []
    for source in np.argsort(-flux, kind="stable").tolist():
        if source in done or not neighbors[source]:
            continue
        free = [neighbor for neighbor in neighbors[source] if neighbor[1] not in done]
        partner = min(free or neighbors[source])[1]
        pair = sorted((source, partner), key=lambda i: -flux[i])
        pairs.append(pair)
        kept.append([bool(free) or i == source for i in pair])
        done |= {source, partner}
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(kept, dtype=bool).reshape(-1, 2)
