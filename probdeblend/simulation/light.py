"""The light of sources alone: from what a population draws to noiseless images of unit flux."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .cameras import Camera
from .morphology import source_components
from .profiles import Components, render
from .texture import textured

__all__ = ["Light", "Renderer", "Seen", "SimulatedSources", "Sources"]

Renderer = Callable[..., Tensor]
"""`render` or `render_galsim`: a function of components and a PSF that returns each source's image."""


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

    def select(self, index: Tensor | slice) -> Light:
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
    engine: Renderer = render

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
        seeds = {"seed": torch.randint(2**62, slope.shape[:1])}
        return _SimulatedLight(components, slope, {**drawn, **seeds}, self)


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

    def select(self, index: Tensor | slice) -> Light:
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
