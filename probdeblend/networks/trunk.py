"""The trunk: a fully convolutional U-Net that sees every band of an image with what the band is.

An image enters as asinh of its pixels over the sky noise, as asinh of the signal-to-noise ratio of a point source at
every pixel (the image matched with the PSF), and as the map of its good pixels. Squares of 2 x 2 pixels are folded into
channels. Each block is modulated (FiLM, Perez et al. 2018, arXiv:1709.07871) by a description of the band: the width,
concentration and shape of its PSF, the correlation of its noise, its photon noise and its wavelength. Features are
normalized over the channels of a pixel, never over the image, so that the answer at a place depends on its neighborhood
alone: tiles of any size agree.

The bands of an image share the weights of the trunk and are fused by a gate per band and place, so that one network
serves any number of bands.
"""

from itertools import pairwise
from typing import NamedTuple, Self

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FOLD", "REACH", "STRIDE", "Trunk", "TrunkMaps", "describe_bands", "matched_filter", "stretched"]

FOLD = 2  # pixels on a side that are folded into channels
WIDTHS = (16, 32, 48, 64)
STRIDE = FOLD * 2 ** (len(WIDTHS) - 1)  # pixels; a tile starts at a multiple of it
REACH = 96  # pixels beyond which the trunk does not see
MODULATION = 48
RADII = (1.0, 2.0, 3.0, 5.0, 8.0)  # pixels, of the encircled energies that describe a PSF
NOISE_NUMBERS = 5
CONDITIONS = 1 + len(RADII) + 2 + NOISE_NUMBERS
DYNAMIC = 8  # channels that a source's own small network sees


