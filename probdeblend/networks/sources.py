"""From the trunk's maps to the sources: their shares of the light, their masks, and a token for each.

A query is read from every level of the trunk at a source's position. It sets an elliptical profile whose logarithm,
with a small network of the source's own (Tian et al. 2020, arXiv:2003.05664), is the logit of the source's share of the
light in a pixel: a softmax over the sources, and over one more share for light that belongs to no source of the list,
divides the light, so that deblended images add up. A mask is where the light of the source alone is above the mask
threshold: the trunk's map of all the light, plus the log of the share.

A flux network reads a window of the deblended light of each source and makes the token from which fluxes follow
(Boucaud et al. 2020, doi:10.1093/mnras/stz3056: blend2mask2flux, for each source). Shares and masks are detached before
it, so that they stay probabilities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .trunk import DYNAMIC, FOLD, MODULATION, WIDTHS, TrunkMaps, stretched

__all__ = ["QUERY", "TOKEN", "Shares", "SourceFeatures", "SourceReader", "TokenNetwork", "edges"]

QUERY, TOKEN = 64, 96
PATCH = 7  # pixels on a side around the position that a query sees
WINDOW = 48  # pixels on a side of what the flux network sees
CELLS = WINDOW // FOLD
RINGS = (1.5, 2.5, 4.0, 6.0, 9.0, 13.0, 18.0, 24.0)  # pixels, radii of the apertures on the deblended light
ANCHOR = 2  # aperture whose light is the first guess of the flux
ANCHOR_FLOOR = 10.0  # sky rms, about the noise of that aperture
REACH = 64.0  # pixels; farther away a source has no share of the light
PROFILE = 8
DYNAMIC_SIZE = (DYNAMIC + 2) * DYNAMIC + DYNAMIC + DYNAMIC + 1
FAR = -1e4
SPAN = int(2 * REACH) // FOLD + 4  # cells on a side of a window: all within that reach, and what they interpolate


class Shares(NamedTuple):
    """How sources divide the light of their scene.

    - `share`: fraction of the light ``(scene, source, band, y, x)``; what is missing to 1 is no listed source's.
    - `log_share`: its logarithm, and that of the rest as the last source ``(scene, source + 1, band, y, x)``.
    - `mask`: logit that the light of a source alone is above the mask threshold ``(scene, source, y, x)``.
    - `query`, `band_query`: features of each source, fused ``(scene, source, feature)`` and per band.
    """

    share: Tensor
    log_share: Tensor
    mask: Tensor
    query: Tensor
    band_query: Tensor


class SourceFeatures(NamedTuple):
    """Features of sources, from which fluxes and everything else follow.

    - `token`: fused ``(scene, source, feature)``; `band_token`: per band ``(scene, source, band, feature)``.
    - `anchor`: ln of a first guess of the flux over sky rms ``(scene, source, band)``.
    - `edge`: features of pairs ``(scene, source, source, 4)``.
    - `overlap`: expected number of pixels that two masks share ``(scene, source, source)``.
    """

    token: Tensor
    band_token: Tensor
    anchor: Tensor
    edge: Tensor
    overlap: Tensor


def read_at(features: Tensor, x: Tensor, y: Tensor, stride: int) -> Tensor:
    """Interpolate maps ``(scene, channel, y, x)`` of cells of `stride` pixels at positions ``(scene, point)``."""
    height, width = features.shape[-2:]
    place = torch.stack([(2 * x + 1) / (width * stride) - 1, (2 * y + 1) / (height * stride) - 1], -1)
    found = functional.grid_sample(features, place[:, :, None].to(features), padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)


class _Windows(NamedTuple):
    """Windows of maps around sources: `column` and `row` of their cells ``(scene, source, cell)``; `shape` of a map."""

    column: Tensor
    row: Tensor
    shape: tuple[int, int]

    @classmethod
    def around(cls, x: Tensor, y: Tensor, shape: tuple[int, int]) -> "_Windows":
        """Return windows around positions that hold all that is within `REACH` of them."""
        sides = ((x, shape[1]), (y, shape[0]))
        first = [((v / FOLD).floor().long() - SPAN // 2).clamp(0, max(size - SPAN, 0)) for v, size in sides]
        steps = [torch.arange(min(size, SPAN), device=x.device) for _, size in sides]
        return cls(*(start[..., None] + step for start, step in zip(first, steps, strict=True)), shape)

    def cut(self, maps: Tensor) -> Tensor:
        """Cut windows ``(scene, source, band, channel, y, x)`` out of maps ``(scene, band, channel, y, x)``."""
        scene = torch.arange(len(maps), device=maps.device)[:, None, None, None]
        return maps[scene, :, :, self.row[..., None], self.column[..., None, :]].permute(0, 1, 4, 5, 2, 3)

    def paste(self, values: Tensor, beyond: float) -> Tensor:
        """Paste pixels of windows ``(scene, source, band, y, x)`` into whole maps, which are constant `beyond` them."""
        height, width = (FOLD * size for size in self.shape)
        place = _pixels(self.row)[..., None] * width + _pixels(self.column)[..., None, :]
        place = place.flatten(-2)[:, :, None].expand(*values.shape[:3], -1)
        maps = values.new_full((*values.shape[:3], height * width), beyond)
        return maps.scatter(3, place, values.flatten(-2)).unflatten(-1, (height, width))


def _pixels(cells: Tensor) -> Tensor:
    """Return the numbers of the pixels of cells ``(scene, source, pixel)``."""
    return (FOLD * cells[..., None] + torch.arange(FOLD, device=cells.device)).flatten(-2)


class SourceReader(nn.Module):
    """Reads queries at positions, and divides the light.

    Dropout acts before the network of a source's own for its mask.
    """

    def __init__(self, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        inputs = sum(WIDTHS) + PATCH**2 + 2 + MODULATION
        self.read = nn.Sequential(nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, QUERY), nn.SiLU())
        self.gate = nn.Linear(QUERY, 1)
        self.profile = nn.Linear(2 * QUERY, PROFILE)
        self.share_network = nn.Linear(2 * QUERY, DYNAMIC_SIZE)
        self.mask_network = nn.Linear(QUERY, DYNAMIC_SIZE)
        self.mask_slope = nn.Parameter(torch.tensor(2.0))
        with torch.no_grad():
            self.profile.weight.mul_(0.3)
            self.profile.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 3.0, 0.0, 0.5]))
            for network in (self.share_network, self.mask_network):
                network.weight.mul_(0.5)

    def forward(self, maps: TrunkMaps, x: Tensor, y: Tensor, queries: Tensor | None = None) -> Shares:
        """Return the shares and masks of sources at ``x, y (scene, source)`` in pixels of the images.

        `queries` are those of the sources where they were read before, from larger maps.
        """
        each = self.queries(maps, x, y) if queries is None else queries
        weight = self.gate(each).float().softmax(2)
        query = (weight * each).sum(2)
        both = torch.cat([each, query[:, :, None].expand_as(each)], -1)
        near = _Windows.around(x, y, maps.share_features.shape[-2:])
        dx, dy = (_pixels(cells) - v[..., None] for cells, v in ((near.column, x), (near.row, y)))
        offset = [(value[..., 1::2] + value[..., ::2]) / 2 for value in (dx, dy)]
        logit = _profile(self.profile(both).float(), dx, dy)
        logit = logit + _own_network(self.share_network(both), near.cut(maps.share_features), *offset)
        logit = logit.masked_fill((torch.hypot(dx[:, :, None, :], dy[..., None]) > REACH)[:, :, None], FAR)
        logit = torch.cat([near.paste(logit, FAR), maps.unlisted[:, None]], 1)
        share = logit.softmax(1)[:, :-1]
        gate = maps.gate.repeat_interleave(FOLD, -2).repeat_interleave(FOLD, -1)
        seen = (gate[:, None] * share).sum(2).clamp(min=1e-8).log()
        mask = self.mask_slope.abs() * (maps.union[:, None] + seen)
        weights = self.mask_network(self.drop(query))[:, :, None]
        # Beyond the windows the mask is far below zero already.
        own = near.paste(_own_network(weights, near.cut(maps.mask_features[:, None]), *offset), 0.0)
        return Shares(share, logit.log_softmax(1), mask + own[:, :, 0], query, each)

    def queries(self, maps: TrunkMaps, x: Tensor, y: Tensor) -> Tensor:
        """Return the query of each source in each band ``(scene, source, band, feature)``."""
        scenes, bands = maps.image.shape[:2]
        flat = [value.repeat_interleave(bands, 0) for value in (x, y)]
        read = [
            read_at(level.flatten(0, 1), *flat, FOLD * 2**i).unflatten(0, (scenes, bands)).transpose(1, 2)
            for i, level in enumerate(maps.levels)
        ]
        step = torch.arange(PATCH, device=x.device) - PATCH // 2
        steps = ((x, step.repeat(PATCH)), (y, step.repeat_interleave(PATCH)))
        points = [(center[..., None] + offset).flatten(1) for center, offset in steps]
        patch = read_at(stretched(maps.image), *points, 1).reshape(scenes, x.shape[1], PATCH**2, bands).transpose(2, 3)
        phase = torch.stack([x % FOLD, y % FOLD], -1)[:, :, None].expand(-1, -1, bands, -1) - FOLD / 2
        condition = maps.condition[:, None].expand(-1, x.shape[1], -1, -1)
        return self.read(torch.cat([*read, patch.to(read[0]), phase.to(read[0]), condition.to(read[0])], -1))

    def mask_spread(
        self, maps: TrunkMaps, shares: Shares, source: int, x: float, y: float, part: Sequence[slice], kept: Tensor
    ) -> Tensor:
        """Return the standard deviation over dropout passes of a source's mask, in some rows and columns.

        The source is one of the first scene, at `x`, `y`; `kept` are factors on its query ``(pass, feature)``.
        """
        logit, query = shares.mask[0, source, *part], shares.query[0, source]
        weights = self.mask_network(torch.cat([query[None], query * kept.to(query)]))
        # One more cell on each side, as far as there are any: cells are interpolated.
        sides = zip(part, maps.mask_features.shape[-2:], strict=True)
        cells = [slice(max(s.start // FOLD - 1, 0), min(-(-s.stop // FOLD) + 1, size)) for s, size in sides]
        numbers = [torch.arange(s.start, s.stop, dtype=torch.float32, device=query.device) for s in cells]
        places = [FOLD * cell + (FOLD - 1) / 2 for cell in numbers]
        offset = [(place - center).expand(1, 1, -1) for place, center in zip(places, (y, x), strict=True)]
        features = maps.mask_features[:1, None, None, :, *cells]
        own = _own_network(weights[None, :, None], features, *offset[::-1])[0, :, 0]
        inside = (slice(s.start - FOLD * c.start, s.stop - FOLD * c.start) for s, c in zip(part, cells, strict=True))
        own = own[:, *inside]
        mask = (logit + own[1:] - own[0]).sigmoid()
        return (mask - mask.mean(0)).square().mean(0).sqrt()


def _profile(numbers: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Log of an elliptical profile ``(scene, source, band, y, x)`` with a soft core and a Sérsic-like tail."""
    shift_x, shift_y, size, e1, e2, height, slope, steep = numbers[..., None, None].unbind(-3)
    x = dx[:, :, None, None, :] - 2 * shift_x.tanh()
    y = dy[:, :, None, :, None] - 2 * shift_y.tanh()
    e1, e2 = 0.8 * e1.tanh(), 0.8 * e2.tanh()
    squared = ((1 - e1) * x.square() + (1 + e1) * y.square() - 2 * e2 * x * y) * (-2 * size.clamp(-3, 4)).exp()
    power = 0.1 + 0.65 * slope.sigmoid()
    return height - (1 + functional.softplus(steep)) * ((1 + squared.clamp(min=0)) ** power - 1) / power


