"""Posteriors of fluxes and masks: draws, cutouts, catalogs, flags and calibration.

Every method of the package returns a `Posterior`.
"""

from .calibrator import Calibrator
from .cutouts import Cutout, Cutouts
from .draws import COLUMNS, Posterior
from .flags import Flag
from .moments import variance_parts

__all__ = ["COLUMNS", "Calibrator", "Cutout", "Cutouts", "Flag", "Posterior", "variance_parts"]
