"""How well a blend can be known at all: the Bayesian Cramér-Rao bound.

The information of the image (Fisher, at the true unknowns) and that of the prior add up, and no estimator scatters less
than their inverse, on average over the prior (van Trees 1968, "Detection, Estimation, and Modulation Theory", I). The
noise and the nuisances are those of the generative model. The prior counts as a normal distribution of the same
covariance, which is less informative than the prior: the bound is slightly high.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdeblend.refinement.mode import linearized, prior_moments
from probdeblend.refinement.model import BlendModel, Observed

__all__ = ["fisher_information", "van_trees_bound"]


def fisher_information(model: BlendModel, observed: Observed, unknown: Tensor) -> Tensor:
    """Return the information of images at their unknowns ``(blend, number, number)``; the pixels are not used."""
    with torch.no_grad():
        _, _, rows = linearized(model, observed, unknown)
        return (rows @ rows.mT).double()


def van_trees_bound(model: BlendModel, observed: Observed, unknown: Tensor) -> NDArray[np.float64]:
    """Return the least covariance of errors ``(blend, number, number)``."""
    _, precision = prior_moments(model, observed)
    return torch.linalg.inv(fisher_information(model, observed, unknown) + precision).numpy()
