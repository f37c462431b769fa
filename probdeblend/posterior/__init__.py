"""Posteriors of fluxes and masks: draws, cutouts, catalogs, flags and calibration.

Every method of the package returns a `Posterior`.
"""

from .calibrator import Calibrator
from .condensed import condensed_catalog
from .cutouts import Cutout, Cutouts
from .draws import COLUMNS, Posterior
from .flags import Flag
from .moments import variance_parts

__all__ = ["COLUMNS", "Calibrator", "Cutout", "Cutouts", "Flag", "Posterior", "condensed_catalog", "variance_parts"]
