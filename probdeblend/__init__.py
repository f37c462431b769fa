"""Posteriors over the fluxes and masks of overlapping galaxies.

A *blend* of two galaxies goes in; a *posterior* over their fluxes, and over which pixels belong to which galaxy, comes
out of a network whose forward pass returns a distribution. The names below are the ones that most users need; each is
imported at its first use.

Examples
--------
>>> import probdeblend
>>> deblender = probdeblend.load()  # doctest: +SKIP
>>> posterior = deblender(image, sky_rms=0.003)  # doctest: +SKIP
>>> posterior.summary()  # doctest: +SKIP
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deblending import Deblender, deblend, load
    from .posterior import Calibrator, Flag, Posterior
    from .scene import Instrument, Scene
    from .simulation import Population, simulate

__all__ = [
    "Calibrator",
    "Deblender",
    "Flag",
    "Instrument",
    "Population",
    "Posterior",
    "Scene",
    "__version__",
    "deblend",
    "load",
    "simulate",
]

_ROOM_OF = {
    "Calibrator": "posterior",
    "Deblender": "deblending",
    "Flag": "posterior",
    "Instrument": "scene",
    "Population": "simulation",
    "Posterior": "posterior",
    "Scene": "scene",
    "deblend": "deblending",
    "load": "deblending",
    "simulate": "simulation",
}

try:
    __version__ = metadata.version(__name__)
except metadata.PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
