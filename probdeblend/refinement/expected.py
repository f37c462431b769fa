"""What galaxies look like without noise, and where they are seen: draws of the unknowns rendered, one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..scene import MASK_THRESHOLD
from .model import BlendModel

__all__ = ["Appearance", "appearance"]

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Appearance:
    """Galaxies' own light, over the sky noise, and masks.

    Parameters
    ----------
    image, image_std
        Mean and standard deviation over the draws of each galaxy's noiseless image ``(blend, galaxy, y, x)``.
    mask
        Fraction of the draws in which a galaxy's own light exceeds three times the sky noise
        ``(blend, galaxy, y, x)``.
    """

    image: NDArray[np.float32]
    image_std: NDArray[np.float32]
    mask: NDArray[np.float32]


def appearance(model: BlendModel, unknown: NDArray[np.float64]) -> Appearance:
    """Render draws of the unknowns.

    Parameters
    ----------
    model
        The generative model.
    unknown
        Draws ``(draw, blend, number)``.

    Returns
    -------
    Appearance
        Of the model's size.

    Raises
    ------
    ValueError
        If there are fewer than two draws.
    """
    draws, blends = unknown.shape[:2]
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    shape = (blends, model.galaxies, model.size, model.size)
    total, square, seen = (torch.zeros(shape) for _ in range(3))
    with torch.no_grad():
        for draw in torch.from_numpy(unknown).float():
            for first in range(0, blends, CHUNK):
                rows = slice(first, first + CHUNK)
                latents, _, growth = model.split(draw[rows])
                light = model.light(latents, growth).clamp(min=0)
                total[rows] += light
                square[rows] += light.square()
                seen[rows] += light > MASK_THRESHOLD
    mean = total / draws
    scatter = ((square / draws - mean.square()).clamp(min=0) * draws / (draws - 1)).sqrt()
    return Appearance(mean.numpy(), scatter.numpy(), (seen / draws).numpy())
