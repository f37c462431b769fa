"""Modules whose ``forward`` returns a distribution, or logits, and the losses that train them."""

from .composite import Blend2Flux, Blend2Mask2Flux, BlendAnswer
from .count import CountNetwork
from .fcn import FullyConvolutional, mask_probabilities
from .heads import MixtureHead, NormalHead, PointHead, StudentTHead, TotalRatioHead
from .losses import JointError, LabelEntropy, NegativeLogLikelihood

__all__ = [
    "Blend2Flux",
    "Blend2Mask2Flux",
    "BlendAnswer",
    "CountNetwork",
    "FullyConvolutional",
    "JointError",
    "LabelEntropy",
    "MixtureHead",
    "NegativeLogLikelihood",
    "NormalHead",
    "PointHead",
    "StudentTHead",
    "TotalRatioHead",
    "mask_probabilities",
]
