"""A reference posterior by Hamiltonian Monte Carlo on the same model: too slow for a survey, but a test of refinement.

The No-U-Turn sampler (Hoffman & Gelman 2014, arXiv:1111.4246), Pyro's, walks in coordinates in which the posterior is
about a unit normal: unknowns less the refined mean, whitened by the refined covariance. Chains start from refined draws
and differ in nothing but their seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from ..scene import seed_of
from .importance import Refined, import_arviz
from .model import BlendModel, Observed

__all__ = ["LARGEST_R_HAT", "LEAST_EFFECTIVE", "Reference", "sample_reference"]

LARGEST_R_HAT = 1.01
LEAST_EFFECTIVE = 400.0
CHAINS = 2
DEEPEST = 6  # doublings of the trajectory: the whitened posterior needs no more
# Fixed, in standard deviations: adaptation would shrink the step needlessly at the edge of the prior (the minimum
# separation), beyond which steps of any length are rejected.
STEP = 0.35
FIXED = {"adapt_step_size": False, "adapt_mass_matrix": False}


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws of the posterior of one blend, and whether they have converged.

    Parameters
    ----------
    unknown
        Draws ``(chain, draw, number)``, in the order of ``BlendModel.split``.
    r_hat, effective
        Rank-normalized r-hat and bulk effective sample size of each unknown ``(number,)`` (Vehtari et al. 2021,
        arXiv:1903.08008).
    """

    unknown: NDArray[np.float64]
    r_hat: NDArray[np.float64]
    effective: NDArray[np.float64]

    @property
    def converged(self) -> bool:
        """Whether r-hat is below 1.01 and the effective sample size above 400 for every unknown."""
        return bool((self.r_hat < LARGEST_R_HAT).all() and (self.effective > LEAST_EFFECTIVE).all())


def sample_reference(
    model: BlendModel,
    observed: Observed,
    refined: Refined,
    *,
    blend: int = 0,
    draws: int = 600,
    seed: int = 0,
    progress: bool = True,
) -> Reference:
    """Sample the posterior of one blend with the No-U-Turn sampler, in two chains.

    Parameters
    ----------
    model
        The generative model.
    observed
        Images of its size.
    refined
        Their refinement, by `refine`.
    blend
        Number of the blend.
    draws
        Draws of each chain, after a tenth as many that are discarded.
    seed
        Same seed, same draws.
    progress
        Show progress bars.

    Returns
    -------
    Reference
        The draws; check ``converged`` before using them.

    Raises
    ------
    ValueError
        If there is no such blend, its weights are unreliable, or there are too few draws to judge convergence.
    """
    if not 0 <= blend < len(refined.k_hat):
        raise ValueError(f"blend must be at least 0 and below {len(refined.k_hat)}, got {blend}")
    if draws < 50:
        raise ValueError(f"draws must be at least 50 per chain, got {draws}")
    if not refined.usable[blend]:
        raise ValueError(f"blend must have reliable weights to start from, got a k-hat of {refined.k_hat[blend]:.2f}")
    observed = observed.select(slice(blend, blend + 1))
    mean, covariance = (torch.from_numpy(array[blend]) for array in refined.moments())
    scale = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean)))

    def energy(place: dict[str, Tensor]) -> Tensor:
        unknown = (mean + scale @ place["z"])[None].float()
        return -(model.log_prior(unknown, observed) + model.log_likelihood(unknown, observed))[0].double()

    found = []
    for chain, start in enumerate(torch.from_numpy(refined.resampled(CHAINS, seed=seed)[:, blend])):
        place = torch.linalg.solve_triangular(scale, (start - mean)[:, None], upper=False)[:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, chain))
            kernel = NUTS(potential_fn=energy, step_size=STEP, max_tree_depth=DEEPEST, **FIXED)
            settings = {"warmup_steps": draws // 10, "initial_params": {"z": place}, "disable_progbar": not progress}
            sampler = MCMC(kernel, draws, **settings)
            sampler.run()
            found.append(mean + sampler.get_samples()["z"] @ scale.T)
    unknown, arviz = torch.stack(found).numpy(), import_arviz()
    columns = np.moveaxis(unknown, -1, 0)
    r_hat, effective = (np.array([float(measure(one)) for one in columns]) for measure in (arviz.rhat, arviz.ess))
    return Reference(unknown, r_hat, effective)
