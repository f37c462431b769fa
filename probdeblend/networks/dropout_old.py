"""Draws from a network: Monte Carlo dropout over cached features.

The convolutions run once per blend. Each dropout pass drops units behind them, the same for every blend, and turns the
features into a distribution; draws are shared evenly between the passes. The mixture of the passes is the posterior:
its variance is the mean variance within a pass plus the variance between the passes' means (Gal and Ghahramani 2016,
arXiv:1506.02142). The spread between passes alone is not an uncertainty.

The entropy of its mean probability measures how undecided a pixel is. The mean entropy of the passes is the part on
which they agree; the rest is the mutual information between pixel and pass (Houlsby et al. 2011, arXiv:1112.5745;
Depeweg et al. 2018, arXiv:1710.07283).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..scene import seed_of
from .composite import BlendAnswer, BlendFeatures
from .layers import dropout_passes

__all__ = ["NetworkDraws", "draw"]

CHUNK = 64  # blends at a time
CACHED = 4  # blends whose masks are processed at a time, so that they stay in the cache
MOST_FACTORS = 100  # each of them at least 1/2, so that float32 holds their product


class NetworkDraws(NamedTuple):
    """Draws from the dropout passes of a network for a batch of blends, in units of the sky noise.

    - `log_flux`: draws ``(chain, draw, blend, galaxy)`` of ``log(flux / sky_rms)``; a chain is a pass.
    - `mask`, `mask_std`: mask probability and its spread over the passes ``(blend, galaxy, y, x)``; None without masks.
    - `mask_information`: mutual information between pixel and pass in bits, same shape; None without masks.
    - `features`: last hidden layer without dropout ``(blend, feature)``.
    """

    log_flux: Tensor
    mask: Tensor | None
    mask_std: Tensor | None
    mask_information: Tensor | None
    features: Tensor


def draw(
    network: nn.Module, image: Tensor, *, draws: int = 1000, passes: int = 32, seed: int = 0, first: int = 0
) -> NetworkDraws:
    """Draw log-fluxes and masks from a composite network for pixels over sky noise ``(blend, band, y, x)``.

    `draws` is rounded up to a multiple of `passes`; no passes means the network without dropout. The draws of a blend
    depend on the seed and on its number, counted from `first`, alone. Everything returned is on the CPU.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    for name, value in (("passes", passes), ("seed", seed), ("first", first)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    network.eval().to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        parts = [
            _draw_chunk(network, chunk, draws=draws, passes=passes, seed=seed, first=first + CHUNK * i)
            for i, chunk in enumerate(image.split(CHUNK))
        ]
    log_flux, *others = zip(*parts, strict=True)
    return NetworkDraws(torch.cat(log_flux, 2), *(None if v[0] is None else torch.cat(v) for v in others))


def _draw_chunk(network: nn.Module, image: Tensor, *, draws: int, passes: int, seed: int, first: int) -> NetworkDraws:
    features = network.encode(image)
    answers = _passes(network, features, passes=passes, seed=seed)
    masks = _mask_moments([answer.mask for answer in answers])
    numbers = torch.stack([answer.flux for answer in answers]).cpu()
    each = math.ceil(draws / len(answers))
    log_flux = torch.empty(len(answers), each, len(image), 2)
    for blend in range(len(image)):
        torch.manual_seed(seed_of(seed, 1, first + blend))
        log_flux[:, :, blend] = network.head.sample(numbers[:, blend], each).transpose(0, 1)
    return NetworkDraws(log_flux, *masks, network.cnn.answer(features.flux).cpu())


def _passes(network: nn.Module, features: BlendFeatures, *, passes: int, seed: int) -> list[BlendAnswer]:
    answers = []
    with dropout_passes(network):
        for number in range(passes):
            torch.manual_seed(seed_of(seed, 0, number))
            answers.append(network.answer(features))
    return answers or [network.answer(features)]


def _mask_moments(logits: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Return mean and spread of the passes' probabilities, and the information between pixel and pass in bits."""
    if logits[0] is None:
        return None, None, None
    pieces = [_moments(piece) for piece in zip(*(value.split(CACHED) for value in logits), strict=True)]
    return tuple(torch.cat(values).cpu() for values in zip(*pieces, strict=True))


def _moments(logits: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    total, square, entropy = (torch.zeros_like(logits[0]) for _ in range(3))
    for start in range(0, len(logits), MOST_FACTORS):
        certain = torch.ones_like(total)
        for value in logits[start : start + MOST_FACTORS]:
            probability = value.sigmoid()
            total += probability
            square += probability.square()
            rare = torch.minimum(probability, 1 - probability)
            # The entropy in nats is |logit| * rare - ln(1 - rare); the logarithm of a product is that of all passes.
            entropy.addcmul_(value.abs(), rare)
            certain.addcmul_(certain, rare, value=-1)
        entropy -= certain.log()
    mean = total / len(logits)
    spread = (square / len(logits) - mean.square()).clamp(min=0).sqrt()
    of_mean = torch.special.entr(mean) + torch.special.entr(1 - mean)
    # Rounding leaves a little; for a single pass it must be exactly zero.
    information = (of_mean - entropy / len(logits)).clamp(min=0) / math.log(2) * (len(logits) > 1)
    return mean, spread, information
