"""The light of sources alone: from what a population draws to noiseless images of unit flux.

Galaxies have a texture and outskirts that Sérsic profiles lack. Their light is multiplied by the exponential of three
terms, smooth at the scale of the PSF. A random field of clumps and gaps has a correlation length between 0.12 and 0.6
half-light radii and grows outward; in part it is a field of color. A slope from side to side makes outskirts lopsided.
Beyond a break, disks fall more steeply or less, as often and where Pohlen & Trujillo (2006,
doi:10.1051/0004-6361:20064883) see it in nearby disks, at 2.5 and 4.9 scale lengths in the mean, but by less, so that
half-light radii change by a tenth. All amplitudes are chosen such that the asymmetry, smoothness and concentration of
galaxies, and what a Sérsic fit leaves of them, are distributed as those of real ones (``python -m
benchmarks.irregularity``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from .cameras import Camera
from .morphology import source_components
from .profiles import Components, render

__all__ = ["Light", "Seen", "SimulatedSources", "Sources", "textured"]

GRID = 128  # pixels, the period of random fields; their shortest wave is 4 pixels
# For each of `SOURCE_TYPES`: amplitude of the field, median and scatter of its ln; slope from side to side per
# half-light radius; and how much of a break there is.
AMPLITUDE = ((0.03, 0.6), (0.12, 0.6), (0.08, 0.6), (0.2, 0.5), (0.0, 0.0))
LOPSIDED = (0.04, 0.08, 0.08, 0.12, 0.0)
BROKEN = (0.0, 1.0, 0.5, 1.0, 0.0)
LENGTH = (0.12, 0.6)  # half-light radii
OUTWARD, FARTHEST = 0.7, 4.0  # power of the radius by which the field grows, and half-light radii where it ends
COLOR = 0.5  # the field of color, per unit of ln wavelength, over that of light
DOWN, UP = 0.5, 0.25  # fractions of the disks with a break of types II and III
# Breaks of both types: from and to which radius, and how much ln light falls per radius beyond, in half-light radii.
BREAKS = ((1.4, 2.4, 1.0), (1.8, 3.2, -0.5))
SOFTNESS, HIGHEST = 0.3, 0.7  # half-light radii over which a break bends; most that ln light rises


class Seen(NamedTuple):
    """What a camera sees of sources.

    - `image (source, band, y, x)`: of unit flux, noiseless.
    - `color (source, band)`: ln of the flux in each band over that in the first.
    - `brightest (source,)`: largest signal-to-noise ratio at which the image counts as noiseless.
    """

    image: Tensor
    color: Tensor
    brightest: Tensor


class Light(Protocol):
    """The light of sources, with everything drawn that is random about it."""

    @property
    def identity(self) -> Tensor:
        """Number of the real galaxy that each source ``(source,)`` is, -1 of simulated ones."""

    @property
    def ln_index(self) -> Tensor:
        """The ln of the Sérsic index of sources ``(source,)`` of a single profile; NaN of others."""

    def select(self, index: Tensor | slice) -> Self:
        """Return the light of some of the sources."""

    def seen(self, camera: Camera, *, corner: Tensor, size: int) -> Seen:
        """Return images of `size` pixels on a side with their first pixels ``(source, 2)`` at the corners x, y."""


Sources = Callable[[Mapping[str, Tensor], Camera], Light]
"""What makes light of values ``(source,)`` of `Population.source` and centers ``x``, ``y``, by torch's generator."""


@dataclass(frozen=True)
class SimulatedSources:
    """Sources made of Sérsic profiles.

    Parameters
    ----------
    smooth
        Whether every galaxy is a single profile, whatever its type; otherwise galaxies are as irregular as real ones.
    engine
        `render`, or `render_galsim`, which takes ten times as long.
    """

    smooth: bool = False
    engine: Callable[..., Tensor] = render

    def __call__(self, drawn: Mapping[str, Tensor], camera: Camera) -> Light:
        """Draw what is random about the light of sources.

        Parameters
        ----------
        drawn
            Values ``(source,)`` of `Population.source`, and centers ``x``, ``y`` in pixels.
        camera
            What sees them.

        Returns
        -------
        Light
            The light.
        """
        components, slope = source_components(drawn, pixel_scale=camera.pixel_scale, smooth=self.smooth)
        return _SimulatedLight(components, slope, {**drawn, "seed": torch.randint(2**62, slope.shape[:1])}, self)


@dataclass(frozen=True, eq=False)
class _SimulatedLight:
    """The components of sources, the slope of each one's color, and the values that they were made from."""

    components: Components
    slope: Tensor
    drawn: Mapping[str, Tensor]
    how: SimulatedSources

    @property
    def identity(self) -> Tensor:
        return torch.full(self.slope.shape[:1], -1)

    @property
    def ln_index(self) -> Tensor:
        single = self.components.present.sum(-1) == 1
        return torch.where(single, self.components.sersic_index[:, 0].log(), torch.nan)

    def select(self, index: Tensor | slice) -> Self:
        drawn = {name: value[index] for name, value in self.drawn.items()}
        return replace(self, components=self.components.select(index), slope=self.slope[index], drawn=drawn)

    def seen(self, camera: Camera, *, corner: Tensor, size: int) -> Seen:
        psf, finer = (camera.psf, 1) if camera.fine_psf is None else (camera.fine_psf, 2)
        images, colors = [], []
        x, y = self.components.x - corner[:, :1], self.components.y - corner[:, 1:]
        for band, wave in enumerate(camera.wavelengths / camera.wavelengths[0]):
            flux = self.components.flux * (self.slope * wave.log()).exp() * self.components.present
            total = flux.sum(-1, keepdim=True)
            own = replace(self.components, flux=flux / total, x=finer * x, y=finer * y)
            image = self.how.engine(own, psf[band], pixel_scale=camera.pixel_scale / finer, size=finer * size)
            images.append(finer**2 * image[..., ::finer, ::finer])
            colors.append(total[..., 0].log())
        image = torch.stack(images, 1)
        image = image if self.how.smooth else textured(image, self.drawn, camera, corner=corner)
        return Seen(image, torch.stack(colors, 1), torch.full(self.slope.shape[:1], torch.inf))


