"""Posteriors of fluxes and masks: draws, cutouts, catalogs, flags and calibration.

Every method of the package returns a `Posterior`.
"""

from .calibrator import Calibrator
from .cutouts import Cutout, Cutouts
from .draws import COLUMNS, Posterior
from .flags import Flag
from .moments import variance_parts
from .reweight import FluxPrior, effective_samples

__all__ = [
    "COLUMNS",
    "Calibrator",
    "Cutout",
    "Cutouts",
    "Flag",
    "FluxPrior",
    "Posterior",
    "effective_samples",
    "variance_parts",
]
