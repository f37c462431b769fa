"""A reference posterior: Hamiltonian Monte Carlo on the same model, too slow for a survey, to judge faster answers by.

The No-U-Turn sampler (Hoffman & Gelman 2014, arXiv:1111.4246), Pyro's, walks in coordinates in which the posterior is
about a unit normal: unknowns less the refined mean, whitened by the refined covariance. Chains start from refined draws
and are told apart by nothing but their seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from ..scene import seed_of
from .model import BlendModel, Observed
from .refine import Refined

__all__ = ["LARGEST_R_HAT", "LEAST_EFFECTIVE", "Reference", "sample_reference"]

LARGEST_R_HAT = 1.01
LEAST_EFFECTIVE = 400.0
DEEPEST = 6  # of the trajectory's doublings: the whitened posterior needs no more
# In standard deviations. Adapted steps would shrink in vain where the prior breaks off (the least separation): what
# goes beyond is refused however short the step.
STEP = 0.35


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
    chains: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Reference:
    """Sample the posterior of one blend.

    Parameters
    ----------
    model
        The generative model.
    observed
        Images of its size.
    refined
        What `~probdeblend.refinement.refine.refine` found for them.
    blend
        Which of them.
    draws
        Number of draws of each chain, after a tenth as many in which it forgets its start.
    chains
        Number of chains, at least two.
    seed
        Same seed, same draws.
    progress
        Show progress bars.

    Returns
    -------
    Reference
        The draws; look at ``converged`` before using them.

    Raises
    ------
    ValueError
        If there is no such blend, or its refinement is of no use; if there are fewer than two chains, or too few draws
        to judge them.
    """
    if not 0 <= blend < len(refined.k_hat):
        raise ValueError(f"blend must be one of {len(refined.k_hat)}, got {blend}")
    if chains < 2:
        raise ValueError(f"chains must be at least 2, so that they can be compared, got {chains}")
    if draws < 50:
        raise ValueError(f"draws must be at least 50 a chain, got {draws}")
    if not refined.usable[blend]:
        raise ValueError(f"blend must have usable weights to start from, got a k-hat of {refined.k_hat[blend]:.2f}")
    one = Observed(*(value[blend : blend + 1] for value in observed))
    mean, covariance = (torch.from_numpy(array[blend]) for array in refined.moments())
    scale = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean)))
    starts = refined.resampled(chains, seed=seed)[:, blend]
    found = []
    for chain in range(chains):
        offset = (torch.from_numpy(starts[chain]) - mean)[:, None]
        place = torch.linalg.solve_triangular(scale, offset, upper=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, chain))
            energy = _energy(model, one, mean, scale)
            fixed = {"step_size": STEP, "adapt_step_size": False, "adapt_mass_matrix": False}
            kernel = NUTS(potential_fn=energy, max_tree_depth=DEEPEST, **fixed)
            sampler = MCMC(
                kernel, draws, warmup_steps=draws // 10, initial_params={"z": place[:, 0]}, disable_progbar=not progress
            )
            sampler.run()
            found.append(mean + sampler.get_samples()["z"] @ scale.T)
    unknown = torch.stack(found).numpy()
    r_hat, effective = _convergence(unknown)
    return Reference(unknown, r_hat, effective)


def _energy(
    model: BlendModel, observed: Observed, mean: Tensor, scale: Tensor
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the negative log-posterior of whitened unknowns."""

    def energy(place: dict[str, Tensor]) -> Tensor:
        unknown = (mean + scale @ place["z"])[None].float()
        density = model.log_prior(unknown, observed) + model.log_likelihood(unknown, observed)
        return -density[0].double()

    return energy


def _convergence(unknown: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz
    columns = np.moveaxis(unknown, -1, 0)
    return tuple(np.array([float(measure(column)) for column in columns]) for measure in (arviz.rhat, arviz.ess))
