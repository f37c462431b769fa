"""From scenes to weights: the training loop and recipe, accuracy on scenes of known truth, and calibration."""

from .recipes import train

__all__ = ["train"]
