"""Isolated real galaxies: cut out, judged, kept, and put into scenes."""

from .injection import Injector
from .isolated import isolate
from .library import Galaxy, fold_of
from .selection import isolate_galaxies
from .stamps import Library, Quality, keep_table, read_library, write_library

__all__ = [
    "Galaxy",
    "Injector",
    "Library",
    "Quality",
    "fold_of",
    "isolate",
    "isolate_galaxies",
    "keep_table",
    "read_library",
    "write_library",
]
