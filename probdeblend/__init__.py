"""Posteriors over the fluxes and masks of overlapping sources.

An *image* of any size goes in; a *posterior* over the flux of every source in it, galaxy or star, isolated or blended,
and over which pixels belong to which source, comes out of a network whose forward pass returns a distribution. The
names below are the ones that most users need; each is imported at its first use.

Examples
--------
>>> import probdeblend
>>> posterior = probdeblend.deblend("field.fits", psf="psf.fits")  # doctest: +SKIP
>>> posterior.catalog()  # doctest: +SKIP
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deblending import Deblender, deblend, load
    from .posterior import Calibrator, Flag, Posterior
    from .scene import Scene
    from .simulation import Camera, Population, simulate

__all__ = [
    "Calibrator", "Camera", "Deblender", "Flag", "Population", "Posterior", "Scene", "__version__", "deblend", "load",
    "simulate",
]  # fmt: skip

_NAMES_OF = {
    "deblending": ("Deblender", "deblend", "load"),
    "posterior": ("Calibrator", "Flag", "Posterior"),
    "scene": ("Scene",),
    "simulation": ("Camera", "Population", "simulate"),
}

try:
    __version__ = metadata.version(__name__)
except metadata.PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    for room, names in _NAMES_OF.items():
        if name in names:
            globals()[name] = getattr(import_module(f".{room}", __name__), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
