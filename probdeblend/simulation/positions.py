"""Where the sources of a scene lie: the published law of pairs, clusters, or anywhere.

The published separations are, to the precision of the published table of Boucaud et al. (2020,
doi:10.1093/mnras/stz3056), uniform in the area between two circles that follow from the major-axis half-light radii R1
and R2 of the pair: the outer one is ``r = min(4 min(R1, R2), 64 px)``, the inner one ``max(R1, R2)``, or ``0.8 r``
where that is larger than ``r``. Networks are trained on pairs anywhere in the image, some closer or farther than that.

In a cluster, each source lies anywhere or, more often, near one of those before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Uniform, constraints

__all__ = ["Clustered", "Frame", "Paired", "Positions", "separation_limits"]

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


class Positions(TorchDistribution):
    """Centers x, y of the sources of scenes, event ``(source, 2)``: anywhere in the image.

    Sources that do not exist do not count. The subclasses have other laws.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, radius: Tensor, exists: Tensor, frame: Frame) -> None:
        self.radius, self.exists, self.frame = radius, exists, frame
        self.anywhere = Uniform(*frame.limits, validate_args=False)
        super().__init__(torch.Size(radius.shape[:-1]), (radius.shape[-1], 2), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw centers."""
        return self.anywhere.sample(sample_shape + self.radius.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of centers."""
        return torch.where(self.exists, self.anywhere.log_prob(value).sum(-1), 0.0).sum(-1)


class Paired(Positions):
    """Two sources by a law of separations, the others anywhere.

    Major-axis half-light radii ``(..., source)`` are in pixels. If `centered`, the first source lies in the middle of
    the image, as published, else both lie anywhere in it. Fractions of the pairs are farther apart or closer.
    """

    def __init__(
        self, radius: Tensor, exists: Tensor, frame: Frame, *, centered: bool, anywhere: float = 0.0, close: float = 0.0
    ) -> None:
        super().__init__(radius, exists, frame)
        self.centered, self.fractions = centered, (1 - anywhere - close, anywhere, close)

    def _circles(self) -> tuple[Tensor, Tensor]:
        radius = self.radius[..., :2]
        inner, outer = separation_limits(radius)
        if self.centered:
            return inner, outer
        outer = outer.clamp(max=LARGEST * min(self.frame.shape))
        return torch.minimum(inner, 0.8 * outer), outer

    def _corner(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Limits of the first center such that the second one, a step away, is in the image too."""
        if self.centered:
            middle = (torch.tensor(self.frame.shape[::-1]) - 1) / 2 + 0 * step
            return middle - MIDDLE, middle + MIDDLE
        low, high = self.frame.limits
        low = low - step.clamp(max=0)
        return low, torch.maximum(high - step.clamp(min=0), low + 1e-3)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw centers."""
        inner, outer = (value.expand(sample_shape + self.batch_shape) for value in self._circles())
        _, anywhere, close = self.fractions
        law = torch.rand_like(inner)
        distance = _within(inner, outer, inner)
        far = _within(APART, ACROSS * min(self.frame.shape), inner)
        near = CLOSE[0] + (CLOSE[1] - CLOSE[0]) * torch.rand_like(inner)
        step = _step(torch.where(law < anywhere, far, torch.where(law < anywhere + close, near, distance)))
        low, high = self._corner(step)
        first = low + (high - low) * torch.rand_like(low)
        others = self.anywhere.sample((*inner.shape, max(self.radius.shape[-1] - 2, 0)))
        places = torch.cat([torch.stack([first, first + step], -2), others], -2)
        return places[..., : self.radius.shape[-1], :]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of centers."""
        step = (value[..., 1, :] - value[..., 0, :]) if value.shape[-2] > 1 else torch.zeros_like(value[..., 0, :])
        distance = torch.hypot(*step.unbind(-1))
        circles = (self._circles(), (APART, ACROSS * min(self.frame.shape)), CLOSE)
        density = torch.zeros_like(distance)
        for fraction, (inner, outer), close in zip(self.fractions, circles, (False, False, True), strict=True):
            area = 2 * math.pi * distance * (outer - inner) if close else math.pi * (outer**2 - inner**2)
            density = density + fraction * ((distance >= inner) & (distance <= outer)) / area
        low, high = self._corner(step * self.exists[..., 1:2] if value.shape[-2] > 1 else step)
        inside = ((value[..., 0, :] >= low - 1e-3) & (value[..., 0, :] <= high + 1e-3)).all(-1)
        first = torch.where(inside, -(high - low).log().sum(-1), -math.inf)
        others = self.anywhere.log_prob(value[..., 2:, :]).sum(-1)
        terms = torch.cat([torch.stack([first, density.log()], -1), others], -1)[..., : value.shape[-2]]
        return torch.where(self.exists, terms, 0.0).sum(-1)


class Clustered(Positions):
    """Each source lies anywhere or, with a probability, near an earlier one.

    Half-light radii ``(..., source)`` are in pixels, the probability is one per scene ``(...)``. Centers closer to each
    other than a quarter of the PSF's radius, or outside the image, are drawn again; `log_prob` leaves out how often.
    """

    def __init__(self, radius: Tensor, exists: Tensor, frame: Frame, *, near: Tensor) -> None:
        super().__init__(radius, exists, frame)
        self.near = near
        self.blur = torch.as_tensor(frame.blur, dtype=radius.dtype).expand(self.batch_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw centers, one source after the other."""
        if sample_shape:
            return torch.stack([self.sample() for _ in range(sample_shape.numel())]).unflatten(0, sample_shape)
        sources = self.radius.shape[-1]
        radius, blur, near = self.radius.reshape(-1, sources), self.blur.reshape(-1), self.near.reshape(-1)
        scene = torch.arange(len(radius))
        places = radius.new_zeros(len(radius), sources, 2)
        largest = torch.tensor(self.frame.shape[::-1]) - 4.0
        for number in range(sources):
            tried = self.anywhere.sample((TRIES, len(radius)))
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
        return places.reshape(*self.batch_shape, sources, 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of centers as they are proposed."""
        sources = self.radius.shape[-1]
        apart = torch.hypot(*(value[..., :, None, :] - value[..., None, :, :]).unbind(-1))
        blur = self.blur[..., None, None]
        low, high = 0.15 * blur, 2.0 * (self.radius[..., :, None] + self.radius[..., None, :]) + 0.8 * blur
        ring = ((apart >= low) & (apart <= high)) / (math.pi * (high**2 - low**2))
        earlier = torch.arange(sources)
        mean = (ring * (earlier[:, None] > earlier)).sum(-1) / earlier.clamp(min=1)
        near = self.near[..., None] * (earlier > 0)
        density = (1 - near) * self.anywhere.log_prob(value).sum(-1).exp() + near * mean
        return torch.where(self.exists, density.log(), 0.0).sum(-1)
