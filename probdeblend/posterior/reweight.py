"""Posteriors under a prior of the user's own, by importance weights.

The draws of a network are of the posterior under the prior that it was trained with
(`~probdeblend.posterior.flux_prior.FluxPrior`). Weighted by the user's prior over that one they are of the posterior under the
user's prior, where they are dense enough: the number of draws that are worth as much as the weighted ones,
``(sum w)**2 / sum w**2`` (Kish 1965, "Survey Sampling"), tells whether they are. Weights are taken as they are, without
Pareto smoothing, and draws by systematic resampling (`~probdeblend.posterior.weighted.systematic`).

What else a galaxy is, given its flux, stays as in the training. Where training never was, a draw is the network's
error: it has no likelihood and gets no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from .flux_prior import FluxPrior
from .weighted import systematic

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["LogDensity", "effective_samples", "log_prior", "reweight"]

LogDensity = Callable[[NDArray[np.float64]], ArrayLike]
"""From fluxes to the logarithm of a prior density in ln flux, as `reweight` takes it."""

LEAST = 100.0  # effective draws: quantiles of one sigma are then known to a sixth of the posterior's width
LEAST_FRACTION = 0.25
DRAW_DIMS = ("chain", "draw", "blend", "galaxy")
OF_PASSES = ("flux_variance_within", "flux_variance_between")


def log_prior(posterior: Posterior, flux_prior: FluxPrior) -> xr.DataArray:
    """Return the density of each draw under the prior that the network was trained with.

    Parameters
    ----------
    posterior
        Pairs in one band, with their sky noise.
    flux_prior
        The prior of the network.

    Returns
    -------
    xarray.DataArray
        Natural logarithm ``(chain, draw, blend)`` of the density of the two ln(flux), normalized; -inf where training
        never was, NaN where a draw is.

    Raises
    ------
    ValueError
        If the posterior has no sky noise, more than one band, or other numbers of galaxies than two.
    """
    flux = _pair_fluxes(posterior)
    if "sky_rms" not in posterior.dataset:
        raise ValueError(
            "posterior must have sky_rms, as the prior is one of flux over noise, got none: "
            "give it to Posterior.from_draws"
        )
    with np.errstate(divide="ignore"):
        log_flux = np.log(np.maximum(flux, 0))
    noise = np.log(posterior.dataset["sky_rms"].values.astype(float))
    density = flux_prior.log_prob(log_flux - noise[:, None])
    dims = DRAW_DIMS[:3]
    return xr.DataArray(density, {dim: posterior.flux[dim].values for dim in dims}, dims, "log_prior")


def effective_samples(
    posterior: Posterior, log_density: LogDensity, *, flux_prior: FluxPrior | None = None
) -> xr.DataArray:
    """Return how many draws the weighted ones are worth.

    Parameters
    ----------
    posterior, log_density, flux_prior
        As for `reweight`.

    Returns
    -------
    xarray.DataArray
        A number a blend ``(blend,)``, at most that of its draws; NaN where a galaxy has no answer.

    Raises
    ------
    ValueError
        As `log_prior`; if it is not known under which prior the draws are, or the user's density has another shape or
        a value that is none.
    """
    return _effective(posterior, _weights(posterior, log_density, flux_prior))


def reweight(
    posterior: Posterior,
    log_density: LogDensity,
    *,
    flux_prior: FluxPrior | None = None,
    least: float | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> Posterior:
    """Replace the prior of the training by the user's own.

    Parameters
    ----------
    posterior
        Pairs in one band, with their sky noise or ``log_prior``; calibrated or not.
    log_density
        Called with all fluxes ``(chain, draw, blend, galaxy)`` in image units, returns ``(chain, draw, blend)``: the
        logarithm of the user's prior density *in ln flux* of both galaxies, up to a constant that may differ from blend
        to blend; -inf for what is excluded. A density in flux is to be multiplied by both fluxes; one in magnitude can
        stay as it is.
    flux_prior
        The prior of the network; if None, the posterior has it as the attribute ``flux_prior`` (those of weights that
        were trained on simulated blends do), or its draws carry their ``log_prior`` in the dataset.
    least
        Effective number of draws that a blend needs: 100, or a quarter of the draws where that is less, if None.
    draws
        Number of draws in each chain of the answer; as many as there were if None.
    seed
        Same seed, same draws, whatever other blends there are.

    Returns
    -------
    Posterior
        Draws under the user's prior, some of them several times, in no order: chains are no dropout passes any more,
        and parts of the variance are left out. The dataset has ``effective_samples (blend,)``. Masks, positions and
        flags stay those under the prior of the training, and blends with a galaxy that has no answer become NaN.

    Raises
    ------
    ValueError
        As `effective_samples`; if `least` or `draws` is not positive, or a blend has too few effective draws: the two
        priors differ too much for what its image says.
    """
    sizes = posterior.flux.sizes
    count = sizes["chain"] * sizes["draw"]
    least = min(LEAST, LEAST_FRACTION * count) if least is None else least
    draws = sizes["draw"] if draws is None else draws
    if not 0 < least <= count:
        raise ValueError(f"least must be positive and at most the number of draws, {count}, got {least}")
    if draws < 1:
        raise ValueError(f"draws must be positive, got {draws}")
    weights = _weights(posterior, log_density, flux_prior)
    effective = _effective(posterior, weights)
    _refuse(effective, least)
    index = systematic(weights, sizes["chain"] * draws, rng=np.random.default_rng(seed))
    flux = np.take_along_axis(posterior.draws("blend", "galaxy", "band"), index[:, None, None], -1)
    flux[np.isnan(effective.values)] = np.nan
    flux = flux.reshape(*flux.shape[:3], sizes["chain"], draws).transpose(3, 4, 0, 1, 2).astype(posterior.flux.dtype)
    changed = {"flux": ((*DRAW_DIMS, "band"), flux, posterior.flux.attrs)}
    changed["effective_samples"] = (("blend",), effective.values)
    kept = posterior.dataset.drop_dims("draw").drop_vars(OF_PASSES, errors="ignore")
    return type(posterior)(kept.assign(changed).assign_coords(draw=np.arange(draws)).assign_attrs(reweighted="yes"))


def _pair_fluxes(posterior: Posterior) -> NDArray[np.float64]:
    """Return the fluxes ``(chain, draw, blend, galaxy)``, checked."""
    sizes = posterior.flux.sizes
    if (sizes["galaxy"], sizes["band"]) != (2, 1):
        raise ValueError(
            f"posterior must be of 2 galaxies in 1 band, got {sizes['galaxy']} galaxies in {sizes['band']} bands"
        )
    return posterior.flux.isel(band=0).transpose(*DRAW_DIMS).values.astype(float)


def _trained(posterior: Posterior, flux_prior: FluxPrior | None) -> NDArray[np.float64]:
    """Return the logarithm of the density of each draw under the prior that it is of ``(chain, draw, blend)``."""
    if "reweighted" in posterior.dataset.attrs:
        raise ValueError("posterior must have the prior of the training, got one that was reweighted already")
    if flux_prior is not None:
        return log_prior(posterior, flux_prior).values
    if "flux_prior" in posterior.dataset.attrs:
        return log_prior(posterior, FluxPrior.parse(posterior.dataset.attrs["flux_prior"])).values
    if "log_prior" not in posterior.dataset:
        raise ValueError("posterior must say under which prior it is where flux_prior is not given, got none")
    return posterior.dataset["log_prior"].transpose(*DRAW_DIMS[:3]).values.astype(float)


def _weights(posterior: Posterior, log_density: LogDensity, flux_prior: FluxPrior | None) -> NDArray[np.float64]:
    """Return weights ``(blend, draw of all chains)``, the largest of a blend 1; NaN where a galaxy has no answer."""
    flux, trained = _pair_fluxes(posterior), _trained(posterior, flux_prior)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.asarray(log_density(flux), dtype=np.float64)
    if wanted.squeeze().shape != trained.squeeze().shape:  # SciPy's densities drop axes of length one
        raise ValueError(f"log_density must return the shape {trained.shape}, got {wanted.shape}")
    wanted, possible = wanted.reshape(trained.shape), trained > -np.inf
    if not (wanted[possible] < np.inf).all():
        raise ValueError("log_density must return finite numbers or -inf, got NaN or inf")
    ratio = np.where(possible, wanted, -np.inf)
    ratio[possible] -= trained[possible]
    highest = ratio.max((0, 1))
    weights = np.exp(ratio - np.where(np.isfinite(highest), highest, 0))
    weights[..., np.isnan(flux).any((0, 1, 3))] = np.nan
    return weights.reshape(weights.shape[0] * weights.shape[1], -1).T


def _effective(posterior: Posterior, weights: NDArray) -> xr.DataArray:
    # The largest weight is 1 unless all are zero.
    number = weights.sum(1) ** 2 / np.maximum((weights**2).sum(1), 1)
    return xr.DataArray(number, {"blend": posterior.flux["blend"].values}, ("blend",), "effective_samples")


def _refuse(effective: xr.DataArray, least: float) -> None:
    below = effective[effective.values < least]
    if below.size:
        raise ValueError(
            f"every blend must have {least:g} effective draws under the new prior, got fewer in {below.size} of "
            f"{effective.size} blends, first in blend {below['blend'].values[0]} with {below.values[0]:.1f}: ask for "
            "more draws, or select the blends in which effective_samples is large enough"
        )
