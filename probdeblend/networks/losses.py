"""Losses: each is a module whose ``forward(image, flux, mask, light)`` returns a scalar mean over blends.

`image` ``(blend, band, y, x)``, `flux` ``(blend, galaxy)`` and `light` ``(blend, galaxy, y, x)``, the image of each
galaxy alone, are in units of the sky noise, `mask` is ``(blend, galaxy, y, x)``. Networks return
``log(flux / sky_rms)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .fcn import labels

__all__ = ["JointError", "LabelEntropy", "NegativeLogLikelihood"]


def _mask_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of masks, mean over pixels: a proper score, so that probabilities are calibrated."""
    return binary_cross_entropy_with_logits(logits, mask.to(logits))


def _share_entropy(logits: Tensor, light: Tensor) -> Tensor:
    """Return the cross-entropy of the central galaxy's share of the light, pixels weighted by the root of their light.

    It is least where the logits give the expected share; the root lets outskirts count beside cores.
    """
    light = light.clamp(min=0)
    total = light.sum(1)
    share = light[:, 0] / total.clamp(min=1e-6)
    weight = total.sqrt() / total.sqrt().sum((-2, -1), keepdim=True).clamp(min=1e-6)
    return (weight * binary_cross_entropy_with_logits(logits, share, reduction="none")).sum((-2, -1)).mean()


class LabelEntropy(nn.Module):
    """Cross-entropy of the four labels of `FullyConvolutional`, mean over pixels: a proper score.

    Parameters
    ----------
    network
        A network whose ``forward`` returns logits of the labels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the cross-entropy.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.
        flux
            True fluxes over sky noise ``(blend, galaxy)``.
        mask
            True masks ``(blend, galaxy, y, x)``.
        light
            Light of each galaxy over sky noise ``(blend, galaxy, y, x)``.

        Returns
        -------
        Tensor
            Mean over the pixels, in nats.
        """
        return cross_entropy(self.network(image).float(), labels(mask))


class JointError(nn.Module):
    """Weighted sum of mask cross-entropy and flux percentage error, as in Boucaud et al. (2020).

    The public script of the paper weights the mask loss with 1 and the flux loss with 0.1, the default here; with
    the weights exchanged it is the mask loss that counts a tenth. For a network without masks the flux error alone
    remains, the loss of blend2flux in the paper.

    Parameters
    ----------
    network
        A composite network; the mean of its distribution is its estimate.
    mask_weight, flux_weight
        Weights of the mean cross-entropy per pixel and of the mean absolute error in percent.
    """

    def __init__(self, network: nn.Module, *, mask_weight: float = 1.0, flux_weight: float = 0.1) -> None:
        super().__init__()
        self.network, self.mask_weight, self.flux_weight = network, mask_weight, flux_weight

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the weighted sum.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.
        flux
            True fluxes over sky noise ``(blend, galaxy)``.
        mask
            True masks ``(blend, galaxy, y, x)``.
        light
            Light of each galaxy over sky noise ``(blend, galaxy, y, x)``.

        Returns
        -------
        Tensor
            Mean over the blends.
        """
        answer = self.network(image)
        error = self.flux_weight * 100 * ((answer.flux.mean.exp() - flux) / flux).abs().mean()
        return error if answer.mask is None else self.mask_weight * _mask_entropy(answer.mask, mask) + error


class NegativeLogLikelihood(nn.Module):
    """Negative log-likelihood of log-fluxes, masks and shares: training on simulations (forward KL).

    Parameters
    ----------
    network
        A composite network.
    mask_weight
        Weight of the mask cross-entropy (mean over pixels) relative to the flux term (sum over galaxies).
    share_weight
        Weight of the cross-entropy of the shares of the light (weighted mean over pixels).
    """

    def __init__(self, network: nn.Module, *, mask_weight: float = 50.0, share_weight: float = 50.0) -> None:
        super().__init__()
        self.network, self.mask_weight, self.share_weight = network, mask_weight, share_weight

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the loss in nats.

        Parameters
        ----------
        image
            Images over sky noise ``(blend, band, y, x)``.
        flux
            True fluxes over sky noise ``(blend, galaxy)``.
        mask
            True masks ``(blend, galaxy, y, x)``.
        light
            Light of each galaxy over sky noise ``(blend, galaxy, y, x)``.

        Returns
        -------
        Tensor
            Mean over the blends.
        """
        answer = self.network(image)
        loss = -answer.flux.log_prob(torch.log(flux)).mean()
        if answer.mask is None:
            return loss
        pixels = self.share_weight * _share_entropy(answer.share, light)
        return loss + self.mask_weight * _mask_entropy(answer.mask, mask) + pixels