class TrunkMaps(NamedTuple):
    """What the trunk knows of a batch of images, everything else being read from it at the sources' positions.

    - `image`: pixels over sky noise ``(scene, band, y, x)``, zero where bad.
    - `levels`: features of the decoder ``(scene, band, channel, y, x)``, from the finest to the coarsest.
    - `gate`: weight of each band ``(scene, band, y, x)``, in folded pixels.
    - `heat`: logit of a source in each folded pixel, and the offset of its center ``(scene, 3, y, x)``.
    - `union`: logit that a pixel belongs to any source ``(scene, y, x)``.
    - `unlisted`: log of the light that belongs to no listed source ``(scene, band, y, x)``.
    - `share_features`, `mask_features`: what dynamic terms see, in folded pixels.
    - `condition`: description of each band ``(scene, band, feature)``.
    """

    image: Tensor
    levels: list[Tensor]
    gate: Tensor
    heat: Tensor
    union: Tensor
    unlisted: Tensor
    share_features: Tensor
    mask_features: Tensor
    condition: Tensor

    def crop(self, rows: slice, columns: slice) -> Self:
        """Return the maps of a part of the image, whose sides in pixels are multiples of `STRIDE`."""

        def cut(values: Tensor, step: int) -> Tensor:
            y, x = (slice(side.start // step, side.stop // step) for side in (rows, columns))
            return values[..., y, x]

        full = {name: cut(getattr(self, name), 1) for name in ("image", "union", "unlisted")}
        folded = {name: cut(getattr(self, name), FOLD) for name in ("gate", "heat", "share_features", "mask_features")}
        levels = [cut(level, FOLD * 2**i) for i, level in enumerate(self.levels)]
        return self._replace(levels=levels, **full, **folded)


def describe_bands(psf: Tensor, noise: Tensor) -> Tensor:
    """Describe bands by their PSFs ``(..., y, x)`` and five numbers of their noise and color ``(..., 5)``.

    The numbers are the correlation of next pixels, ln of the correlation sum, ln of the photon variance per sky rms of
    light over the sky variance, ln of the wavelength in micron, and 1 where the wavelength is known.
    """
    side = psf.shape[-1]
    place = torch.arange(side, dtype=psf.dtype, device=psf.device) - side // 2
    radius = torch.hypot(place, place[:, None])
    area = psf.square().sum((-2, -1)).rsqrt()
    energy = [(psf * (limit + 0.5 - radius).clamp(0, 1)).sum((-2, -1)) for limit in RADII]
    weighted = psf * torch.exp(-0.5 * (radius / (1.2 * area[..., None, None])).square())
    moments = (place.square(), place[:, None] ** 2, place * place[:, None])
    xx, yy, xy = ((weighted * moment).sum((-2, -1)) for moment in moments)
    size = (xx + yy).clamp(min=1e-6)
    shape = [(area / 5).log(), *energy, 5 * (xx - yy) / size, 10 * xy / size]
    return torch.cat([torch.stack(shape, -1), noise], -1)


def matched_filter(image: Tensor, psf: Tensor) -> Tensor:
    """Return the signal-to-noise ratio of a point source at every pixel, for pixels over white noise."""
    height, width = image.shape[-2:]
    side = psf.shape[-1]
    size = [next_fast_len(length + side, real=True) for length in (height, width)]
    unit = psf / psf.square().sum((-2, -1), keepdim=True).sqrt()
    product = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(unit, s=size).conj()
    return torch.fft.irfft2(product, s=size).roll((side // 2, side // 2), (-2, -1))[..., :height, :width]


def stretched(pixels: Tensor) -> Tensor:
    """Return asinh of pixels over sky noise, several times as fast as torch's own."""
    size = pixels.abs().clamp(max=1e18)
    return (size + (size.square() + 1).sqrt()).log().copysign(pixels)


def normalized(features: Tensor) -> Tensor:
    """Scale the channels of every pixel to unit mean square."""
    return features * (features.square().mean(1, keepdim=True) + 1e-4).rsqrt()


class Block(nn.Module):
    """Two modulated convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, channels, 1)
        self.modulation = nn.Linear(MODULATION, 4 * channels)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """Return features of the same size in pixels."""
        factors = self.modulation(modulation)[..., None, None].chunk(4, 1)
        hidden = functional.silu(normalized(self.first(features)) * (1 + factors[0]) + factors[1])
        hidden = normalized(self.second(hidden)) * (1 + factors[2]) + factors[3]
        return functional.silu(hidden) + self.shortcut(features)


class Trunk(nn.Module):
    """The U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Sequential(
            nn.Linear(CONDITIONS, MODULATION), nn.SiLU(), nn.Linear(MODULATION, MODULATION), nn.SiLU()
        )
        self.down = nn.ModuleList(Block(*channels) for channels in pairwise((3 * FOLD**2, *WIDTHS)))
        self.up = nn.ModuleList(Block(fine + coarse, fine) for fine, coarse in pairwise(WIDTHS))
        self.gate = nn.Conv2d(WIDTHS[0], 1, 1)
        self.heat = nn.Sequential(nn.Conv2d(WIDTHS[0], 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 3, 1))
        self.union = nn.Sequential(nn.Conv2d(WIDTHS[0], 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, FOLD**2, 1))
        self.unlisted = nn.Conv2d(WIDTHS[0], FOLD**2, 1)
        self.share_features = nn.Conv2d(WIDTHS[0], DYNAMIC, 1)
        self.mask_features = nn.Conv2d(WIDTHS[0], DYNAMIC, 1)
        nn.init.constant_(self.heat[-1].bias, -4.0)

    def forward(self, image: Tensor, good: Tensor, psf: Tensor, noise: Tensor) -> TrunkMaps:
        """Return the maps of images ``(scene, band, y, x)`` over sky noise, sides a multiple of `STRIDE`."""
        scenes, bands = image.shape[:2]
        condition = describe_bands(psf, noise).to(image.dtype)
        modulation = self.describe(condition).flatten(0, 1)
        image = image * good
        pixels = torch.stack([stretched(image), stretched(matched_filter(image, psf.to(image))) * good, good], 2)
        features = functional.pixel_unshuffle(pixels.flatten(0, 1), FOLD)
        skips = []
        for i, block in enumerate(self.down):
            features = block(features if i == 0 else functional.avg_pool2d(features, 2), modulation)
            skips.append(features)
        levels = [skips[-1]]
        for block, skip in zip(self.up[::-1], skips[-2::-1], strict=True):
            finer = functional.interpolate(levels[0], scale_factor=2.0, mode="nearest")
            levels.insert(0, block(torch.cat([skip, finer], 1), modulation))
        finest = levels[0]
        gate = self.gate(finest).unflatten(0, (scenes, bands)).float().softmax(1)
        fused = (gate * finest.unflatten(0, (scenes, bands))).sum(1).to(finest)
        return TrunkMaps(
            image=image,
            levels=[level.unflatten(0, (scenes, bands)) for level in levels],
            gate=gate[:, :, 0],
            heat=self.heat(fused).float(),
            union=functional.pixel_shuffle(self.union(fused), FOLD)[:, 0].float(),
            unlisted=functional.pixel_shuffle(self.unlisted(finest), FOLD).reshape(image.shape).float(),
            share_features=self.share_features(finest).unflatten(0, (scenes, bands)),
            mask_features=self.mask_features(fused),
            condition=modulation.unflatten(0, (scenes, bands)),
        )
