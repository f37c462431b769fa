"""The scene network as the guide of the generative model: from images to the joint distribution of all unknowns.

The sites are those of `~probdeblend.refinement.model.SceneModel`. Fluxes have the network's joint distribution of each
group, centers and shapes its Student-t distributions: the densities that the network was trained with, so its loss is
the log-density of the guide in a trace conditioned on the truth. Values are squeezed near the ends of their ranges
(`~probdeblend.refinement.latents.Within`), so the guide stays in the support of the prior. A source is a star if that
is the most probable class; the sky level and the width of the PSF follow their prior. The weights can be trained on by
``Trace_ELBO()(model, guide)`` on images without truth.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn import functional

from ..networks.joint import FLUX_KINDS, TOTAL, GroupFlux
from ..networks.scene_loss import SHAPE_FREEDOM
from ..networks.scenes import SHAPES, SceneNetwork, groups_by_size
from ..networks.trunk import STRIDE
from ..scene import SOURCE_TYPES
from .latents import FLUX_RANGE, POSITION_RANGE, SHAPE_RANGE, Within
from .model import Listed, SceneModel
from .unknowns import Unknowns

__all__ = ["SceneFlux", "SceneGuide"]

STAR = SOURCE_TYPES.index("star")
AVERAGED = 64  # draws, for the mean of the fluxes


class SceneFlux(dist.TorchDistribution):
    """ln fluxes of all sources of scenes ``(source, band, kind)``: groups are independent, sources of one are not.

    `groups` holds distributions of groups of equal size, with their scenes ``(group,)`` and sources
    ``(group, source)``; `padding (scene, source, band)` is the value of sources in no group. The batch has a last axis
    of length one, for a plate of sources.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(self, groups: list[tuple[GroupFlux, Tensor, Tensor]], padding: Tensor) -> None:
        self.groups, self.padding = groups, padding
        super().__init__(
            torch.Size([len(padding), 1]), torch.Size([*padding.shape[1:], len(FLUX_KINDS)]), validate_args=False
        )

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ln fluxes ``(*sample, scene, 1, source, band, kind)``."""
        value = self.padding[..., None].expand(*sample_shape, *self.padding.shape, len(FLUX_KINDS)).clone()
        for group, scene, member in self.groups:
            value[..., scene[:, None], member, :, :] = group.rsample(sample_shape)
        return value.unsqueeze(-4)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density ``(..., scene, 1)``."""
        value = value.squeeze(-4)
        total = value.new_zeros(*value.shape[:-3])
        for group, scene, member in self.groups:
            total = total.index_add(-1, scene, group.log_prob(value[..., scene[:, None], member, :, :]))
        return total[..., None]


class SceneGuide(nn.Module):
    """A guide for `~probdeblend.refinement.model.SceneModel`; it is called as a Pyro program.

    Parameters
    ----------
    network
        The scene network, which goes on being trained if the guide is.
    model
        The generative model, for the prior of sky level and PSF width.
    """

    def __init__(self, network: SceneNetwork, model: SceneModel) -> None:
        super().__init__()
        self.network, self.model = network, model

    def answer(self, listed: Listed) -> tuple[SceneFlux, Tensor, Tensor, Tensor]:
        """Run the network on images and the sources listed in them.

        Parameters
        ----------
        listed
            Images whose listed sources are within them.

        Returns
        -------
        tuple
            Joint distribution of the fluxes; `SHAPES` and their widths ``(scene, source, shape)``; logits of the
            classes ``(scene, source, class)``.
        """
        height, width = listed.image.shape[-2:]
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        image, good = (functional.pad(values, padding) for values in (listed.image, listed.good))
        maps = self.network.encode(image, good, listed.psf, listed.noise)
        _, features = self.network.read(maps, listed.x, listed.y)
        counts = zip(features.overlap.detach(), listed.there.sum(1).tolist(), strict=True)
        bands, sizes = listed.photon.shape[1], (*listed.x.shape, 2 * len(SHAPES) + len(SOURCE_TYPES))
        groups, numbers = [], torch.zeros(sizes).to(listed.image)
        for index in groups_by_size(overlap[:count, :count] for overlap, count in counts):
            found = self.network.answer(features, index)
            scene = torch.tensor([number for number, _ in index])
            member = torch.tensor([members for _, members in index])
            groups.append((found.flux, scene, member))
            each = torch.cat([found.shape, found.shape_width, found.kind], -1)
            numbers = numbers.index_put((scene[:, None], member), each)
        # Padding is galaxies of unit width and radius.
        numbers = torch.where(listed.there[..., None], numbers, numbers.new_tensor(1.0))
        shape, spread, kind = numbers.split([len(SHAPES), len(SHAPES), len(SOURCE_TYPES)], -1)
        return SceneFlux(groups, torch.zeros(*listed.x.shape, bands)), shape, spread, kind

    def guesses(self, listed: Listed, *, count: int = 3) -> tuple[Unknowns, Tensor]:
        """Return the unknowns of one scene, and guesses of them, with which refinement starts.

        Parameters
        ----------
        listed
            One scene, without padding.
        count
            Number of draws beside the mean.

        Returns
        -------
        unknowns, guesses
            The guesses are ``(1 + count, number)``, the mean first.
        """
        joint, center, width, kind = self.answer(listed)
        flux = joint.rsample((AVERAGED,))[:, 0, 0, ..., TOTAL]
        noise = dist.StudentT(SHAPE_FREEDOM).sample((1 + count, *center.shape[1:]))
        noise[0] = 0.0
        shape = center + width * noise
        unknowns = Unknowns(self.model, listed, kind[0].argmax(-1) == STAR)
        total = torch.cat([flux.mean(0, keepdim=True), flux[:count]])
        return unknowns, unknowns.vector(total, shape[..., :2], shape[..., 2:])

    def forward(self, listed: Listed) -> None:
        """Run the guide's program.

        Parameters
        ----------
        listed
            Images and the sources listed in them.
        """
        (flux, center, width, kind), (scenes, bands) = self.answer(listed), listed.photon.shape
        with pyro.plate("scene", scenes, dim=-2):
            with pyro.plate("source", listed.x.shape[1], dim=-1), pyro.poutine.mask(mask=listed.there):
                star = pyro.sample("star", dist.Delta((kind.argmax(-1) == STAR).float()))
                position, shape = (
                    dist.StudentT(SHAPE_FREEDOM, center[..., part], width[..., part]).to_event(1)
                    for part in (slice(2), slice(2, None))
                )
                pyro.sample("position", dist.TransformedDistribution(position, [Within(*POSITION_RANGE)]))
                with pyro.poutine.mask(mask=star == 0):
                    pyro.sample("shape", dist.TransformedDistribution(shape, [Within(*map(torch.tensor, SHAPE_RANGE))]))
            pyro.sample("log_flux", dist.TransformedDistribution(flux, [Within(*FLUX_RANGE)]))
            zero = torch.zeros(scenes, 1, bands)
            for name, scale in (("sky_level", self.model.sky_level), ("log_psf_growth", self.model.psf_growth)):
                pyro.sample(name, dist.Normal(zero, scale).to_event(1))
