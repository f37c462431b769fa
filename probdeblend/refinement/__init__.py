"""The generative model of blends as a Pyro program, and posteriors under it: guide, refinement, reference sampler."""

from .guide import JointGuide, default_guide, load_guide
from .importance import Refined, refine
from .latents import LATENTS
from .model import BlendModel, Observed
from .nuts import Reference, sample_reference
from .refiner import Refiner
from .residuals import misfit

__all__ = [
    "LATENTS",
    "BlendModel",
    "JointGuide",
    "Observed",
    "Reference",
    "Refined",
    "Refiner",
    "default_guide",
    "load_guide",
    "misfit",
    "refine",
    "sample_reference",
]
