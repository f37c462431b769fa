"""The amortized posterior of the generative model: image to a distribution over all unknowns of a blend.

The U-Net and the flux CNN of trained weights are the encoder, and stay as they are. The moments of the light that they
assign to each galaxy are a first guess of position, size and shape; two hidden layers and a head
(`~probdeblend.networks.heads`) turn features and moments into the distribution. Training is by maximum likelihood on
blends that the model draws (forward KL).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..deblending.deblender import Deblender
from ..deblending.weights import load, read_readout, write_readout
from ..networks.composite import Blend2Mask2Flux, divide_light
from ..networks.heads import StudentTHead
from ..networks.layers import Readout
from .latents import LATENTS, POSITION, SHAPE
from .model import NUISANCES, BlendModel

__all__ = ["JointGuide", "default_guide", "light_moments", "load_guide", "save_guide"]

PSF_VARIANCE = 1.7  # of the F160W PSF's core, in square pixels along an axis
LEAST_VARIANCE = 0.2
HALF_LIGHT = 1.18  # half-light radius of a Gaussian in standard deviations
STARTS = 2 * len(LATENTS)


def light_moments(light: Tensor, *, pixel_scale: float) -> Tensor:
    """Return a first guess of latents ``(blend, galaxy, latent)`` from each galaxy's light ``(blend, galaxy, y, x)``.

    The light is over the sky noise and square, the pixel scale in arcsec; the index is that of an exponential.
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
    """Image to the joint distribution of all unknowns of a blend, a Student-t distribution with full covariance.

    Parameters
    ----------
    encoder
        A trained network, which is frozen.
    pixel_scale
        Size of a pixel in arcsec.
    hidden
        Width of the hidden layers.
    dropout
        Probability that a unit is dropped before each hidden layer.
    """

    def __init__(
        self, encoder: Blend2Mask2Flux, *, pixel_scale: float, hidden: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.pixel_scale = pixel_scale
        self.settings = {"hidden": hidden, "dropout": dropout}
        self.readout = Readout(encoder.cnn.dense[1].in_features + STARTS, hidden, dropout=dropout)
        self.head = StudentTHead(hidden, STARTS + len(NUISANCES))

    def train(self, mode: bool = True) -> JointGuide:
        """Switch dropout on or off; the encoder stays without.

        Parameters
        ----------
        mode
            Whether to switch dropout on.

        Returns
        -------
        JointGuide
            The guide itself.
        """
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(blend, feature)``, and the first guess ``(blend, number)``: what no training changes.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        tuple
            Features and first guess.
        """
        with torch.no_grad():
            found = self.encoder.encode(image)
            seen = self.encoder.unet.logits(found.mask).float().sigmoid()
            light = divide_light(image, seen[:, :2], seen[:, 2])
            start = light_moments(light, pixel_scale=self.pixel_scale).flatten(1)
            features = torch.cat([found.flux.float(), start], -1)
            return features, torch.cat([start, start.new_zeros(len(start), len(NUISANCES))], -1)

    def numbers(self, features: Tensor, start: Tensor) -> Tensor:
        """Return the numbers that the head makes its distribution of, from what `encode` returns.

        Parameters
        ----------
        features
            Features from `encode`.
        start
            First guess from `encode`.

        Returns
        -------
        Tensor
            Outputs of the head ``(blend, count)``.
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
        """Return the guide as a Pyro program, for ``Trace_ELBO()(model, guide.program(model))``.

        Parameters
        ----------
        model
            The generative model of pairs; sites are named as there.

        Returns
        -------
        callable
            A function of the arguments of the model; it returns the unknowns ``(blend, number)``.
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


def save_guide(guide: JointGuide, deblender: Deblender, path: Path | str, *, training: dict[str, object]) -> None:
    """Write a guide to a file, with the numbers and words that describe its training."""
    write_readout(guide, deblender, path, kind="guide", training=training)


def load_guide(path: Path | str, deblender: Deblender) -> JointGuide:
    """Load a trained guide, in evaluation mode.

    Parameters
    ----------
    path
        The guide's file.
    deblender
        The weights that it was trained on.

    Returns
    -------
    JointGuide
        The guide, on the encoder of the deblender.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds something else, or was trained on other weights.
    """
    build = partial(JointGuide, deblender.network, pixel_scale=deblender.instrument.pixel_scale)
    return read_readout(path, deblender, build, kind="guide")


def default_guide(deblender: Deblender | None = None) -> JointGuide:
    """Load the guide that ships with the package, in evaluation mode.

    Parameters
    ----------
    deblender
        The weights that ship, if they are loaded already; None loads them.

    Returns
    -------
    JointGuide
        The guide, on the encoder of the deblender.

    Raises
    ------
    ValueError
        If the deblender has other weights.
    """
    return load_guide(str(files("probdeblend") / "data" / "guide_f160w.safetensors"), deblender or load())
