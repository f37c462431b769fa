"""Where the companion of a blend lies: rules that draw its offset from the central galaxy.

The published separations are, to the precision of the published table of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056), uniform in the area between two circles that follow from the radii R1 and R2 of the pair:
the outer one is ``r = min(4 min(R1, R2), 64 px)``, the inner one ``max(R1, R2)``, or ``0.8 r`` where that is larger
than ``r``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..scene import STAMP_SIZE

__all__ = ["SEPARATIONS", "separation_limits"]

CLOSE = 4.5  # pixels, 1.4 times the FWHM of CANDELS F160W
EDGE = 8.0  # pixels at the edge of the stamp without companions


def separation_limits(radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the circles ``(...)`` between which companions lie, for major-axis radii ``(..., 2)``; all in pixels."""
    outer = (4 * radius.amin(-1)).clamp(max=STAMP_SIZE / 2)
    inner = radius.amax(-1)
    return torch.where(inner > outer, 0.8 * outer, inner), outer


def _published(radius: Tensor) -> tuple[Tensor, Tensor]:
    inner, outer = separation_limits(radius)
    area = inner.square() + (outer.square() - inner.square()) * torch.rand_like(inner)
    distance, direction = area.sqrt(), 2 * math.pi * torch.rand_like(inner)
    return distance * direction.cos(), distance * direction.sin()


def _anywhere(radius: Tensor) -> tuple[Tensor, Tensor]:
    half = STAMP_SIZE / 2 - EDGE
    dx, dy = -half + 2 * half * torch.rand(2, len(radius))
    return dx, dy


def _close(radius: Tensor) -> tuple[Tensor, Tensor]:
    distance, direction = torch.rand(2, len(radius))
    distance, direction = CLOSE * distance, 2 * math.pi * direction
    return distance * direction.cos(), distance * direction.sin()


SEPARATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "published": _published,
    "anywhere": _anywhere,
    "close": _close,
}
"""Rules for the companion's offset (dx, dy), given the pair's major-axis radii (blend, 2), all in pixels.

``published`` is the law of the published table; ``anywhere`` is uniform over the stamp except for 8 pixels at its edge;
``close`` has a distance that is uniform between zero and 4.5 pixels, whatever the radii.
"""
