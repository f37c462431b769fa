"""The generative model of scenes as a Pyro program, and posteriors under it: guide, refinement, reference sampler."""

from .guide import SceneGuide
from .model import Listed, SceneModel, listed_scenes

__all__ = ["Listed", "SceneGuide", "SceneModel", "listed_scenes"]
