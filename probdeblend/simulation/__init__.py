"""Scenes of known truth: their population, cameras and images, and the sets that hold them."""

from .bank import Templates
from .cameras import Camera, Cameras
from .galsim import render_galsim
from .light import SimulatedSources
from .population import Population
from .positions import Frame
from .profiles import Components, render
from .scenes import Simulator, simulate
from .sets import count_scenes, read_scenes, write_scenes
from .stream import SceneStream

__all__ = [
    "Camera", "Cameras", "Components", "Frame", "Population", "SceneStream", "SimulatedSources", "Simulator",
    "Templates", "count_scenes", "read_scenes", "render", "render_galsim", "simulate", "write_scenes",
]  # fmt: skip
