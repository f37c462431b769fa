"""Modules whose ``forward`` returns a distribution, or logits, and the losses that train them."""

from .dropout import draw_groups
from .joint import GroupFlux
from .published import (
    Blend2Flux,
    Blend2Mask2Flux,
    FullyConvolutional,
    JointError,
    LabelEntropy,
    MaskEntropy,
    PairEstimate,
)
from .scene_loss import SceneLoss
from .scenes import SceneNetwork

__all__ = [
    "Blend2Flux",
    "Blend2Mask2Flux",
    "FullyConvolutional",
    "GroupFlux",
    "JointError",
    "LabelEntropy",
    "MaskEntropy",
    "PairEstimate",
    "SceneLoss",
    "SceneNetwork",
    "draw_groups",
]
