"""Isolated real galaxies: cut out, judged, kept, blended and injected."""

from .blends import PairRules, pair_blends
from .library import Library, Quality, keep_table, read_library, write_library
from .reobserve import reobserve_galaxies
from .selection import Selection, isolate_galaxies

__all__ = [
    "Library",
    "PairRules",
    "Quality",
    "Selection",
    "isolate_galaxies",
    "keep_table",
    "pair_blends",
    "read_library",
    "reobserve_galaxies",
    "write_library",
]
