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

from probdeblend.posterior.moments import import_arviz
from probdeblend.refinement import Refined, Unknowns
from probdeblend.scene import seed_of

__all__ = ["LARGEST_R_HAT", "LEAST_EFFECTIVE", "Reference", "sample_reference"]

LARGEST_R_HAT = 1.01
LEAST_EFFECTIVE = 400.0
CHAINS = 2
DEEPEST = 6  # doublings of the trajectory: the whitened posterior needs no more
# Fixed, in standard deviations: adaptation would shrink the step needlessly at the edge of the prior, beyond which
# steps of any length are rejected.
STEP = 0.5
FIXED = {"adapt_step_size": False, "adapt_mass_matrix": False}


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws of the posterior of one scene, and whether they have converged.

    Parameters
    ----------
    vector
        Draws ``(chain, draw, number)``, as `Unknowns` has them.
    r_hat, effective
        Rank-normalized r-hat and bulk effective sample size of each unknown ``(number,)`` (Vehtari et al. 2021,
        arXiv:1903.08008).
    """

    vector: NDArray[np.float64]
    r_hat: NDArray[np.float64]
    effective: NDArray[np.float64]

    @property
    def converged(self) -> bool:
        """Whether r-hat is below 1.01 and the effective sample size above 400 for every unknown."""
        return bool((self.r_hat < LARGEST_R_HAT).all() and (self.effective > LEAST_EFFECTIVE).all())


def sample_reference(
    unknowns: Unknowns, refined: Refined, *, draws: int = 600, seed: int = 0, progress: bool = True
) -> Reference:
    """Sample the posterior of one scene with the No-U-Turn sampler, in two chains.

    Parameters
    ----------
    unknowns
        The scene and its model.
    refined
        Its refinement, by `refine`.
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
        If the weights of the refinement are unreliable, or there are too few draws to judge convergence.
    """
    if draws < 50:
        raise ValueError(f"draws must be at least 50 per chain, got {draws}")
    if not refined.usable:
        raise ValueError(f"refined must have reliable weights to start from, got a k-hat of {refined.k_hat:.2f}")
    mean, covariance = (torch.from_numpy(array) for array in refined.moments())
    scale = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean)))

    def energy(place: dict[str, Tensor]) -> Tensor:
        return -unknowns.log_joint((mean + scale @ place["z"])[None])[0].double()

    found = []
    for chain, start in enumerate(torch.from_numpy(refined.resampled(CHAINS, seed=seed))):
        place = torch.linalg.solve_triangular(scale, (start - mean)[:, None], upper=False)[:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, chain))
            kernel = NUTS(potential_fn=energy, step_size=STEP, max_tree_depth=DEEPEST, **FIXED)
            settings = {"warmup_steps": draws // 10, "initial_params": {"z": place}, "disable_progbar": not progress}
            sampler = MCMC(kernel, draws, **settings)
            sampler.run()
            found.append(mean + sampler.get_samples()["z"] @ scale.T)
    vector, arviz = torch.stack(found).numpy(), import_arviz()
    columns = np.moveaxis(vector, -1, 0)
    r_hat, effective = (np.array([float(measure(one)) for one in columns]) for measure in (arviz.rhat, arviz.ess))
    return Reference(vector, r_hat, effective)
