"""The texture of galaxies: what Sérsic profiles lack."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .cameras import Camera

__all__ = ["textured"]

AMPLITUDE = ((0.035, 0.6), (0.19, 0.6), (0.12, 0.6), (0.32, 0.5), (0.0, 0.0))  # median, and scatter of its ln


def textured(image: Tensor, drawn: Mapping[str, Tensor], camera: Camera, *, corner: Tensor) -> Tensor:
    """Multiply light ``(source, band, y, x)`` by a log-normal random field, keeping its sum; stars stay as they are."""
    side, radius = image.shape[-1], drawn["half_light_radius"] * drawn["axis_ratio"].sqrt() / camera.pixel_scale
    number, uniform, white = [], [], []
    for seed in drawn["seed"].tolist():
        generator = torch.Generator().manual_seed(seed)
        number.append(torch.randn((), generator=generator))
        uniform.append(torch.rand((), generator=generator))
        white.append(torch.randn(1 + image.shape[1], side, side, generator=generator))
    if not white:
        return image
    amplitude, scatter = torch.tensor(AMPLITUDE)[drawn["source_type"]].unbind(-1)
    amplitude = amplitude * (scatter * torch.stack(number)).exp()
    length = (radius.clamp(min=0.3) * 0.12 * 5.0 ** torch.stack(uniform)).clamp(min=0.5)
    across, along = 2 * math.pi * torch.fft.fftfreq(side), 2 * math.pi * torch.fft.rfftfreq(side)
    power = (1 + (across[:, None] ** 2 + along**2) * length.square()[:, None, None]) ** -1.5
    weight = torch.full_like(along, 2.0).masked_fill((along == 0) | (along.abs() > 3.14159), 1.0)
    power = power / ((power.square() * weight).sum((1, 2), keepdim=True) / side**2).sqrt()
    psf = torch.fft.rfft2(camera.psf.float(), s=(side, side)).abs()
    noise = torch.fft.rfft2(torch.stack(white))
    noise = 0.95 * noise[:, :1] + 0.3 * noise[:, 1:]
    field = torch.fft.irfft2(noise * power[:, None] * psf, s=(side, side))
    new = image * (amplitude[:, None, None, None] * field).exp()
    return new * (image.sum((-2, -1), keepdim=True) / new.sum((-2, -1), keepdim=True))
