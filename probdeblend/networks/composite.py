"""Blend2Flux and Blend2Mask2Flux: image over sky noise to the distribution of both log-fluxes, and to both masks.

The networks of Boucaud et al. (2020, doi:10.1093/mnras/stz3056) with distributions in place of numbers. Blend2Flux
sees the image alone. Blend2Mask2Flux sees the image and what its U-Net says of every pixel: the probability that it
belongs to each galaxy, and the share of its light that is the central one's. The light inside the masks, divided so, is
the start of the log-fluxes; the network's task is what this photometry misses.
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

__all__ = ["Blend2Flux", "Blend2Mask2Flux", "BlendAnswer", "BlendFeatures", "BlendNumbers", "divide_light"]


class BlendFeatures(NamedTuple):
    """What is computed once a blend, whatever the number of dropout passes.

    Parameters
    ----------
    flux
        Features of the flux CNN ``(blend, feature)``.
    start
        Log-fluxes from which the head counts ``(blend, galaxy)``.
    mask
        Features of the U-Net ``(blend, channel, y, x)``; None without one.
    """

    flux: Tensor
    start: Tensor
    mask: Tensor | None


class BlendNumbers(NamedTuple):
    """What one dropout pass says about blends, as plain tensors.

    Parameters
    ----------
    flux
        Numbers from which the head makes the distribution ``(blend, number)``.
    mask
        Logits of the masks ``(blend, galaxy, y, x)``; None for a network without masks.
    share
        Logits of the central galaxy's share of the light ``(blend, y, x)``; None for a network without masks.
    """

    flux: Tensor
    mask: Tensor | None
    share: Tensor | None


class BlendAnswer(NamedTuple):
    """What a network says about blends.

    Parameters
    ----------
    flux
        Distribution of ``log(flux / sky_rms)``, event shape (galaxy,).
    mask
        Logits of the masks ``(blend, galaxy, y, x)``; None for a network without masks.
    share
        Logits of the central galaxy's share of the light ``(blend, y, x)``; None for a network without masks.
    """

    flux: dist.TorchDistribution
    mask: Tensor | None
    share: Tensor | None


def divide_light(image: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """Divide the light inside either mask between the galaxies.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``.
    mask
        Mask probabilities ``(blend, galaxy, y, x)``.
    share
        Share of the light that is the central galaxy's ``(blend, y, x)``.

    Returns
    -------
    Tensor
        Light of each galaxy ``(blend, galaxy, y, x)``, the mean of the bands.
    """
    inside = 1 - (1 - mask).prod(1, keepdim=True)
    return inside * torch.stack([share, 1 - share], 1) * image.mean(1, keepdim=True)


class Blend2Flux(nn.Module):
    """Image over sky noise to the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    first_filters, hidden, norm, dropout, patch
        Of the `~probdeblend.networks.flux.FluxCNN`.
    head
        Class of the head, called with the number of features.
    """

    def __init__(
        self,
        *,
        first_filters: int = 64,
        hidden: int | None = None,
        norm: bool = False,
        dropout: float = 0.2,
        patch: int = 1,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.cnn = FluxCNN(3, patch=patch, first_filters=first_filters, hidden=hidden, norm=norm, dropout=dropout)
        self.head = head(self.cnn.out_features)

    def encode(self, image: Tensor) -> BlendFeatures:
        """Return the features from which `answer` goes on.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendFeatures
            With the light of the whole stamp as the start of both log-fluxes.
        """
        light = image.sum((-3, -2, -1)).clamp(min=1.0).log()
        return BlendFeatures(self.cnn.encode(stretch(image)), light[:, None].expand(-1, 2), None)

    def answer(self, features: BlendFeatures) -> BlendNumbers:
        """Return the head's numbers, from features.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        BlendNumbers
            Without masks.
        """
        return BlendNumbers(self.head.numbers(self.cnn.answer(features.flux), features.start), None, None)

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
        return BlendAnswer(self.head.distribution(self.answer(self.encode(image)).flux), None, None)


class Blend2Mask2Flux(nn.Module):
    """Image over sky noise to masks, shares of the light and the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    unet_filters, depth
        Of the `~probdeblend.networks.unet.UNet`.
    first_filters, hidden
        Of the `~probdeblend.networks.flux.FluxCNN`.
    norm
        Group normalization in both.
    dropout
        Dropout probability in both.
    patch
        Side in pixels of the squares that both fold into channels before their first convolution; 1 for none.
    head
        Class of the head, called with the number of features.

    Attributes
    ----------
    end_to_end : bool
        Whether the flux loss trains the U-Net too, as in the paper. It tightens the masks, and they are no longer the
        probabilities that the mask loss asks for; set it to False to keep them.
    """

    def __init__(
        self,
        *,
        unet_filters: int = 32,
        depth: int = 5,
        first_filters: int = 64,
        hidden: int | None = None,
        norm: bool = False,
        dropout: float = 0.2,
        patch: int = 1,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        layers = {"norm": norm, "patch": patch}
        self.unet = UNet(3, 3, depth=depth, first_filters=unet_filters, dropout=dropout / 2, **layers)
        self.cnn = FluxCNN(7, first_filters=first_filters, hidden=hidden, extra=2, dropout=dropout, **layers)
        self.head = head(self.cnn.out_features)
        self.end_to_end = True

    def encode(self, image: Tensor) -> BlendFeatures:
        """Return the features from which `answer` goes on.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendFeatures
            With the light inside the masks, divided by the shares, as the start of the log-fluxes.
        """
        channels = stretch(image)
        features = self.unet.encode(channels)
        seen = self.unet.logits(features).float().sigmoid()
        if not self.end_to_end:
            seen = seen.detach()
        mask, share = seen[:, :2], seen[:, 2]
        light = divide_light(image, mask, share)
        start = light.sum((-2, -1)).clamp(min=1.0).log()
        # The logarithms lie between 0 and 14; the hidden layers like numbers around one.
        flux = self.cnn.encode(torch.cat([channels, mask, torch.asinh(light)], 1), start / 4 - 2)
        return BlendFeatures(flux, start, features)

    def answer(self, features: BlendFeatures) -> BlendNumbers:
        """Return the U-Net's logits and the head's numbers, from features.

        Parameters
        ----------
        features
            What `encode` returns.

        Returns
        -------
        BlendNumbers
            Both.
        """
        flux = self.head.numbers(self.cnn.answer(features.flux), features.start)
        logits = self.unet.answer(features.mask).float()
        return BlendNumbers(flux, logits[:, :2], logits[:, 2])

    def forward(self, image: Tensor) -> BlendAnswer:
        """Return the U-Net's logits and the distribution of the log-fluxes.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendAnswer
            Both.
        """
        numbers = self.answer(self.encode(image))
        return BlendAnswer(self.head.distribution(numbers.flux), numbers.mask, numbers.share)
