"""The generative model of scenes as a Pyro program, and posteriors under it: guide and refinement."""

from .guide import SceneGuide
from .importance import Refined, refine
from .mode import misfit
from .model import Listed, SceneModel, listed_scenes
from .refiner import Refiner
from .unknowns import Unknowns

__all__ = [
    "Listed", "Refined", "Refiner", "SceneGuide", "SceneModel", "Unknowns", "listed_scenes", "misfit", "refine",
]  # fmt: skip
