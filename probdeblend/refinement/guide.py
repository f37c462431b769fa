"""The amortized posterior of the generative model: image to a distribution over all that is unknown of a blend.

The U-Net and the flux CNN of trained weights are the encoder, and stay as they are. The light that they give to each
galaxy has moments, which are a first guess of position, size and shape; two hidden layers and a head
(`~probdeblend.networks.heads`) turn features and moments into the distribution. The same guide serves maximum likelihood on
simulated blends (forward KL), the ELBO (``Trace_ELBO()(model, guide)``), and one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..networks.composite import Blend2Mask2Flux, divide_light
from ..networks.heads import StudentTHead
from ..networks.layers import Readout
from .latents import LATENTS
from .model import NUISANCES, POSITION, SHAPE, BlendModel

__all__ = ["JointGuide", "light_moments"]

PSF_VARIANCE = 1.7  # of the F160W PSF's core, in square pixels along an axis
LEAST_VARIANCE = 0.2
HALF_LIGHT = 1.18  # half-light radius of a Gaussian in standard deviations
STARTS = len(LATENTS)


def light_moments(light: Tensor, *, pixel_scale: float) -> Tensor:
    """Return a first guess of what galaxies are like, from the light that each is given.

    Parameters
    ----------
    light
        Images over the sky noise ``(blend, galaxy, y, x)``; square.
    pixel_scale
        Size of a pixel in arcsec.

    Returns
    -------
    Tensor
        ``(blend, galaxy, latent)`` in the order of ``probdeblend.refinement.latents.LATENTS``, with the index of an exponential.
    """
    weight = light.clamp(min=0)
    total = weight.sum((-2, -1)).clamp(min=1.0)
    places = torch.arange(light.shape[-1], device=light.device) - (light.shape[-1] - 1) / 2
    along_x, along_y = weight.sum(-2), weight.sum(-1)
    x, y = ((part * places).sum(-1) / total for part in (along_x, along_y))
    xx, yy = (
        ((part * places.square()).sum(-1) / total - mean.square() - PSF_VARIANCE).clamp(min=LEAST_VARIANCE)
        for part, mean in ((along_x, x), (along_y, y))
    )
    xy = torch.einsum("bgyx,y,x->bg", weight, places, places) / total - x * y
    radius = HALF_LIGHT * pixel_scale * ((xx + yy) / 2).sqrt()
    plus, cross = (xx - yy) / (xx + yy), 2 * xy / (xx + yy)
    values = [total.log(), x, y, radius.log(), torch.full_like(x, math.log(0.5 / 5.0)), plus, cross]
    return torch.stack(values, -1)


class JointGuide(nn.Module):
    """Image to the joint distribution of all unknowns of a blend.

    Parameters
    ----------
    encoder
        A trained network; it is frozen.
    pixel_scale
        Size of a pixel in arcsec.
    hidden
        Width of the hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer.
    head
        Class of the head, called with the numbers of features and of unknowns.
    """

    def __init__(
        self,
        encoder: Blend2Mask2Flux,
        *,
        pixel_scale: float,
        hidden: int = 256,
        dropout: float = 0.1,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.pixel_scale = pixel_scale
        self.settings = {"hidden": hidden, "dropout": dropout}
        inputs = encoder.cnn.dense[1].in_features + 2 * STARTS
        self.readout = Readout(inputs, hidden, dropout=dropout)
        self.head = head(hidden, 2 * STARTS + len(NUISANCES))

    def train(self, mode: bool = True) -> JointGuide:
        """Switch dropout on or off; the encoder stays without.

        Parameters
        ----------
        mode
            Whether to train.

        Returns
        -------
        JointGuide
            Itself.
        """
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is computed once a blend.

        Parameters
        ----------
        image
            Pixels over the sky noise ``(blend, band, y, x)``.

        Returns
        -------
        features, start
            ``(blend, feature)``, and where the head counts unknowns from ``(blend, number)``.
        """
        with torch.no_grad():
            found = self.encoder.encode(image)
            seen = self.encoder.unet.logits(found.mask).float().sigmoid()
            light = divide_light(image, seen[:, :2], seen[:, 2])
            start = light_moments(light, pixel_scale=self.pixel_scale).flatten(1)
            start = torch.cat([start, start.new_zeros(len(start), len(NUISANCES))], -1)
            return torch.cat([found.flux.float(), start[:, : 2 * STARTS]], -1), start

    def numbers(self, features: Tensor, start: Tensor) -> Tensor:
        """Return the head's numbers, from features.

        Parameters
        ----------
        features, start
            What `encode` returns.

        Returns
        -------
        Tensor
            ``(blend, number)``.
        """
        return self.head.numbers(self.readout(features), start)

    def forward(self, image: Tensor) -> dist.TorchDistribution:
        """Return the distribution of all unknowns.

        Parameters
        ----------
        image
            Pixels over the sky noise ``(blend, band, y, x)``.

        Returns
        -------
        pyro.distributions.TorchDistribution
            Batch shape (blend,), event shape (number,): in the order of ``BlendModel.split``.
        """
        return self.head.distribution(self.numbers(*self.encode(image)))

    def program(self, model: BlendModel) -> Callable[..., Tensor]:
        """Return the guide as a Pyro program, to stand beside the model.

        Parameters
        ----------
        model
            The generative model of pairs; sites are named as there.

        Returns
        -------
        callable
            Of the same arguments as the model; returns the unknowns ``(blend, number)``.
        """

        def guide(image: Tensor, *, sky_rms: Tensor, exposure: Tensor, present: Tensor | None = None) -> Tensor:
            numbers = self.numbers(*self.encode(image[:, None]))
            with pyro.plate("blend", len(image), dim=-2):
                posterior = self.head.distribution(numbers[:, None])
                unknown = pyro.sample("unknown", posterior, infer={"is_auxiliary": True})[..., 0, :]
                latents, sky_level, growth = model.split(unknown)
                with pyro.plate("galaxy", model.galaxies, dim=-1):
                    pyro.sample("shape", dist.Delta(latents[..., SHAPE], event_dim=1))
                pyro.sample("position", dist.Delta(latents[..., None, :, POSITION], event_dim=2))
                if model.sky_level:
                    pyro.sample("sky_level", dist.Delta(sky_level[..., None]))
                if model.psf_growth:
                    pyro.sample("log_psf_growth", dist.Delta(growth[..., None]))
            return unknown

        return guide
