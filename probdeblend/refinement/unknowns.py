"""All unknowns of one scene as a vector: the form in which its posterior is climbed, drawn from and weighted.

Of each source it has ln of the total flux over the sky noise in each band, the center from the listed position (2), and
the size and shape (4), the last of galaxies alone; then for each band the sky level and ln of the growth of the PSF.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .latents import APERTURE, AXES, FLUX_RANGE, POSITION_RANGE, POSITION_SPREAD, SHAPE_RANGE, FluxPrior, galaxy_shapes
from .model import SITES, Listed, SceneModel

__all__ = ["Unknowns"]

STEPS = (0.02, 0.02, 0.01, 0.01, 0.01, 0.02)  # of central differences, along position and shape
GROWTH_STEP = 0.005
REACH = 0.08  # of the range of a number, the largest change in one step of a climb
CHUNK = 64  # draws at a time


@dataclass(frozen=True, eq=False)
class Unknowns:
    """The vector of the unknowns of one scene, and what follows from it.

    Parameters
    ----------
    model
        The generative model.
    listed
        One scene, without padding.
    star
        Which sources are stars ``(source,)``.
    """

    model: SceneModel
    listed: Listed
    star: Tensor

    @property
    def sources(self) -> int:
        """Number of sources."""
        return self.listed.x.shape[1]

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.listed.photon.shape[1]

    @cached_property
    def free(self) -> Tensor:
        """Which numbers of the vector with the shapes of all sources belong to it."""
        galaxy = (self.star == 0)[:, None]
        each = torch.cat([torch.ones(self.sources, self.bands + 2, dtype=torch.bool), galaxy.expand(-1, 4)], 1)
        return torch.cat([each.flatten(), torch.ones(2 * self.bands, dtype=torch.bool)])

    @property
    def fluxes(self) -> Tensor:
        """Where the vector has the ln fluxes ``(source, band)``."""
        place = self.free.cumsum(0)[: -2 * self.bands].unflatten(0, (self.sources, -1)) - 1
        return place[:, : self.bands]

    def whole(self, vector: Tensor) -> Tensor:
        """Fill in what stars lack ``(draw, number)``."""
        filled = self._prior[0].expand(len(vector), -1).to(vector).clone()
        filled[:, self.free] = vector
        return filled

    def sites(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the values of the model's sites for vectors ``(draw, number)``, a draw in the place of each scene."""
        whole = self.whole(vector)
        each = whole[:, : -2 * self.bands].unflatten(1, (self.sources, -1))
        total = each[..., : self.bands]
        auto = (total + APERTURE).clamp(*FLUX_RANGE[:2])  # whose density is then the same for all
        sky_level, growth = whole[:, None, -2 * self.bands :].split(self.bands, -1)
        position, shape = each[..., self.bands :].split([2, 4], -1)
        values = (torch.stack([auto, total], -1)[:, None], position, shape, sky_level, growth)
        return dict(zip(SITES, values, strict=True))

    def vector(self, total: Tensor, position: Tensor, shape: Tensor) -> Tensor:
        """Return vectors ``(draw, number)`` of fluxes ``(draw, source, band)``, positions and shapes, within ranges."""
        each = torch.cat([total, position, shape], -1).flatten(1)
        return self.clipped(torch.cat([each, each.new_zeros(len(each), 2 * self.bands)], 1)[:, self.free])

    def log_joint(self, vector: Tensor) -> Tensor:
        """Return the density of vectors ``(draw, number)`` and the image, from the program; up to a constant."""
        parts = []
        for chunk in vector.float().split(CHUNK):
            values = self.sites(chunk) | {"star": self.star.expand(len(chunk), -1).float()}
            parts.append(self.model.log_joint(self.listed.repeated(len(chunk)), values))
        return torch.cat(parts)

    def light(self, vector: Tensor) -> Tensor:
        """Return the expected light of each source over the sky noise ``(draw, source, band, y, x)``."""
        values = self.sites(vector)
        listed, star = self.listed.repeated(len(vector)), self.star.expand(len(vector), -1)
        total, growth = values["log_flux"][:, 0, ..., 1], values["log_psf_growth"][:, 0]
        return self.model.light(listed, total, values["position"], values["shape"], star=star, growth=growth)

    def sensitivity(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the light of each source ``(source, band, y, x)``, and derivatives of the image by the vector.

        Derivatives ``(number, band, y, x)`` are central differences but for fluxes and sky level; all sources move at
        once, since each has its own image.
        """
        whole, axes, bands = self.whole(vector[None]), self.bands + AXES, self.bands
        steps = torch.zeros(AXES + 1, whole.shape[1])
        for number, step in enumerate(STEPS):
            steps[number, bands + number : -2 * bands : axes] = step
        steps[-1, -bands:] = GROWTH_STEP
        moved = torch.cat([whole, whole + steps, whole - steps])[:, self.free]
        light, ahead, behind = self.light(moved).split([1, AXES + 1, AXES + 1])
        light, slope = light[0], (ahead - behind) / 2
        along = slope[:-1] / torch.tensor(STEPS)[:, None, None, None, None]
        band = torch.eye(bands)[..., None, None]
        each = torch.cat([light[:, None] * band, along.transpose(0, 1)], 1).flatten(0, 1)
        growth = slope[-1].sum(0) / GROWTH_STEP * band
        return light, torch.cat([each, torch.ones_like(growth) * band, growth])[self.free]

    def clipped(self, vector: Tensor) -> Tensor:
        """Keep vectors ``(..., number)`` a little inside the ranges."""
        low, high = self._ends
        return torch.minimum(torch.maximum(vector, low.to(vector)), high.to(vector))

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        ends = []
        for sign, number in ((1, 0), (-1, 1)):
            nearly = [FLUX_RANGE[number] + sign * FLUX_RANGE[2]] * self.bands
            nearly += [POSITION_RANGE[number] + sign * POSITION_RANGE[2]] * 2
            nearly += [end + sign * margin / 2 for end, margin in zip(SHAPE_RANGE[number], SHAPE_RANGE[2], strict=True)]
            ends.append(torch.tensor(nearly * self.sources + [-sign * 1.0] * 2 * self.bands)[self.free].double())
        return ends[0], ends[1]

    @property
    def reach(self) -> Tensor:
        """The largest change of each number in one step of a climb."""
        return REACH * (self._ends[1] - self._ends[0])

    @cached_property
    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean ``(number,)`` and precision of the vector under the prior."""
        mean, precision = self._prior
        return mean[self.free], precision[self.free][:, self.free]

    @cached_property
    def _prior(self) -> tuple[Tensor, Tensor]:
        _, shape, covariance = galaxy_shapes(self.model.population, self.listed.pixel_scale)
        flux = FluxPrior(self.bands).total
        mean = torch.cat([flux.mean.double(), torch.zeros(2), shape])
        parts = [flux.covariance_matrix.double(), POSITION_SPREAD**2 * torch.eye(2), covariance]
        spread = torch.tensor([self.model.sky_level, self.model.psf_growth]).double().repeat_interleave(self.bands)
        each = torch.linalg.inv(torch.block_diag(*(part.double() for part in parts)))
        whole = torch.cat([mean.repeat(self.sources), torch.zeros(2 * self.bands)])
        return whole, torch.block_diag(*[each] * self.sources, torch.diag(spread**-2.0))

    def parts(self, drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return what draws ``(draw, number)`` say of each source, as catalogs have it: ``(draw, source)`` and more.

        ``log_flux (draw, source, band)`` over the sky noise; ``x``, ``y`` in pixels; ``half_light_radius`` in arcsec,
        ``axis_ratio``, ``angle`` and ``sersic_index``, which are NaN for stars.
        """
        values = {name: value.numpy() for name, value in self.sites(torch.from_numpy(drawn)).items()}
        ln_radius, first, second, ln_index = np.moveaxis(values["shape"], -1, 0)
        size = np.hypot(first, second)
        galaxy = np.where(self.star.numpy() > 0, np.nan, 1.0)
        return {
            "log_flux": values["log_flux"][:, 0, ..., 1],
            "x": self.listed.x[0].numpy() + values["position"][..., 0],
            "y": self.listed.y[0].numpy() + values["position"][..., 1],
            "half_light_radius": galaxy * np.exp(ln_radius) * self.listed.pixel_scale,
            "axis_ratio": galaxy * (1 - size) / (1 + size),
            "angle": galaxy * np.arctan2(second, first) / 2,
            "sersic_index": galaxy * np.exp(ln_index),
        }
