"""Where the sources of a scene lie: the published law of pairs, clusters, or anywhere.

The published separations are, to the precision of the published table of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056), uniform in the area between two circles that follow from the major-axis half-light radii R1
and R2 of the pair: the outer one is ``r = min(4 min(R1, R2), 64 px)``, the inner one ``max(R1, R2)``, or ``0.8 r``
where that is larger than ``r``. Networks are trained on pairs anywhere in the image, some closer or farther than that.

In a cluster, each source lies anywhere or, more often, near one of those before it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Uniform

__all__ = ["Frame", "anywhere", "clustered", "paired", "separation_limits"]

FARTHEST = 64.0  # pixels, the largest published separation
MIDDLE = 1.0  # pixels from the middle of the image within which a published central galaxy lies
APART, ACROSS = 2.0, 0.7  # least separation in pixels, and largest over the image's side, of pairs that lie anywhere
CLOSE = (1.0, 5.0)  # pixels, separations of close pairs
LARGEST = 0.8  # largest separation over the image's side
TRIES = 20


class Frame(NamedTuple):
    """The image that sources lie in.

    - `shape`: pixels ``(y, x)``.
    - `pixel_scale`: arcsec per pixel; a number or one per scene.
    - `blur`: radius of the PSF in pixels, 1 / sqrt(sum of its squares); a number or one per scene.
    - `margin`: pixels at the edge without centers.
    """

    shape: tuple[int, int]
    pixel_scale: float | Tensor
    blur: Tensor | float
    margin: float = 6.0

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Least and largest x, y of a center."""
        far = torch.tensor([self.shape[1], self.shape[0]], dtype=torch.float32) - self.margin
        return torch.full((2,), float(self.margin)), far


def separation_limits(radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the circles ``(...)`` between which companions lie, for major-axis radii ``(..., 2)``; all in pixels."""
    outer = (4 * radius.amin(-1)).clamp(max=FARTHEST)
    inner = radius.amax(-1)
    return torch.where(inner > outer, 0.8 * outer, inner), outer


def _step(distance: Tensor) -> Tensor:
    direction = 2 * math.pi * torch.rand_like(distance)
    return distance[..., None] * torch.stack([direction.cos(), direction.sin()], -1)


def _within(low: Tensor | float, high: Tensor | float, like: Tensor) -> Tensor:
    """Draw distances that are uniform in the area between two circles."""
    return (low**2 + (high**2 - low**2) * torch.rand_like(like)).sqrt()


def anywhere(radius: Tensor, frame: Frame) -> Tensor:
    """Draw centers x, y ``(scene, source, 2)`` anywhere in the image."""
    return Uniform(*frame.limits, validate_args=False).sample(radius.shape)


def paired(
    radius: Tensor, frame: Frame, *, centered: bool, anywhere_fraction: float = 0.0, close_fraction: float = 0.0
) -> Tensor:
    """Draw centers ``(scene, source, 2)``: two sources by a law of separations, the others anywhere.

    Major-axis half-light radii ``(scene, source)`` are in pixels. If `centered`, the first source lies in the middle of
    the image, as published, else both lie anywhere in it. Fractions of the pairs are farther apart or closer.
    """
    inner, outer = separation_limits(radius[:, :2])
    side = min(frame.shape)
    if not centered:
        outer = outer.clamp(max=LARGEST * side)
        inner = torch.minimum(inner, 0.8 * outer)
    law = torch.rand_like(inner)
    distance = _within(inner, outer, inner)
    far = _within(APART, ACROSS * side, inner)
    near = CLOSE[0] + (CLOSE[1] - CLOSE[0]) * torch.rand_like(inner)
    distance = torch.where(law < anywhere_fraction + close_fraction, near, distance)
    step = _step(torch.where(law < anywhere_fraction, far, distance))
    if centered:
        middle = (torch.tensor(frame.shape[::-1]) - 1) / 2
        low, high = middle - MIDDLE, middle + MIDDLE
    else:  # so that the second center is in the image, too
        low, high = frame.limits
        low = low - step.clamp(max=0)
        high = torch.maximum(high - step.clamp(min=0), low + 1e-3)
    first = low + (high - low) * torch.rand_like(step)
    places = torch.cat([torch.stack([first, first + step], 1), anywhere(radius[:, 2:], frame)], 1)
    return places[:, : radius.shape[1]]


def clustered(radius: Tensor, frame: Frame, near: Tensor) -> Tensor:
    """Draw centers ``(scene, source, 2)``: each lies anywhere or, with a probability, near an earlier one.

    Half-light radii ``(scene, source)`` are in pixels, the probability `near` is ``(scene,)``. Centers closer to each
    other than a quarter of the PSF's radius, or outside the image, are drawn again.
    """
    blur = torch.as_tensor(frame.blur, dtype=radius.dtype).reshape(-1).expand(len(radius))
    scene = torch.arange(len(radius))
    places = radius.new_zeros(*radius.shape, 2)
    largest = torch.tensor(frame.shape[::-1]) - 4.0
    for number in range(radius.shape[1]):
        tried = anywhere(radius.expand(TRIES, *radius.shape)[..., 0], frame)
        if number:
            attached = torch.rand(TRIES, len(radius)) < near
            other = torch.randint(number, (TRIES, len(radius)))
            reach = 2.0 * (radius[:, number] + radius[scene, other]) + 0.8 * blur
            beside = places[scene, other] + _step(_within(0.15 * blur, reach, reach))
            tried = torch.where(attached[..., None], beside, tried)
        apart = (tried[:, :, None] - places[:, :number]).square().sum(-1) > (0.25 * blur[:, None]).square()
        good = ((tried > 3) & (tried < largest)).all(-1) & apart.all(-1)
        first = torch.where(good.any(0), good.int().argmax(0), TRIES - 1)
        places[:, number] = torch.minimum(tried[first, scene].clamp(min=3), largest)
    return places
