"""Isolated real galaxies: cut out, judged, kept, and put into scenes."""

from .injection import Injector
from .selection import isolate_galaxies
from .stamps import Library, Quality, keep_table, read_library, write_library

__all__ = [
    "Injector",
    "Library",
    "Quality",
    "isolate_galaxies",
    "keep_table",
    "read_library",
    "write_library",
]
