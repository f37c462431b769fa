"""Posteriors of fluxes and mask probabilities: draws, catalogs, flags, priors and calibration.

Every method of the package returns a `Posterior`.
"""

from .calibrator import Calibrator
from .draws import Posterior
from .flags import Flag
from .groups import estimated_features
from .reweight import FluxPrior, effective_samples

__all__ = ["Calibrator", "Flag", "FluxPrior", "Posterior", "effective_samples", "estimated_features"]