def textured(image: Tensor, drawn: Mapping[str, Tensor], camera: Camera, *, corner: Tensor) -> Tensor:
    """Make light ``(source, band, y, x)`` irregular, keeping its sum; stars stay as they are.

    A galaxy's texture follows from its ``seed`` alone, wherever the corners ``(source, 2)`` of the images lie.
    """
    if not len(image):
        return image
    kind, blur = drawn["source_type"], torch.tensor(camera.blur / (2 * math.sqrt(math.pi)))
    normal, uniform, white = map(torch.stack, zip(*map(_numbers, drawn["seed"].tolist()), strict=True))
    radius = drawn["half_light_radius"] * drawn["axis_ratio"].sqrt() / camera.pixel_scale
    seen = radius.hypot(blur)
    length = radius * LENGTH[0] * (LENGTH[1] / LENGTH[0]) ** uniform[:, 0]
    field = _field(white, length.clamp(min=0.5), blur, drawn, corner=corner, size=image.shape[-1])
    along, across = _place(image.shape[-1], drawn, corner, seen)
    distance = torch.hypot(along, across).clamp(min=1e-3)
    inside = (FARTHEST / distance).clamp(max=1.0)
    median, scatter = torch.tensor(AMPLITUDE)[kind].unbind(-1)
    amplitude = (median * (scatter * normal[:, 0]).exp())[:, None, None] * (inside * distance).pow(OUTWARD)
    tilt = ((torch.tensor(LOPSIDED)[kind] * radius / seen)[:, None] * normal[:, 1:])[..., None, None]
    common = inside * (tilt[:, 0] * along + tilt[:, 1] * across)
    common += _broken(distance, uniform[:, 1], uniform[:, 2], torch.tensor(BROKEN)[kind] * radius / seen)
    waves = (camera.wavelengths / camera.wavelengths[0]).log().tolist()
    change = [common + amplitude * (field.real + COLOR * wave * field.imag) for wave in waves]
    new = image * torch.stack(change, 1).exp()
    return new * (image.sum((-2, -1), keepdim=True) / new.sum((-2, -1), keepdim=True))


def _numbers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw normal and uniform numbers, and complex amplitudes of waves."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(GRID // 2, GRID // 2, dtype=torch.complex64, generator=generator)
    return torch.randn(3, generator=generator), torch.rand(3, generator=generator), waves


def _field(
    white: Tensor, length: Tensor, blur: Tensor, drawn: Mapping[str, Tensor], *, corner: Tensor, size: int
) -> Tensor:
    """Two random fields, of unit variance but for the blur, as one complex field ``(source, y, x)``."""
    number = torch.fft.fftfreq(GRID // 2, 2 / GRID).long()
    square = (2 * math.pi / GRID * number).square()
    square = square[:, None] + square
    power = (1 + square * length.square()[:, None, None]) ** -1.5
    scale = power.square().sum((1, 2), keepdim=True).rsqrt() * math.sqrt(2)
    waves = torch.zeros(len(white), GRID, GRID, dtype=white.dtype)
    waves[:, number[:, None] % GRID, number % GRID] = white * power * scale * (-0.5 * blur**2 * square).exp()
    x, y = (torch.arange(size) + corner[:, axis, None] - drawn["xy"[axis]][:, None].round().long() for axis in (0, 1))
    # One by one, as sums are rounded differently in other company.
    fields = [torch.fft.ifft2(own, norm="forward") for own in waves]
    return torch.stack([own[i[:, None] % GRID, j % GRID] for own, i, j in zip(fields, y, x, strict=True)])


def _place(size: int, drawn: Mapping[str, Tensor], corner: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels lie along and across a galaxy, in half-light radii, as if it were seen face-on."""
    x = (torch.arange(size) + (corner[:, :1] - drawn["x"][:, None]))[:, None]
    y = (torch.arange(size) + (corner[:, 1:] - drawn["y"][:, None]))[:, :, None]
    angle, radius, flat = (v[:, None, None] for v in (drawn["angle"], radius, drawn["axis_ratio"].sqrt()))
    cos, sin = angle.cos() / radius, angle.sin() / radius
    return flat * (x * cos + y * sin), (y * cos - x * sin) / flat


def _broken(distance: Tensor, choice: Tensor, where: Tensor, strength: Tensor) -> Tensor:
    """Change of ln light beyond a break, if there is one."""
    down, up = choice < DOWN, choice > 1 - UP
    low, high, slope = (torch.where(down, a, torch.where(up, b, 0.0)) for a, b in zip(*BREAKS, strict=True))
    start = (low + (high - low) * where)[:, None, None]
    beyond = SOFTNESS * torch.nn.functional.softplus((distance - start) / SOFTNESS)
    return (-(slope * strength)[:, None, None] * beyond).clamp(max=HIGHEST)
