"""Modules whose ``forward`` returns a distribution, or logits, and the loss that trains the scene network."""

from .dropout import draw_groups
from .joint import GroupFlux
from .published import Blend2Flux, Blend2Mask2Flux, FullyConvolutional, PairEstimate
from .scene_loss import SceneLoss
from .scenes import SceneNetwork

__all__ = [
    "Blend2Flux", "Blend2Mask2Flux", "FullyConvolutional", "GroupFlux", "PairEstimate", "SceneLoss", "SceneNetwork",
    "draw_groups",
]  # fmt: skip
