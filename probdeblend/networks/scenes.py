"""The scene network: from an image of any number of overlapping sources to the joint distribution of their fluxes.

The trunk sees an image once. Sources are where it answers with a peak, or at given positions; `SourceReader` divides
the light among them and `TokenNetwork` makes a token for each. Sources whose masks overlap are a group; its tokens
attend to each other, with what pairs have in common as bias and message, and heads answer with the joint distribution
of the group's fluxes, and with shape, class and existence of every source. Monte Carlo dropout acts before the heads,
so that everything else is computed once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..scene import overlap_groups
from .joint import FluxNumbers, GroupFlux
from .sources import TOKEN, Shares, SourceFeatures, SourceReader, TokenNetwork
from .trunk import Trunk, TrunkMaps

__all__ = ["SHAPES", "GroupAnswer", "GroupTokens", "SceneNetwork", "groups_by_size"]

SHAPES = ("dx", "dy", "ln_radius", "e1", "e2", "ln_index")
CLASSES = 5
HEADS = 4
EDGE = 4
LEAST_WIDTH, LARGEST_WIDTH = 2e-3, 3.0
FREEDOM = (2.5, 30.0)


class GroupAnswer(NamedTuple):
    """What the network says of groups of equal size.

    - `flux`: their joint distribution, of ln flux over sky rms.
    - `shape`, `shape_width (group, source, shape)`: mean and scale of `SHAPES`.
    - `kind`: logit of each class ``(group, source, class)``.
    - `existence`: logit that there is a source ``(group, source)``.
    """

    flux: GroupFlux
    shape: Tensor
    shape_width: Tensor
    kind: Tensor
    existence: Tensor


class GroupTokens(NamedTuple):
    """What the heads see of groups of equal size, computed once whatever the number of dropout passes.

    - `hidden (group, source, feature)`: features of the sources, fused.
    - `each (group, source, band, feature)`: per band.
    - `edge (group, source, source, 4)`: features of pairs of sources.
    - `anchor (group, source, band)`: ln of a first guess of the flux over sky rms.
    """

    hidden: Tensor
    each: Tensor
    edge: Tensor
    anchor: Tensor


class Exchange(nn.Module):
    """Attention among the sources of a group, with a bias and a message from the features of each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TOKEN)
        self.query_key_value = nn.Linear(TOKEN, 3 * TOKEN)
        self.bias = nn.Sequential(nn.Linear(EDGE, 32), nn.SiLU(), nn.Linear(32, HEADS))
        self.message = nn.Sequential(nn.Linear(EDGE, 32), nn.SiLU(), nn.Linear(32, TOKEN))
        self.out = nn.Linear(TOKEN, TOKEN)
        self.forth = nn.Sequential(
            nn.LayerNorm(TOKEN), nn.Linear(TOKEN, 2 * TOKEN), nn.SiLU(), nn.Linear(2 * TOKEN, TOKEN)
        )

    def forward(self, token: Tensor, edge: Tensor) -> Tensor:
        """Return tokens ``(group, source, feature)`` that know of the others."""
        split = (HEADS, TOKEN // HEADS)
        query, key, value = (v.unflatten(-1, split) for v in self.query_key_value(self.norm(token)).chunk(3, -1))
        logit = torch.einsum("gihc,gjhc->gijh", query, key) * split[1] ** -0.5 + self.bias(edge)
        weight = logit.float().softmax(2).to(value)
        sent = value[:, None] + self.message(edge).unflatten(-1, split)
        token = token + self.out(torch.einsum("gijh,gijhc->gihc", weight, sent).flatten(-2))
        return token + self.forth(token)


class SceneNetwork(nn.Module):
    """The whole network.

    Parameters
    ----------
    dropout
        Probability that a unit is dropped before the heads, and before the mask's own network.
    """

    def __init__(self, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.reader = SourceReader(dropout=dropout)
        self.tokens = TokenNetwork()
        self.attention = nn.ModuleList(Exchange() for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.hidden = nn.Sequential(nn.Linear(TOKEN, TOKEN), nn.SiLU())
        self.band_hidden = nn.Sequential(nn.Linear(2 * TOKEN, TOKEN), nn.SiLU())
        self.flux = nn.Linear(TOKEN, 8)
        self.pair = nn.Sequential(nn.Linear(3 * TOKEN + EDGE, TOKEN), nn.SiLU(), nn.Linear(TOKEN, 2))
        self.group = nn.Sequential(nn.Linear(2 * TOKEN, TOKEN), nn.SiLU())
        self.total = nn.Linear(TOKEN, 4)
        self.answers = nn.Linear(TOKEN, 2 * len(SHAPES) + CLASSES + 1)
        self.aperture_freedom = nn.Parameter(torch.tensor(1.0))
        with torch.no_grad():
            for layer in (self.flux, self.pair[-1], self.total, self.answers):
                layer.weight.mul_(0.3)
            self.flux.bias.copy_(torch.tensor([0.2, -1.5, 0.0, -0.08, -3.0, 0.0, 0.0, 0.0]))
            self.pair[-1].bias.copy_(torch.tensor([0.1, 0.05]))
            self.total.bias.copy_(torch.tensor([0.0, -1.5, 0.0, 0.0]))

    def encode(self, image: Tensor, good: Tensor, psf: Tensor, noise: Tensor) -> TrunkMaps:
        """Return the trunk's maps of images.

        Parameters
        ----------
        image
            Pixels over sky noise ``(scene, band, y, x)``, sides multiples of 16.
        good
            1 where a pixel is good and 0 where it is not, of the same shape.
        psf
            Effective PSFs ``(scene, band, y, x)`` of unit sum, 41 pixels on a side.
        noise
            Numbers of the noise and color of each band ``(scene, band, 5)``; see `describe_bands`.

        Returns
        -------
        TrunkMaps
            Maps from which `read` continues.
        """
        return self.trunk(image, good, psf, noise)

    def read(
        self, maps: TrunkMaps, x: Tensor, y: Tensor, *, queries: Tensor | None = None, wanted: int | None = None
    ) -> tuple[Shares, SourceFeatures]:
        """Divide the light of scenes between sources.

        Parameters
        ----------
        maps
            What `encode` returns.
        x, y
            Positions ``(scene, source)`` in pixels.
        queries
            Queries of the sources, where they were read before, from larger maps.
        wanted
            Number of sources, the first ones, whose features are wanted; all by default.

        Returns
        -------
        tuple of Shares and SourceFeatures
            Shares and masks of all sources, and features of the wanted ones.
        """
        shares = self.reader(maps, x, y, queries)
        return shares, self.tokens(maps, shares, x, y, wanted)

    def tokens_of(self, features: SourceFeatures, index: Sequence[tuple[int, list[int]]]) -> GroupTokens:
        """Let the sources of groups of equal size attend to each other.

        Parameters
        ----------
        features
            What `read` returns.
        index
            The scene of each group, and its sources.

        Returns
        -------
        GroupTokens
            What the heads see, before dropout.
        """
        scene = torch.tensor([number for number, _ in index], device=features.token.device)[:, None]
        member = torch.tensor([members for _, members in index], device=features.token.device)
        token, band_token = features.token[scene, member], features.band_token[scene, member]
        edge = features.edge[scene[..., None], member[..., None], member[:, None]].to(token)
        for layer in self.attention:
            token = layer(token, edge)
        each = self.band_hidden(torch.cat([band_token, token[:, :, None].expand_as(band_token)], -1))
        return GroupTokens(self.hidden(token), each, edge, features.anchor[scene, member])

    def answer(self, features: SourceFeatures, index: Sequence[tuple[int, list[int]]]) -> GroupAnswer:
        """Answer for groups of equal size.

        Parameters
        ----------
        features
            What `read` returns.
        index
            The scene of each group, and its sources.

        Returns
        -------
        GroupAnswer
            The joint distribution of the fluxes, and what is known of each source.
        """
        tokens = self.tokens_of(features, index)
        return self.heads(tokens._replace(hidden=self.drop(tokens.hidden), each=self.drop(tokens.each)))

    def heads(self, tokens: GroupTokens) -> GroupAnswer:
        """Answer from what the heads see.

        Parameters
        ----------
        tokens
            What `tokens_of` returns, after dropout.

        Returns
        -------
        GroupAnswer
            As `answer` returns it.
        """
        hidden, each, edge, anchor = tokens
        bands = anchor.shape[2]
        numbers = self.flux(each + hidden[:, :, None]).float()
        shift, width, common, aperture, aperture_width, aperture_common, slope, coupling = numbers.unbind(-1)
        anchor = anchor.float()
        mean = anchor + 4 * torch.tanh(shift / 4)
        fraction = mean.softmax(1)
        pooled = torch.cat([each.mean(1), (fraction[..., None].to(each) * each).sum(1)], -1)
        of_group = self.total(self.group(pooled)).float()
        pair = self._pairs(hidden, each, edge)
        low, high = FREEDOM
        flux = FluxNumbers(
            mean=mean,
            width=_positive(width),
            common=common * (bands > 1),
            exchange=pair[..., 0] * (bands > 1),
            band_exchange=pair[..., 1] if bands > 1 else pair.sum(-1),
            total_shift=of_group[..., 0],
            total_width=_positive(of_group[..., 1]),
            total_common=of_group[..., 2] * (bands > 1),
            coupling=coupling.tanh(),
            freedom=low + (high - low) * of_group[..., 3].mean(-1).sub(1).sigmoid(),
            aperture=aperture,
            aperture_width=_positive(aperture_width),
            aperture_common=aperture_common * (0.1 if bands > 1 else 0.0),
            aperture_slope=slope.tanh(),
            aperture_freedom=low + functional.softplus(self.aperture_freedom),
        )
        shape, shape_width, kind, existence = self.answers(hidden).float().split([len(SHAPES)] * 2 + [CLASSES, 1], -1)
        return GroupAnswer(GroupFlux(flux), shape, _positive(shape_width), kind, existence[..., 0])

    def _pairs(self, hidden: Tensor, each: Tensor, edge: Tensor) -> Tensor:
        """Return the exchange of each source with each other, ``(group, source, source, band, 2)``."""
        groups, sources, bands = each.shape[:3]
        if sources == 1:
            return torch.zeros(groups, sources, sources, bands, 2, dtype=torch.float32, device=each.device)
        # The first layer sees both sources, their product and the pair's features; taken apart, most of it is computed
        # once per source.
        first, second, product, pair = self.pair[0].weight.split([TOKEN, TOKEN, TOKEN, EDGE], 1)
        alike = functional.linear(hidden[:, :, None] * hidden[:, None], product)
        alike = alike + functional.linear(edge, pair, self.pair[0].bias)
        own = functional.linear(each, first)[:, :, None] + functional.linear(each, second)[:, None]
        return self.pair[1:](own + alike[..., None, :]).float()


def groups_by_size(overlaps: Iterable[Tensor]) -> Iterable[list[tuple[int, list[int]]]]:
    """Return groups of equal size as scenes and members, from the overlap ``(source, source)`` in each scene."""
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for scene, overlap in enumerate(overlaps):
        for members in overlap_groups(overlap):
            groups.setdefault(len(members), []).append((scene, members))
    return groups.values()


def _positive(value: Tensor) -> Tensor:
    return (LEAST_WIDTH + functional.softplus(value)).clamp(max=LARGEST_WIDTH)
