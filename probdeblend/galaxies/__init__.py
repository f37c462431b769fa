"""Lone real galaxies: cut out of mosaics or taken from elsewhere, kept in libraries, and blended."""

from .aperture import ApertureCorrection, fit_aperture_correction
from .files import keep_table, read_library, write_library
from .library import Library, Quality, describe_quality, identity_number, join
from .lone import LoneGalaxy, NotAloneError, cut_galaxy, find_galaxies, measure_galaxy
from .other import observe_real_galaxies, observe_stamps
from .pairs import PairRules, pair_blends
from .survey import Selection, cut_galaxies, library_of, morphological_type, positions

__all__ = [
    "ApertureCorrection",
    "Library",
    "LoneGalaxy",
    "NotAloneError",
    "PairRules",
    "Quality",
    "Selection",
    "cut_galaxies",
    "cut_galaxy",
    "describe_quality",
    "find_galaxies",
    "fit_aperture_correction",
    "identity_number",
    "join",
    "keep_table",
    "library_of",
    "measure_galaxy",
    "morphological_type",
    "observe_real_galaxies",
    "observe_stamps",
    "pair_blends",
    "positions",
    "read_library",
    "write_library",
]
