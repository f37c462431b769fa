"""A fully convolutional network: image to four-label logits of every pixel.

Long, Shelhamer and Darrell (2015, arXiv:1411.4038): five stages of convolutions and pooling, scores of the labels at
strides 32, 16 and 8, each doubled in size and added to the next finer one, and the last enlarged to the image. The
labels are background, first galaxy alone, second galaxy alone, and overlap of the two; the probability that a pixel
belongs to a galaxy is the sum of the two labels that include it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import convolutions, he_normal, pixels_seen

__all__ = ["LABELS", "FullyConvolutional", "labels", "mask_probabilities"]

LABELS = ("background", "first", "second", "overlap")
PATCH = 2


class FullyConvolutional(nn.Module):
    """Image over sky noise to the logits of the four labels ``(scene, label, y, x)``.

    Squares of 2 x 2 pixels are folded into channels first, which is the first halving.

    Parameters
    ----------
    first_filters
        Channels of the first stage; they double up to the fourth.
    dropout
        Probability that a channel of the coarsest features is dropped.

    Raises
    ------
    ValueError
        If the number of filters is not positive.
    """

    def __init__(self, *, first_filters: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        if first_filters < 1:
            raise ValueError(f"first_filters must be at least 1, got {first_filters}")
        widths = [first_filters * 2 ** min(stage, 3) for stage in range(5)]
        channels = pairwise([PATCH**2, *widths])
        self.stages = nn.ModuleList(convolutions(*pair, count=2) for pair in channels)
        self.dropout = nn.Dropout2d(dropout)
        scores = (he_normal(nn.Conv2d(width, len(LABELS), 1), fan=width, gain=1.0) for width in widths[:1:-1])
        self.scores = nn.ModuleList(scores)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the labels.

        Parameters
        ----------
        image
            Pixels over sky noise ``(scene, 1, y, x)``, sides multiples of 32.

        Returns
        -------
        Tensor
            Logits ``(scene, label, y, x)`` in the order background, first, second, overlap.
        """
        features, kept = nn.functional.pixel_unshuffle(pixels_seen(image), PATCH), []
        for number, stage in enumerate(self.stages):
            features = stage(nn.functional.max_pool2d(features, 2) if number else features)
            kept.append(features)
        total = self.scores[0](self.dropout(kept[-1]))
        for score, level in zip(self.scores[1:], kept[-2::-1], strict=False):
            total = score(level) + _enlarge(total, 2)
        return _enlarge(total, image.shape[-1] // total.shape[-1])


def _enlarge(maps: Tensor, factor: int) -> Tensor:
    return nn.functional.interpolate(maps.float(), scale_factor=factor, mode="bilinear", align_corners=False)


def labels(mask: Tensor) -> Tensor:
    """Return the label of every pixel ``(scene, y, x)`` from the masks of two galaxies ``(scene, 2, y, x)``."""
    return mask[:, 0].long() + 2 * mask[:, 1].long()


def mask_probabilities(logits: Tensor) -> Tensor:
    """Return the probability that a pixel belongs to each galaxy.

    The reverse does not hold: two mask probabilities do not determine that of the overlap.

    Parameters
    ----------
    logits
        Logits of the labels ``(scene, label, y, x)``.

    Returns
    -------
    Tensor
        Probabilities ``(scene, 2, y, x)``.
    """
    _, first, second, overlap = logits.softmax(1).unbind(1)
    return torch.stack([first + overlap, second + overlap], 1)
