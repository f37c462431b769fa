"""Where the companion of a blend lies: rules that draw its offset from the central galaxy.

The published separations are, to the precision of the published table of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056), uniform in the area between two circles that follow from the radii R1 and R2 of
the pair: the outer one is ``r = min(4 min(R1, R2), 64 px)``, the inner one ``max(R1, R2)``, or ``0.8 r``
where that is larger than ``r``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..scene import STAMP_SIZE

__all__ = ["SEPARATIONS", "separation_limits"]

CLOSE = 4.5


def _annulus(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    area = inner.square() + (outer.square() - inner.square()) * torch.rand_like(inner)
    distance, direction = area.sqrt(), 2 * math.pi * torch.rand_like(inner)
    return distance * direction.cos(), distance * direction.sin()


def separation_limits(radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the circles between which published companions lie.

    Parameters
    ----------
    radius
        Major-axis half-light radii of the pair in pixels ``(..., 2)``.

    Returns
    -------
    inner, outer
        Least and largest separation in pixels ``(...)``.
    """
    outer = (4 * radius.amin(-1)).clamp(max=STAMP_SIZE / 2)
    inner = radius.amax(-1)
    return torch.where(inner > outer, 0.8 * outer, inner), outer


def _published(radius: Tensor) -> tuple[Tensor, Tensor]:
    return _annulus(*separation_limits(radius))


def _public_code(radius: Tensor) -> tuple[Tensor, Tensor]:
    inner, outer = separation_limits(radius)
    shift = torch.full((len(radius), 2), math.nan)
    todo = torch.ones(len(radius), dtype=torch.bool)
    for attempt in range(200):
        trial = torch.round((2 * torch.rand(len(radius), 2) - 1) * outer[:, None])
        distance = trial.norm(dim=-1)
        slack = 0.5 if attempt > 100 else 0.0
        good = todo & (distance >= inner - slack) & (distance <= outer + slack)
        shift[good] = trial[good]
        todo &= ~good
        if not todo.any():
            break
    # An annulus narrower than the pixel grid holds no integer shift: such pairs get its continuous law.
    dx, dy = _published(radius)
    return torch.where(todo, dx, shift[:, 0]), torch.where(todo, dy, shift[:, 1])


def _paper_text(radius: Tensor) -> tuple[Tensor, Tensor]:
    low = 0.5 * radius.amax(-1, keepdim=True)
    size = low + (STAMP_SIZE / 2 - low) * torch.rand(len(radius), 2)
    sign = 1 - 2 * torch.randint(0, 2, size.shape)
    dx, dy = (size * sign).unbind(-1)
    return dx, dy


def _anywhere(radius: Tensor) -> tuple[Tensor, Tensor]:
    half = STAMP_SIZE / 2 - 8.0
    dx, dy = -half + 2 * half * torch.rand(2, len(radius))
    return dx, dy


def _close(radius: Tensor) -> tuple[Tensor, Tensor]:
    distance, direction = torch.rand(2, len(radius))
    distance, direction = CLOSE * distance, 2 * math.pi * direction
    return distance * direction.cos(), distance * direction.sin()


SEPARATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "published": _published,
    "public-code": _public_code,
    "paper-text": _paper_text,
    "anywhere": _anywhere,
    "close": _close,
}
"""Rules for the companion's offset (dx, dy), given the pair's major-axis radii (blend, 2), all in pixels.

``published`` is the law of the published table; ``public-code`` its discrete form with integer shifts in the
square; ``paper-text`` the paper's words, between half the larger radius and half the stamp on each axis;
``anywhere`` uniform over the stamp but for 8 pixels at its edge; ``close`` at a distance that is uniform between
nothing and 4.5 pixels, 1.4 times the FWHM of CANDELS F160W, whatever the radii.
"""
