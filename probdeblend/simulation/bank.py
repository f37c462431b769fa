"""A bank of templates, of which training scenes are made.

A template is a source alone, noiseless and of unit flux, in every band of one camera. Rendering it takes milliseconds;
adding it to a scene, moved by whole pixels and scaled, takes microseconds. Sources are drawn from the population's
program, one by one: cameras of CANDELS F160W see the galaxies of pairs, all others those of crowds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..scene import SOURCE_TYPES, seeded
from .cameras import Camera, Cameras
from .light import SimulatedSources, Sources
from .population import Population
from .positions import Frame
from .scenes import auto_over_total

__all__ = ["HALF", "STORED_UNIT", "Template", "Templates"]

TEMPLATE = 128  # pixels on a side
HALF = TEMPLATE // 2
STORED_UNIT = 4096.0  # so that half precision holds faint wings
AUTO_LEVELS = (10.0, 40.0, 160.0, 640.0, 2560.0, 20480.0)  # flux over sky rms where the auto flux is measured
UNKNOWN_AUTO = -0.3  # ln of auto over total flux where SEP finds nothing
EDGE_LIGHT = 0.3  # sky rms, largest light at the edge of a template
LARGEST = 14.0  # pixels, major-axis half-light radius
TEMPLATES = {True: 24, False: 16}  # per camera, by whether it is native


class Template(NamedTuple):
    """Sources of one camera.

    - `camera`: what sees them.
    - `light`: of unit flux ``(template, band, y, x)``, half precision, in units of 1 / 4096.
    - `color`: ln of the flux in each band over that in the first ``(template, band)``.
    - `auto`: ln of auto over total flux, at each of the levels ``(template, band, level)``.
    - `shape (template, 6)`: offset of the center from a pixel in x and y, ln circularized radius in pixels,
      ellipticity, ln Sérsic index (NaN where there is none, and all but the offset of real galaxies).
    - `norm`: root of the sum of squares of the light ``(template, band)``.
    - `brightest`: flux over sky rms beyond which light would reach the template's edge ``(template,)``.
    - `source`: values ``(template,)`` of `Population.source`; the type of real galaxies is -1.
    """

    camera: Camera
    light: Tensor
    color: Tensor
    auto: Tensor
    shape: Tensor
    norm: Tensor
    brightest: Tensor
    source: Mapping[str, Tensor]


@dataclass(frozen=True)
class Templates:
    """The source of templates: number k of an endless sequence depends on the seed and on k alone.

    Parameters
    ----------
    pairs, crowds
        Populations whose galaxies cameras of CANDELS F160W see, and all others.
    cameras
        The cameras.
    sources
        What makes the light of sources.
    seed
        Same seed, same templates.
    """

    pairs: Population = field(default_factory=Population.pairs)
    crowds: Population = field(default_factory=Population.default)
    cameras: Cameras = field(default_factory=Cameras)
    sources: Sources = field(default_factory=SimulatedSources)
    seed: int = 0

    def draw(self, number: int) -> tuple[Camera, dict[str, Tensor]]:
        """Draw a camera and what it sees, without rendering.

        Parameters
        ----------
        number
            Number in the sequence.

        Returns
        -------
        camera, source
            The camera, and values ``(template,)`` of `Population.source`.
        """
        rng = np.random.default_rng((self.seed, 1, number))
        camera = self.cameras.sample(rng)
        population = self.pairs if camera.native else self.crowds
        largest = min(population.largest, LARGEST)
        population = population.replace(max_difference=math.inf, layout="anywhere", largest=largest)
        frame = Frame((TEMPLATE, TEMPLATE), camera.pixel_scale, camera.blur)
        drawn = population.sample(TEMPLATES[camera.native], frame, seed=int(rng.integers(2**62)), number=1)
        return camera, {name: value[:, 0] for name, value in drawn.items()}

    def make(self, number: int) -> Template:
        """Draw a camera and render its templates.

        Parameters
        ----------
        number
            Number in the sequence.

        Returns
        -------
        Template
            The templates.
        """
        camera, source = self.draw(number)
        own_seed = int(np.random.default_rng((self.seed, 3, number)).integers(2**62))
        with seeded(own_seed), torch.no_grad():
            offset = torch.rand(2, len(source["angle"])) - 0.5
            centered = source | {"x": HALF + offset[0], "y": HALF + offset[1]}
            light, corner = self.sources(centered, camera), torch.zeros(len(offset[0]), 2, dtype=torch.long)
            image, color, brightest = light.seen(camera, corner=corner, size=TEMPLATE)
        edge = image.clone()
        edge[..., 2:-2, 2:-2] = 0
        norm, real = image.square().sum((-2, -1)).sqrt(), light.identity >= 0
        shape = describe_shapes(source, offset, light.ln_index, camera.pixel_scale)
        shape[real, 2:] = torch.nan
        return Template(
            camera,
            (image * STORED_UNIT).half(),
            color,
            _auto(image),
            shape,
            norm,
            torch.minimum(EDGE_LIGHT / edge.amax((1, 2, 3)).clamp(min=1e-9), brightest / norm.amax(1)),
            source | {"source_type": source["source_type"].masked_fill(real, -1)},
        )


def describe_shapes(source: Mapping[str, Tensor], offset: Tensor, ln_index: Tensor, pixel_scale: float) -> Tensor:
    """Return the shapes ``(template, 6)`` that a network learns; NaN where a star has none."""
    q, angle = source["axis_ratio"], source["angle"]
    round_ = (1 - q) / (1 + q)
    radius = (source["half_light_radius"] * q.sqrt() / pixel_scale).log()
    shape = torch.stack([radius, round_ * (2 * angle).cos(), round_ * (2 * angle).sin(), ln_index], -1)
    star = source["source_type"] == SOURCE_TYPES.index("star")
    return torch.cat([offset.T, shape.masked_fill(star[:, None], torch.nan)], -1)


def _auto(image: Tensor) -> Tensor:
    """Measure ln of auto over total flux ``(template, band, level)`` without noise, at several levels of the sky."""
    ratio = [[[auto_over_total(own, level) for level in AUTO_LEVELS] for own in bands] for bands in image]
    return torch.tensor(ratio).log().nan_to_num(UNKNOWN_AUTO).clamp(-1.5, 0.3)


def log_flux(template: Template, which: int, fluxes: Tensor) -> Tensor:
    """Return ln of auto and total flux over sky rms ``(band, 2)`` of a template; the total of real ones is NaN."""
    total, levels = fluxes.log(), np.log(AUTO_LEVELS)
    bands = zip(total.numpy(), template.auto[which].numpy(), strict=True)
    ratio = torch.tensor([np.interp(own, levels, known) for own, known in bands])
    unknown = template.source["source_type"][which] < 0
    return torch.stack([total + ratio.float(), total.masked_fill(unknown, torch.nan)], -1)
