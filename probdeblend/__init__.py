"""Posteriors over the fluxes and the masks of overlapping galaxies.

A *blend* of two galaxies goes in; a *posterior* over their fluxes, and over which pixels belong to whom,
comes out of a network whose forward pass returns a distribution. The names below are the ones that most users
need; each is imported from its module at its first use.

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
    from .deblending.deblender import Deblender
    from .deblending.weights import load
    from .posterior.draws import Posterior
    from .posterior.flags import Flag
    from .scene import Blend, Components, Instrument
    from .simulation.galsim import simulate
    from .simulation.prior import Prior

__all__ = [
    "Blend",
    "Components",
    "Deblender",
    "Flag",
    "Instrument",
    "Posterior",
    "Prior",
    "__version__",
    "load",
    "simulate",
]

_MODULE_OF = {
    "Blend": "scene",
    "Components": "scene",
    "Deblender": "deblending.deblender",
    "Flag": "posterior.flags",
    "Instrument": "scene",
    "Posterior": "posterior.draws",
    "Prior": "simulation.prior",
    "load": "deblending.weights",
    "simulate": "simulation.galsim",
}

try:
    __version__ = metadata.version(__name__)
except metadata.PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
