"""Modules whose ``forward`` returns a distribution, or logits, and the losses that train them."""

from .dropout import draw_groups
from .fcn import FullyConvolutional, mask_probabilities
from .flux import Blend2Flux, Blend2Mask2Flux, PairEstimate
from .joint import GroupFlux
from .losses import JointError, LabelEntropy, MaskEntropy
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
    "mask_probabilities",
]
