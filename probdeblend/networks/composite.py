"""Blend2Flux and Blend2Mask2Flux: from an image in units of the sky noise to both log-fluxes and both masks.

The networks of Boucaud et al. (2020, doi:10.1093/mnras/stz3056) with distributions in place of numbers. Blend2Flux
sees the image alone. Blend2Mask2Flux sees the image and what its U-Net returns for every pixel: the probability that
it belongs to each galaxy, and the central galaxy's share of its light. The light inside the masks, divided by these
shares, is the starting value of the log-fluxes; the network corrects this photometry.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .flux import FluxCNN
from .heads import StudentTHead
from .layers import stretch
from .unet import UNet

__all__ = ["Blend2Flux", "Blend2Mask2Flux", "BlendAnswer", "BlendFeatures", "divide_light"]


class BlendFeatures(NamedTuple):
    """What is computed once per blend: features of the flux CNN, starting log-fluxes, and features of the U-Net.

    Shapes are ``(blend, feature)``, ``(blend, galaxy)`` and ``(blend, channel, y, x)``; `mask` is None without a U-Net.
    """

    flux: Tensor
    start: Tensor
    mask: Tensor | None


class BlendAnswer(NamedTuple):
    """What a network returns for blends.

    Parameters
    ----------
    flux
        Distribution of ``log(flux / sky_rms)``, event shape (galaxy,); in the answer of a dropout pass the outputs of
        the head that make it.
    mask
        Logits of the masks ``(blend, galaxy, y, x)``; None for a network without masks.
    share
        Logits of the central galaxy's share of the light ``(blend, y, x)``; None for a network without masks.
    """

    flux: dist.TorchDistribution | Tensor
    mask: Tensor | None
    share: Tensor | None


def divide_light(image: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """Divide the light inside either mask between the galaxies, by the central galaxy's share of every pixel.

    Pixels are ``(blend, band, y, x)``, masks ``(blend, galaxy, y, x)`` and shares ``(blend, y, x)``; returns the light
    of each galaxy ``(blend, galaxy, y, x)``, the mean of the bands.
    """
    inside = 1 - (1 - mask).prod(1, keepdim=True)
    return inside * torch.stack([share, 1 - share], 1) * image.mean(1, keepdim=True)


class Blend2Flux(nn.Module):
    """Image over sky noise to the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    first_filters, hidden
        Filters of the first convolution, and width of the two hidden layers (as many if None).
    dropout
        Probability that a unit is dropped before each hidden layer.
    patch
        Side in pixels of the squares that are folded into channels before the first convolution; 1 for none.
    head
        Class of the head, called with the number of features.
    """

    def __init__(
        self,
        *,
        first_filters: int = 64,
        hidden: int | None = None,
        dropout: float = 0.2,
        patch: int = 1,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.cnn = FluxCNN(3, patch=patch, first_filters=first_filters, hidden=hidden, dropout=dropout)
        self.head = head(self.cnn.out_features)

    def encode(self, image: Tensor) -> BlendFeatures:
        """Return the features from which `answer` continues; the light of the whole stamp starts both log-fluxes.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendFeatures
            Features of the CNN and starting log-fluxes.
        """
        light = image.sum((-3, -2, -1)).clamp(min=1.0).log()
        return BlendFeatures(self.cnn.encode(stretch(image)), light[:, None].expand(-1, 2), None)

    def answer(self, features: BlendFeatures) -> BlendAnswer:
        """Return the head's outputs from features.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        BlendAnswer
            Outputs of the head, without masks.
        """
        return BlendAnswer(self.head.numbers(self.cnn.answer(features.flux), features.start), None, None)

    def forward(self, image: Tensor) -> BlendAnswer:
        """Return the distribution of the log-fluxes.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendAnswer
            Without masks.
        """
        answer = self.answer(self.encode(image))
        return answer._replace(flux=self.head.distribution(answer.flux))


class Blend2Mask2Flux(nn.Module):
    """Image over sky noise to masks, shares of the light and the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    unet_filters, depth
        Filters at the first resolution of the U-Net, and its number of resolutions.
    first_filters, hidden
        Filters of the flux CNN's first convolution, and width of its two hidden layers (as many if None).
    dropout
        Probability that a unit is dropped in the flux CNN; half of it in the U-Net.
    patch
        Side in pixels of the squares that both fold into channels before their first convolution; 1 for none.
    head
        Class of the head, called with the number of features.

    Attributes
    ----------
    end_to_end : bool
        Whether the flux loss trains the U-Net too, as in the paper. It tightens the masks, which are then no longer
        the probabilities that the mask loss asks for; set it to False to keep them.
    """

    def __init__(
        self,
        *,
        unet_filters: int = 32,
        depth: int = 5,
        first_filters: int = 64,
        hidden: int | None = None,
        dropout: float = 0.2,
        patch: int = 1,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.unet = UNet(3, 3, depth=depth, first_filters=unet_filters, dropout=dropout / 2, patch=patch)
        self.cnn = FluxCNN(7, patch=patch, first_filters=first_filters, hidden=hidden, extra=2, dropout=dropout)
        self.head = head(self.cnn.out_features)
        self.end_to_end = True

    def encode(self, image: Tensor) -> BlendFeatures:
        """Return the features from which `answer` continues; the light of each galaxy starts its log-flux.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendFeatures
            Features of U-Net and CNN, and starting log-fluxes.
        """
        channels = stretch(image)
        features = self.unet.encode(channels)
        seen = self.unet.logits(features).float().sigmoid()
        seen = seen if self.end_to_end else seen.detach()
        mask, share = seen[:, :2], seen[:, 2]
        light = divide_light(image, mask, share)
        start = light.sum((-2, -1)).clamp(min=1.0).log()
        # The logarithms lie between 0 and 14; the hidden layers work best with numbers around one.
        flux = self.cnn.encode(torch.cat([channels, mask, torch.asinh(light)], 1), start / 4 - 2)
        return BlendFeatures(flux, start, features)

    def answer(self, features: BlendFeatures) -> BlendAnswer:
        """Return the head's outputs and the U-Net's logits from features.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        BlendAnswer
            Outputs of the head, and logits of masks and shares.
        """
        flux = self.head.numbers(self.cnn.answer(features.flux), features.start)
        logits = self.unet.answer(features.mask).float()
        return BlendAnswer(flux, logits[:, :2], logits[:, 2])

    def forward(self, image: Tensor) -> BlendAnswer:
        """Return the distribution of the log-fluxes and the U-Net's logits.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendAnswer
            With masks and shares.
        """
        answer = self.answer(self.encode(image))
        return answer._replace(flux=self.head.distribution(answer.flux))
