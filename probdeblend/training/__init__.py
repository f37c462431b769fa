"""From scenes to weights: the training loop and recipe, accuracy on scenes of known truth, and calibration."""

from .calibrate import fit_calibrator
from .evaluation import evaluate, stored_scenes
from .recipes import train

__all__ = ["evaluate", "fit_calibrator", "stored_scenes", "train"]
