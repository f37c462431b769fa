"""Scenes that mean nothing: enough for what holds whatever a network has learned."""

import torch


def gaussian_psf(*shape, sigma=1.5):
    place = torch.arange(41) - 20.0
    psf = torch.exp(-(place**2 + place[:, None] ** 2) / (2 * sigma**2))
    return (psf / psf.sum()).expand(*shape, 41, 41)


def bumps(x, y, size, *, flux=300.0):
    """Round sources ``(scene, source, y, x)``."""
    place = torch.arange(size)
    squared = (place - x[..., None]).square()[..., None, :] + (place - y[..., None]).square()[..., None]
    return flux * torch.exp(-squared / 8) / (8 * torch.pi)


def scenes(*, number=2, sources=3, bands=1, size=64):
    """Return image, map of good pixels, PSF, noise numbers, and positions x and y."""
    x, y = (12 + (size - 24) * torch.rand(number, sources) for _ in range(2))
    image = bumps(x, y, size).sum(1, keepdim=True) + torch.randn(number, bands, size, size)
    return image, torch.ones_like(image), gaussian_psf(number, bands), 0.3 * torch.randn(number, bands, 5), x, y


def understand(network, *, index=None, **options):
    """Return shares and features of random scenes, and what the network answers for a group of all sources of each."""
    *inputs, x, y = scenes(**options)
    shares, features = network.read(network.encode(*inputs), x, y)
    index = [(scene, list(range(x.shape[1]))) for scene in range(len(x))] if index is None else index
    return shares, features, network.answer(features, index)
