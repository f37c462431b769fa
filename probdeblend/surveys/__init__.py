"""Isolated real galaxies: cut out, judged, kept, and put into scenes."""

from .isolated import isolate
from .library import Galaxy, fold_of, keep_table, read_library, write_library
from .templates import RealGalaxies, extended

__all__ = [
    "Galaxy",
    "RealGalaxies",
    "extended",
    "fold_of",
    "isolate",
    "keep_table",
    "read_library",
    "write_library",
]
