"""Draws from the scene network: Monte Carlo dropout behind cached features.

Everything up to the features of the groups is computed once. Each dropout pass drops units behind them, the same for
every group, and turns the features into a joint distribution of the fluxes; draws are shared evenly between the passes.
The mixture of the passes is the posterior: its variance is the mean variance within a pass plus the variance between
the passes' means (Gal and Ghahramani 2016, arXiv:1506.02142). The spread between passes alone is not an uncertainty.

Every group has random numbers of its own, as many whatever the network says, so that an answer that changes by a
rounding error changes its draws by no more.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..scene import check_least, seed_of
from .scenes import GroupTokens, SceneNetwork
from .sources import QUERY, TOKEN, SourceFeatures

__all__ = ["GroupDraws", "KeptUnits", "draw_groups", "kept_units"]

REAL = torch.float32  # whatever torch's default is: other precisions have other random numbers


class KeptUnits(NamedTuple):
    """Factors on features in each dropout pass: zero where a unit is dropped.

    - `token (pass, 2, feature)`: on the features before the heads, fused and per band.
    - `query (pass, feature)`: on the queries before the masks' networks.
    """

    token: Tensor
    query: Tensor


class GroupDraws(NamedTuple):
    """What the network says of groups of equal size, all dropout passes together.

    - `log_flux`: draws of ln flux over sky rms ``(chain, draw, group, source, band, kind)``; a chain is a pass.
    - `shape`, `shape_width (group, source, shape)`: mean of `SHAPES`, and its scale with the spread over the passes.
    - `kind`: probability of each class ``(group, source, class)``.
    - `existence`: probability that there is a source ``(group, source)``.
    """

    log_flux: Tensor
    shape: Tensor
    shape_width: Tensor
    kind: Tensor
    existence: Tensor


@torch.no_grad()
def draw_groups(
    network: SceneNetwork,
    features: SourceFeatures,
    index: Sequence[tuple[int, list[int]]],
    *,
    keys: Sequence[int],
    draws: int = 1000,
    passes: int = 32,
    seed: int = 0,
) -> GroupDraws:
    """Draw the fluxes of groups of equal size, all at once.

    The draws of a group depend on the seed and on its key alone, not on the other groups, and not on their number.

    Parameters
    ----------
    network
        A trained network.
    features
        What its `read` returns.
    index
        The scene of each group, and its sources.
    keys
        A number for each group, which with the seed gives its random numbers.
    draws
        Number of draws, rounded up to a multiple of `passes`.
    passes
        Number of dropout passes; 0 for one chain without dropout.
    seed
        Same seed, same passes and draws.

    Returns
    -------
    GroupDraws
        Draws, and means over the passes, on the CPU.

    Raises
    ------
    ValueError
        If a number is negative, or there are not as many keys as groups.
    """
    kept = kept_units(network.drop.p, passes, seed).token
    tokens = network.tokens_of(features, index)
    passes, groups, each = len(kept), len(index), math.ceil(draws / len(kept))
    fused, per_band = kept.to(tokens.hidden).unbind(1)
    dropped = GroupTokens(
        (tokens.hidden * fused[:, None, None]).flatten(0, 1),
        (tokens.each * per_band[:, None, None, None]).flatten(0, 1),
        tokens.edge.repeat(passes, 1, 1, 1),
        tokens.anchor.repeat(passes, 1, 1),
    )
    answer = network.heads(dropped)
    size = (each, passes, answer.flux.normals)
    generators = [torch.Generator().manual_seed(seed_of(seed, 1, key)) for _, key in zip(index, keys, strict=True)]
    noise = torch.stack([torch.randn(size, generator=one, dtype=REAL) for one in generators], 2)
    log_flux = answer.flux.transform(noise.flatten(1, 2).to(answer.shape.device))
    of_passes = (answer.shape, answer.shape_width, answer.kind.softmax(-1), answer.existence.sigmoid())
    shape, width, kind, existence = (value.unflatten(0, (passes, groups)) for value in of_passes)
    width = (width.square().mean(0) + shape.var(0, correction=0)).sqrt()
    means = (shape.mean(0), width, kind.mean(0), existence.mean(0))
    log_flux = log_flux.unflatten(1, (passes, groups)).transpose(0, 1)
    return GroupDraws(log_flux.cpu(), *(value.cpu() for value in means))


@lru_cache(maxsize=8)
def kept_units(dropout: float, passes: int, seed: int) -> KeptUnits:
    """Return what is kept in each of `passes` dropout passes; all in one pass if that is 0."""
    check_least(0, passes=passes, seed=seed)
    if not passes:
        return KeptUnits(torch.ones(1, 2, TOKEN, dtype=REAL), torch.ones(1, QUERY, dtype=REAL))
    generators = (torch.Generator().manual_seed(seed_of(seed, 0, number)) for number in range(passes))
    kept = torch.stack([torch.rand(3, TOKEN, generator=one, dtype=REAL) for one in generators]) < 1 - dropout
    kept = kept.to(REAL) / (1 - dropout)
    return KeptUnits(kept[:, :2], kept[:, 2, :QUERY])
