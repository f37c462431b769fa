"""Losses: each is a module whose ``forward(image, flux, mask, light)`` returns a scalar mean per blend.

`image` ``(blend, band, y, x)``, `flux` ``(blend, galaxy)`` and `light` ``(blend, galaxy, y, x)``, the image of each
galaxy alone, are in units of the sky noise, `mask` is ``(blend, galaxy, y, x)``. Networks answer in
``log(flux / sky_rms)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fcn import labels

__all__ = ["FluxError", "JointError", "LabelEntropy", "MaskEntropy", "NegativeLogLikelihood"]


def _absolute_percentage(log_flux: Tensor, flux: Tensor) -> Tensor:
    return 100 * ((log_flux.exp() - flux) / flux).abs().mean()


def _mask_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, mask.to(logits))


def _share_entropy(logits: Tensor, light: Tensor) -> Tensor:
    """Return the cross-entropy of the central galaxy's share of the light, pixels weighted by the root of their light.

    It is least where the logits give the expected share; the root lets outskirts count beside cores.
    """
    light = light.clamp(min=0)
    total = light.sum(1)
    share = light[:, 0] / total.clamp(min=1e-6)
    weight = total.sqrt() / total.sqrt().sum((-2, -1), keepdim=True).clamp(min=1e-6)
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, share, reduction="none")
    return (weight * entropy).sum((-2, -1)).mean()


class _Loss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class FluxError(_Loss):
    """Mean absolute percentage error of the fluxes, the loss of blend2flux in Boucaud et al. (2020).

    Parameters
    ----------
    network
        A composite network; the mean of its distribution is its estimate.
    """

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the error in percent.

        Parameters
        ----------
        image, flux, mask, light
            As the module says.

        Returns
        -------
        Tensor
            Scalar.
        """
        return _absolute_percentage(self.network(image).flux.mean, flux)


class MaskEntropy(_Loss):
    """Binary cross-entropy of the mask probabilities: a proper score, so that they come out calibrated.

    Parameters
    ----------
    network
        A network whose ``forward`` returns mask logits.
    """

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the cross-entropy, mean over pixels.

        Parameters
        ----------
        image, flux, mask, light
            As the module says.

        Returns
        -------
        Tensor
            Scalar.
        """
        return _mask_entropy(self.network(image), mask)


class LabelEntropy(_Loss):
    """Cross-entropy of the four labels of `~probdeblend.networks.fcn.FullyConvolutional`: a proper score.

    Parameters
    ----------
    network
        A network whose ``forward`` returns logits of the labels.
    """

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the cross-entropy, mean over pixels.

        Parameters
        ----------
        image, flux, mask, light
            As the module says.

        Returns
        -------
        Tensor
            Scalar.
        """
        return torch.nn.functional.cross_entropy(self.network(image).float(), labels(mask))


class JointError(_Loss):
    """Weighted sum of mask cross-entropy and flux percentage error, as for blend2mask2flux in Boucaud et al. (2020).

    The public script of the paper weights the mask loss with 1 and the flux loss with 0.1, the default here; with
    the weights exchanged it is the mask loss that counts a tenth.

    Parameters
    ----------
    network
        A composite network with masks.
    mask_weight, flux_weight
        Weights of the two parts.
    """

    def __init__(self, network: nn.Module, *, mask_weight: float = 1.0, flux_weight: float = 0.1) -> None:
        super().__init__(network)
        self.mask_weight = mask_weight
        self.flux_weight = flux_weight

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the weighted sum.

        Parameters
        ----------
        image, flux, mask, light
            As the module says.

        Returns
        -------
        Tensor
            Scalar.
        """
        answer = self.network(image)
        error = _absolute_percentage(answer.flux.mean, flux)
        return self.mask_weight * _mask_entropy(answer.mask, mask) + self.flux_weight * error


class NegativeLogLikelihood(_Loss):
    """Negative log-likelihood of the log-fluxes, plus that of the U-Net's answers: training by simulation (forward KL).

    Parameters
    ----------
    network
        A composite network.
    mask_weight
        Weight of the mask cross-entropy (mean over pixels) beside the flux term (sum over galaxies).
    share_weight
        Weight of the cross-entropy of the shares of the light (weighted mean over pixels).
    """

    def __init__(self, network: nn.Module, *, mask_weight: float = 50.0, share_weight: float = 50.0) -> None:
        super().__init__(network)
        self.mask_weight = mask_weight
        self.share_weight = share_weight

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor, light: Tensor) -> Tensor:
        """Return the negative log-likelihood in nat.

        Parameters
        ----------
        image, flux, mask, light
            As the module says.

        Returns
        -------
        Tensor
            Scalar.
        """
        answer = self.network(image)
        loss = -answer.flux.log_prob(torch.log(flux)).mean()
        if answer.mask is None:
            return loss
        pixels = self.share_weight * _share_entropy(answer.share, light)
        return loss + self.mask_weight * _mask_entropy(answer.mask, mask) + pixels
