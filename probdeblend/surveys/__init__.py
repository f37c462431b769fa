"""Real galaxies: isolated, kept and put into scenes, and blends that a sharper image of the same sky resolves."""

from .isolated import isolate
from .library import Galaxy, fold_of, keep_table, read_library, write_library
from .overlap import Overlap, label_ground
from .templates import RealGalaxies, extended

__all__ = [
    "Galaxy", "Overlap", "RealGalaxies", "extended", "fold_of", "isolate", "keep_table", "label_ground", "read_library",
    "write_library",
]  # fmt: skip