def _own_network(weights: Tensor, features: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Evaluate the small network of each source ``(scene, source, band, weight)`` on folded maps, at full size.

    `features` are ``(scene, source, band, channel, y, x)``, or the same for all sources; offsets are those of cells,
    ``(scene, source, x)`` and ``(scene, source, y)``.
    """
    scenes, sources = weights.shape[:2]
    height, width = features.shape[-2:]
    first, bias, second, constant = weights.split([(DYNAMIC + 2) * DYNAMIC, DYNAMIC, DYNAMIC, 1], -1)
    first = first.unflatten(-1, (DYNAMIC, DYNAMIC + 2))
    hidden = first[..., :DYNAMIC] @ features.flatten(-2)
    near_x, near_y = (value.div(16).clamp(-2, 2).to(weights)[:, :, None, None] for value in (dx, dy))
    hidden = hidden.unflatten(-1, (height, width)) + bias[..., None, None]
    hidden = hidden + first[..., DYNAMIC, None, None] * near_x[..., None, :]
    hidden = hidden + first[..., DYNAMIC + 1, None, None] * near_y[..., None]
    value = torch.einsum("snbh,snbhyx->snbyx", second, functional.silu(hidden)) + constant[..., None]
    value = 6 * torch.tanh(value.float() / 6)
    value = functional.interpolate(value.flatten(0, 1), scale_factor=float(FOLD), mode="bilinear", align_corners=False)
    return value.unflatten(0, (scenes, sources))


class TokenNetwork(nn.Module):
    """The flux network: from a window of deblended light to a token for each source."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4 * FOLD**2 + WIDTHS[0], 32, 3, padding=1)
        self.second = nn.Conv2d(32, 48, 3, padding=1)
        self.third = nn.Conv2d(48, 48, 3, padding=1)
        self.fourth = nn.Conv2d(48, 64, 3, padding=1)
        self.fifth = nn.Conv2d(64, 64, 3, padding=1)
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.flat = nn.Linear(16 * (CELLS // 4) ** 2 + 64, 128)
        inputs = 128 + 2 * len(RINGS) + 2 + 2 * QUERY + MODULATION
        self.merge = nn.Sequential(nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, TOKEN))
        self.gate = nn.Linear(TOKEN, 1)
        self.together = nn.Linear(TOKEN, TOKEN)

    def forward(
        self, maps: TrunkMaps, shares: Shares, x: Tensor, y: Tensor, wanted: int | None = None
    ) -> SourceFeatures:
        """Return the features of the sources that `shares` divides the light among, or of the first ones of them."""
        share, probability = shares.share.detach(), shares.mask.detach().sigmoid()
        first = slice(wanted)
        light = share[:, first] * maps.image[:, None]
        windows = _windows(maps, light, share[:, first], probability[:, first], x[:, first], y[:, first])
        apertures, anchor = _apertures(windows, x[:, first], y[:, first])
        features = self._convolved(windows[0])
        edge, overlap = pair_features(maps, share, probability, x, y, anchor)
        contested = edge[..., 0].amax(-1)[..., None, None].expand_as(anchor[..., None])
        band_query = shares.band_query[:, first]
        query = shares.query[:, first, None].expand_as(band_query)
        condition = maps.condition[:, None].expand(-1, query.shape[1], -1, -1)
        known = [features, apertures, anchor[..., None] / 5, contested, band_query, query, condition]
        each = self.merge(torch.cat([value.to(features) for value in known], -1))
        token = (self.gate(each).float().softmax(2) * each).sum(2)
        return SourceFeatures(token, each + self.together(token)[:, :, None], anchor, edge, overlap)

    def _convolved(self, windows: Tensor) -> Tensor:
        scenes, sources, bands = windows.shape[0], windows.shape[1], windows.shape[4]
        pixels = windows.permute(0, 1, 4, 5, 2, 3).flatten(0, 2).contiguous(memory_format=torch.channels_last)
        hidden = functional.silu(self.first(pixels))
        hidden = functional.silu(self.second(functional.avg_pool2d(hidden, 2)))
        hidden = hidden + functional.silu(self.third(hidden))
        hidden = functional.silu(self.fourth(functional.avg_pool2d(hidden, 2)))
        hidden = hidden + functional.silu(self.fifth(hidden))
        flat = torch.cat([self.squeeze(hidden).flatten(1), hidden.mean((-2, -1))], 1)
        return functional.silu(self.flat(flat)).unflatten(0, (scenes, sources, bands))


def _windows(
    maps: TrunkMaps, light: Tensor, share: Tensor, probability: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut windows: what the convolutions see, light ``(..., cell, 4)`` per source and of all sources."""
    scenes, sources, bands = share.shape[:3]
    half = CELLS // 2
    height, width = maps.levels[0].shape[-2:]
    step = torch.arange(CELLS, device=x.device)
    cells = ((y, height), (x, width))
    row, column = ((v / FOLD).floor().long().clamp(0, size - 1)[..., None] + step for v, size in cells)
    scene = torch.arange(scenes, device=x.device)[:, None, None, None]
    source = torch.arange(sources, device=x.device)[:, None, None]

    def cut(values: Tensor, *index: Tensor) -> Tensor:
        """Cut windows ``(scene, source, y, x, band, channel)`` out of ``(..., band, channel, y, x)``."""
        padded = functional.pad(values.flatten(-4, -3), (half,) * 4)
        return padded[(*index, slice(None), row[..., None], column[..., None, :])].unflatten(-1, (bands, -1))

    image = cut(functional.pixel_unshuffle(maps.image.contiguous()[:, :, None], FOLD), scene)
    trunk = cut(maps.levels[0], scene)
    own = torch.stack([light, share, probability[:, :, None].expand_as(share)], 3)
    own = cut(functional.pixel_unshuffle(own, FOLD), scene, source)
    lights = own[..., : FOLD**2]
    seen = torch.cat([stretched(lights), own[..., FOLD**2 :], stretched(image), trunk.to(own)], -1)
    return seen, lights, image


def _apertures(windows: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the growth curve of the deblended light, relative to the anchor, and the anchor."""
    _, light, image = windows
    pixel = (torch.arange(WINDOW, device=x.device) - WINDOW // 2).unflatten(0, (CELLS, FOLD))
    dx, dy = (pixel - (value % FOLD)[..., None, None] for value in (x, y))
    radius = torch.hypot(dx[:, :, None, :, None], dy[:, :, :, None, :, None]).flatten(-2)
    radii = torch.tensor(RINGS, dtype=x.dtype, device=x.device)
    inside = (radii[:, None, None, None] + 0.5 - radius[:, :, None]).clamp(0, 1)
    growth = torch.einsum("snkyxf,snyxbf->snbk", inside, light)
    of_all = torch.einsum("snkyxf,snyxbf->snbk", inside, image)
    first = growth[..., ANCHOR]
    anchor = (0.5 * (first + (first.square() + 4 * ANCHOR_FLOOR**2).sqrt())).log()
    curve = torch.cat([stretched(growth) - anchor[..., None], stretched(of_all) - anchor[..., None]], -1)
    return curve.clamp(-8, 8), anchor


def pair_features(
    maps: TrunkMaps, share: Tensor, probability: Tensor, x: Tensor, y: Tensor, anchor: Tensor
) -> tuple[Tensor, Tensor]:
    """Return features of pairs ``(scene, first, second, 4)``, and the expected number of pixels that two masks share.

    First sources are those with an anchor. The features are ln of the contested fraction of a source's light (what lies
    where the other has a share), ln of the distance, the difference of ln brightness, and the overlap of the masks.
    """
    first = anchor.shape[1]
    own_light = share[:, :first] * maps.image.clamp(min=0)[:, None]
    common = torch.einsum("snbp,smbp->snm", own_light.flatten(-2), share.flatten(-2))
    contested = (common / own_light.sum((2, 3, 4)).clamp(min=1.0)[:, :, None]).clamp(1e-4, 1)
    pixels = probability.flatten(-2)
    overlap = pixels[:, :first] @ pixels.mT
    distance = torch.hypot(x[:, :first, None] - x[:, None], y[:, :first, None] - y[:, None])
    return edges(contested, distance, functional.pad(anchor.mean(-1), (0, x.shape[1] - first)), overlap)


def edges(contested: Tensor, distance: Tensor, brightness: Tensor, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """Scale what is known of pairs ``(scene, first, second)`` to features of order 1; none of a source with itself.

    The other arguments are those of pairs; `brightness` is ln of the second sources' flux ``(scene, second)``.
    """
    difference = brightness[:, : distance.shape[1], None] - brightness[:, None]
    edge = [contested.log() / 4 + 1, (distance + 1).log() - 2, difference / 3, (overlap + 1).log() / 3]
    different = 1 - torch.eye(*distance.shape[1:], dtype=distance.dtype, device=distance.device)
    return torch.stack(edge, -1) * different[..., None], overlap * different
