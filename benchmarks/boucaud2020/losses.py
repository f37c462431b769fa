"""The losses of the paper: each is a module whose ``forward(image, flux, mask)`` returns a scalar mean.

`image` ``(scene, 1, y, x)`` and `flux` ``(scene, galaxy)`` are in units of the sky noise, `mask` is
``(scene, galaxy, y, x)``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["JointError", "MaskEntropy"]


class MaskEntropy(nn.Module):
    """Cross-entropy of both masks, mean over pixels: the first stage of the training of Blend2Mask2Flux."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, _: Tensor, mask: Tensor) -> Tensor:
        """Return the cross-entropy in nats of a network that returns logits of the masks."""
        return binary_cross_entropy_with_logits(self.network(image).float(), mask.float())


class JointError(nn.Module):
    """Weighted sum of the cross-entropy of the masks and the mean absolute error of the fluxes in percent.

    The public script of the paper weights the mask loss with 1 and the flux loss with 0.1, the default here; with
    the weights exchanged it is the mask loss that counts a tenth. For a network without masks the flux error alone
    remains.
    """

    def __init__(self, network: nn.Module, *, mask_weight: float = 1.0, flux_weight: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.mask_weight, self.flux_weight = mask_weight, flux_weight

    def forward(self, image: Tensor, flux: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted sum, mean over the batch."""
        answer = self.network(image)
        error = self.flux_weight * 100 * ((answer.log_flux.exp() - flux) / flux).abs().mean()
        if answer.mask is None:
            return error
        return self.mask_weight * binary_cross_entropy_with_logits(answer.mask, mask.float()) + error
