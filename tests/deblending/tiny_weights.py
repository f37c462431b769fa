"""Networks that have learned nothing, and images of known sources, for the tests of this room."""

import numpy as np
import torch

from probdeblend.deblending import Deblender, Description
from probdeblend.networks import SceneNetwork
from probdeblend.scene import Scene

TOKEN = 96
HALF = 20
ROWS, COLUMNS = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
PSF = np.exp(-0.5 * (ROWS**2 + COLUMNS**2) / 1.3**2) / (2 * np.pi * 1.3**2)
"""An effective PSF with a FWHM of 3 pixels."""
QUICK = {"draws": 64, "passes": 4}


def untrained(*, heat=-4.0, seed=0):
    """A deblender of random weights; the larger `heat`, the more sources it finds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, tokens = SceneNetwork(), torch.randn(200, TOKEN)
    torch.nn.init.constant_(network.trunk.heat[-1].bias, heat)
    return Deblender(network, Description(), tokens=tokens)


def light_of(shape, x, y, flux, *, sigma=2.0):
    """Gaussian sources without noise."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    light = np.zeros(shape)
    for at_x, at_y, total in zip(x, y, np.broadcast_to(flux, np.shape(x)), strict=True):
        light += total * np.exp(-0.5 * ((columns - at_x) ** 2 + (rows - at_y) ** 2) / sigma**2)
    return light / (2 * np.pi * sigma**2)


def noise_of(shape, seed=1):
    """White noise of unit variance."""
    return np.random.default_rng(seed).normal(size=shape)


def scene_of(images, *, psf=PSF, sky_rms=1.0):
    """Scenes of images ``(scene, y, x)`` or ``(scene, band, y, x)``."""
    images = torch.as_tensor(np.array(images)).float()
    images = images[:, None] if images.ndim == 3 else images
    noise = torch.full(images.shape[:2], float(sky_rms))
    kernels = torch.as_tensor(np.array(psf)).float().expand(*images.shape[:2], *np.shape(psf)[-2:])
    return Scene(images, noise, kernels, 0.06)


def listed(*places):
    """Positions of a scene, as `scenes` takes them, from those of an image."""
    number = torch.repeat_interleave(torch.arange(len(places)), torch.tensor([len(place) for place in places]))
    x, y = torch.as_tensor(np.concatenate(places)).double().T
    return number, x, y


def moments(posterior, kind="flux"):
    """Mean and standard deviation of ln flux ``(source, band)``."""
    values = np.log(posterior.dataset[kind].values)
    return values.mean((0, 1)), values.std((0, 1))
