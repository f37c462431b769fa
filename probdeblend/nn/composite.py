"""Blend2Flux and Blend2Mask2Flux: image over sky noise to the distribution of both log-fluxes, and to both masks.

The networks of Boucaud et al. (2020, doi:10.1093/mnras/stz3056) with distributions in place of numbers. Blend2Flux
sees the image alone; Blend2Mask2Flux sees the image and the two mask probabilities that its U-Net gives, and counts
the log-fluxes from the light inside each of them: photometry through the masks is the start, the network's task is
what the masks miss.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .flux import FluxCNN
from .heads import StudentTHead
from .unet import UNet

__all__ = ["Blend2Flux", "Blend2Mask2Flux", "BlendAnswer", "BlendFeatures", "BlendNumbers", "stretch"]


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
    """

    flux: Tensor
    mask: Tensor | None


class BlendAnswer(NamedTuple):
    """What a network says about blends.

    Parameters
    ----------
    flux
        Distribution of ``log(flux / sky_rms)``, event shape (galaxy,).
    mask
        Logits of the masks ``(blend, galaxy, y, x)``; None for a network without masks.
    """

    flux: dist.TorchDistribution
    mask: Tensor | None


def stretch(image: Tensor) -> Tensor:
    """Return two views of an image over its sky noise: asinh, and linear over the peak.

    Parameters
    ----------
    image
        Pixels over sky noise ``(blend, band, y, x)``.

    Returns
    -------
    Tensor
        Channels ``(blend, 2 band, y, x)``.
    """
    peak = image.amax((-3, -2, -1), keepdim=True).clamp(min=1.0)
    return torch.cat([torch.asinh(image), image / peak], 1)


def _log_light(image: Tensor, weight: Tensor) -> Tensor:
    """Return the logarithm of the light inside weights ``(blend, galaxy, y, x)``, shared where they overlap."""
    share = weight.square() / weight.sum(1, keepdim=True).clamp(min=1e-3)
    return (share * image.mean(1, keepdim=True)).sum((-2, -1)).clamp(min=1.0).log()


class Blend2Flux(nn.Module):
    """Image over sky noise to the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    first_filters, hidden, norm, dropout
        Of the `~probdeblend.nn.flux.FluxCNN`.
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
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.cnn = FluxCNN(2, first_filters=first_filters, hidden=hidden, norm=norm, dropout=dropout)
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
        return BlendNumbers(self.head.numbers(self.cnn.answer(features.flux), features.start), None)

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
        return BlendAnswer(self.head.distribution(self.answer(self.encode(image)).flux), None)


class Blend2Mask2Flux(nn.Module):
    """Image over sky noise to mask logits and the distribution of both log-fluxes over sky noise.

    Parameters
    ----------
    unet_filters, depth
        Of the `~probdeblend.nn.unet.UNet`.
    first_filters, hidden
        Of the `~probdeblend.nn.flux.FluxCNN`.
    norm
        Group normalization in both.
    dropout
        Dropout probability in both.
    end_to_end
        Let the flux loss train the masks too, as in the paper. It tightens them, and they are no longer the
        probabilities that the mask loss asks for.
    head
        Class of the head, called with the number of features.
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
        end_to_end: bool = True,
        head: type[nn.Module] = StudentTHead,
    ) -> None:
        super().__init__()
        self.unet = UNet(2, depth=depth, first_filters=unet_filters, norm=norm, dropout=dropout / 2)
        self.cnn = FluxCNN(4, first_filters=first_filters, hidden=hidden, extra=2, norm=norm, dropout=dropout)
        self.head = head(self.cnn.out_features)
        self.end_to_end = end_to_end

    def encode(self, image: Tensor) -> BlendFeatures:
        """Return the features from which `answer` goes on.

        Parameters
        ----------
        image
            Pixels over sky noise ``(blend, band, y, x)``.

        Returns
        -------
        BlendFeatures
            With the light inside each mask as the start of the log-fluxes.
        """
        channels = stretch(image)
        features = self.unet.encode(channels)
        mask = self.unet.out(features).float().sigmoid()
        if not self.end_to_end:
            mask = mask.detach()
        start = _log_light(image, mask)
        # The logarithms lie between 0 and 14; the hidden layers like numbers around one.
        return BlendFeatures(self.cnn.encode(torch.cat([channels, mask], 1), start / 4 - 2), start, features)

    def answer(self, features: BlendFeatures) -> BlendNumbers:
        """Return mask logits and the head's numbers, from features.

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
        return BlendNumbers(flux, self.unet.answer(features.mask).float())

    def forward(self, image: Tensor) -> BlendAnswer:
        """Return mask logits and the distribution of the log-fluxes.

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
        return BlendAnswer(self.head.distribution(numbers.flux), numbers.mask)
