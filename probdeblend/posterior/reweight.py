"""Posteriors under another prior, by importance weights.

The draws of a network follow the posterior under its training prior (`FluxPrior`). Weighted by the ratio of another
prior to it, they follow the posterior under that prior, as long as enough of them carry weight: the effective number
of draws is ``(sum w)**2 / sum w**2`` (Kish 1965, "Survey Sampling"). Weights are used as they are, without Pareto
smoothing, in systematic resampling.

The distribution of all other properties of a galaxy, given its flux, stays that of the training. Draws outside the
support of the training prior are errors of the network and get no weight.

Networks see images in units of the sky noise, so their prior is one of ln(flux / sky_rms), averaged over all depths of
the training. With ``k = 2.5 / ln 10`` and ``t = k ln(sky_rms)``, a galaxy of AB magnitude m has
``ln(flux / sky_rms) = (zero_point - m - t) / k``: the two galaxies share t, which is uniform, and their magnitudes are
independent draws of one Gaussian mixture, accepted if both are in range and their difference is small. The density of
the pair is the mean over t of the density of the magnitudes. The product of two Gaussians along a line is a Gaussian,
and acceptance cuts an interval out of the line: the mean is a sum of error functions, one for each pair of Gaussians.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Self

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.special import ndtr

from ..scene import LN_FLUX_UNIT

if TYPE_CHECKING:
    from .draws import Posterior

__all__ = ["FluxPrior", "effective_samples", "log_prior", "reweight", "systematic"]

LogDensity = Callable[[NDArray[np.float64]], ArrayLike]

LEAST = 100.0  # effective draws: one-sigma quantiles are then known to a sixth of the width of the posterior
LEAST_FRACTION = 0.25  # of the draws, where that is less
DRAW_DIMS = ("chain", "draw", "blend", "galaxy")
OF_PASSES = ("flux_variance_within", "flux_variance_between")
CHUNK = 16_384  # rows, whose arrays fit into the cache of a processor
STEPS = 4000  # of the integral over magnitude; exact to 1e-6


@dataclass(frozen=True)
class FluxPrior:
    """The density of the two ln(flux / sky_rms) of a blend.

    Parameters
    ----------
    gaussians
        The mixture of AB magnitudes: weight, mean and standard deviation of each Gaussian.
    magnitude_range
        Brightest and faintest magnitude.
    max_difference
        Largest difference of the pair's magnitudes.
    sky_rms
        Smallest and largest noise of a sky pixel in image units, log-uniform in between, the same for both galaxies.
    zero_point
        AB magnitude of unit flux.

    Raises
    ------
    ValueError
        If the zero point is not finite, or no pair of magnitudes is accepted.
    """

    gaussians: tuple[tuple[float, float, float], ...]
    magnitude_range: tuple[float, float]
    max_difference: float
    sky_rms: tuple[float, float]
    zero_point: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.zero_point):
            raise ValueError(f"zero_point must be finite, got {self.zero_point}")
        if not self._accepted > 0:
            raise ValueError(f"gaussians must reach into magnitude_range {self.magnitude_range}, got {self.gaussians}")

    def describe(self) -> str:
        """Return the parameters as JSON.

        Returns
        -------
        str
            A JSON object, which `parse` reads.
        """
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the prior that `describe` has written as JSON.

        Parameters
        ----------
        text
            What `describe` returned.

        Returns
        -------
        FluxPrior
            The prior.
        """
        numbers = json.loads(text)
        gaussians = tuple(tuple(gaussian) for gaussian in numbers.pop("gaussians"))
        ranges = {name: tuple(numbers.pop(name)) for name in ("magnitude_range", "sky_rms")}
        return cls(gaussians=gaussians, **ranges, **numbers)

    def log_prob(self, log_flux_over_noise: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithm of the normalized density.

        Parameters
        ----------
        log_flux_over_noise
            Pairs ``(..., 2)`` of ln(flux / sky_rms).

        Returns
        -------
        NDArray
            ``(...)``, per unit of both ln(flux): also the density of the two ln(flux) at a given sky noise. -inf
            outside the training prior, or where the density underflows; NaN for NaN.

        Raises
        ------
        ValueError
            If the last axis does not hold two values.
        """
        values = np.asarray(log_flux_over_noise, dtype=np.float64)
        if values.shape[-1:] != (2,):
            raise ValueError(f"log_flux_over_noise must have the shape (..., 2), got {values.shape}")
        rows, density = values.reshape(-1, 2), np.empty(values.size // 2)
        for start in range(0, len(rows), CHUNK):
            density[start : start + CHUNK] = self._density(rows[start : start + CHUNK])
        with np.errstate(divide="ignore"):
            return np.log(density).reshape(values.shape[:-1])

    @cached_property
    def _accepted(self) -> float:
        """Probability that two magnitudes of the mixture are accepted."""
        low, high = self.magnitude_range
        weight, mean, sd = np.array(self.gaussians).T
        magnitude = np.linspace(low, high, STEPS + 1)[:, None]
        density = np.exp(-(((magnitude - mean) / sd) ** 2) / 2) / (math.sqrt(2 * math.pi) * sd)
        first = np.maximum(magnitude - self.max_difference, low)
        last = np.minimum(magnitude + self.max_difference, high)
        other = ndtr((last - mean) / sd) - ndtr((first - mean) / sd)
        return float(trapezoid((density @ weight) * (other @ weight), magnitude[:, 0]))

    def _density(self, rows: NDArray) -> NDArray[np.float64]:
        unit = self.zero_point - LN_FLUX_UNIT * rows  # magnitudes for unit sky noise
        first, last = LN_FLUX_UNIT * np.log(self.sky_rms)
        low, high = self.magnitude_range
        begin, end = np.maximum(unit.max(1) - high, first), np.minimum(unit.min(1) - low, last)
        with np.errstate(invalid="ignore"):
            inside = (begin <= end) & (np.abs(unit[:, 0] - unit[:, 1]) < self.max_difference)
        density = np.where(np.isnan(rows).any(1), np.nan, 0.0)
        density[inside] = self._integral(unit[inside], begin[inside], end[inside])
        density[inside] *= LN_FLUX_UNIT**2 / self._accepted / (last - first or 1.0)
        return density

    def _integral(self, unit: NDArray, begin: NDArray, end: NDArray) -> NDArray[np.float64]:
        """Integrate the density of both magnitudes ``unit - t`` over t; its value if there is a single depth."""
        difference, middle, half = unit[:, 0] - unit[:, 1], (begin + end) / 2, (end - begin) / 2
        one_depth = self.sky_rms[0] == self.sky_rms[1]
        total = np.zeros(len(unit))
        for (weight, mean, sd), (other_weight, other_mean, other_sd) in product(self.gaussians, repeat=2):
            # The difference of the magnitudes, and the weighted mean that is independent of it.
            spread = math.hypot(sd, other_sd)
            share, width = (other_sd / spread) ** 2, sd * other_sd / spread
            offset = difference - (mean - other_mean)
            across, along = offset / spread, (unit[:, 1] - other_mean + share * offset - middle) / width
            weights = weight * other_weight / (math.sqrt(2 * math.pi) * spread)
            if one_depth:
                scale = weights / (math.sqrt(2 * math.pi) * width)
                total += scale * np.exp(-(across**2 + along**2) / 2)
            else:
                # Both ends in the lower tail, where differences of error functions do not cancel.
                along, reach = np.abs(along), half / width
                total += weights * np.exp(-(across**2) / 2) * (ndtr(reach - along) - ndtr(-reach - along))
        return total


def log_prior(posterior: Posterior, flux_prior: FluxPrior) -> xr.DataArray:
    """Return the log density of each draw under the training prior ``(chain, draw, blend)``, per unit of both ln(flux).

    It is -inf outside the training prior, and NaN where a draw is NaN.
    """
    flux = _pair_fluxes(posterior)
    if "sky_rms" not in posterior.dataset:
        raise ValueError("posterior must have sky_rms, got none: give it to Posterior.from_draws")
    with np.errstate(divide="ignore"):
        log_flux = np.log(np.maximum(flux, 0))
    noise = np.log(posterior.dataset["sky_rms"].values.astype(float))
    density = flux_prior.log_prob(log_flux - noise[:, None])
    dims = DRAW_DIMS[:3]
    return xr.DataArray(density, {dim: posterior.flux[dim].values for dim in dims}, dims, "log_prior")


def effective_samples(
    posterior: Posterior, log_density: LogDensity, *, flux_prior: FluxPrior | None = None
) -> xr.DataArray:
    """Return the effective number of draws under another prior.

    Parameters
    ----------
    posterior
        Pairs in one band, with their ``sky_rms``.
    log_density, flux_prior
        The new prior and the training prior, as for `Posterior.reweight`.

    Returns
    -------
    xarray.DataArray
        One number per blend ``(blend,)``, at most the number of its draws; NaN where a galaxy has no draws.

    Raises
    ------
    ValueError
        If the posterior has no ``sky_rms``, more than one band, or is not of pairs; if the training prior is unknown,
        or `log_density` returns another shape, NaN or inf.
    """
    return _effective(posterior, _weights(posterior, log_density, flux_prior))


def reweight(
    posterior: Posterior,
    log_density: LogDensity,
    *,
    flux_prior: FluxPrior | None = None,
    least: float | None = None,
    seed: int = 0,
) -> Posterior:
    """Replace the training prior by another one, with importance weights.

    Parameters
    ----------
    posterior
        Pairs in one band, with their ``sky_rms``.
    log_density
        Called with all fluxes ``(chain, draw, blend, galaxy)`` in image units, returns ``(chain, draw, blend)``:
        the logarithm of the new prior density *in ln flux* of both galaxies, up to a constant for each blend; -inf
        for what is excluded. Multiply a density in flux by both fluxes; one in magnitude can stay as it is.
    flux_prior
        The training prior. By default the attribute ``flux_prior`` of the dataset, which the draws of weights
        trained on simulated blends have.
    least
        Minimum effective number of draws per blend. By default 100, or a quarter of the draws if that is less.
    seed
        Seed of the resampling; draws of a blend do not depend on other blends.

    Returns
    -------
    Posterior
        Draws under the new prior, some repeated, in random order: chains are no longer dropout passes, and the
        parts of the variance are dropped. The dataset has ``effective_samples (blend,)``. Masks, positions and
        flags are unchanged. Blends with a galaxy without draws become NaN.

    Raises
    ------
    ValueError
        If the posterior is not of pairs in one band, or was reweighted already; if its prior is unknown, `least` is
        not positive, `log_density` returns another shape, NaN or inf; or if a blend has too few effective draws.
    """
    sizes = posterior.flux.sizes
    count = sizes["chain"] * sizes["draw"]
    least = min(LEAST, LEAST_FRACTION * count) if least is None else least
    if not 0 < least <= count:
        raise ValueError(f"least must be positive and at most the number of draws, {count}, got {least}")
    weights = _weights(posterior, log_density, flux_prior)
    effective = _effective(posterior, weights)
    if (below := effective[effective.values < least]).size:
        raise ValueError(
            f"every blend must have {least:g} effective draws under the new prior, got fewer in {below.size} of "
            f"{effective.size} blends, first in blend {below['blend'].values[0]} with {below.values[0]:.1f}: request "
            "more draws, or select the blends in which effective_samples is large enough"
        )
    index = systematic(weights, count, rng=np.random.default_rng(seed))
    flux = np.take_along_axis(posterior.draws("blend", "galaxy", "band"), index[:, None, None], -1)
    flux[np.isnan(effective.values)] = np.nan
    flux = flux.reshape(*flux.shape[:3], sizes["chain"], sizes["draw"]).transpose(3, 4, 0, 1, 2)
    changed = {"flux": ((*DRAW_DIMS, "band"), flux.astype(posterior.flux.dtype), posterior.flux.attrs)}
    changed["effective_samples"] = (("blend",), effective.values)
    kept = posterior.dataset.drop_dims("draw").drop_vars(OF_PASSES, errors="ignore").assign(changed)
    return type(posterior)(kept.assign_coords(draw=posterior.flux["draw"].values).assign_attrs(reweighted="yes"))


def systematic(weights: NDArray[np.float64], count: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Resample `count` draws of each blend by their weights ``(blend, draw)``; return indices in random order.

    Systematic resampling (Kitagawa 1996, doi:10.1080/10618600.1996.10474692). All blends share one offset and one
    order, so that the draws of a blend do not depend on others. Rows of zeros or NaN take the first draw.
    """
    place, order = (np.arange(count) + rng.random()) / count, rng.permutation(count)
    index = np.zeros((len(weights), count), dtype=np.int64)
    for row, total in zip(index, np.cumsum(weights, axis=1), strict=True):
        if total[-1] > 0:
            row[:] = np.searchsorted(total / total[-1], place[order], side="right")
    return np.minimum(index, weights.shape[1] - 1)


def _pair_fluxes(posterior: Posterior) -> NDArray[np.float64]:
    """Return the fluxes ``(chain, draw, blend, galaxy)`` of pairs in one band."""
    sizes = posterior.flux.sizes
    if (sizes["galaxy"], sizes["band"]) != (2, 1):
        raise ValueError(
            f"posterior must be of 2 galaxies in 1 band, got {sizes['galaxy']} galaxies in {sizes['band']} bands"
        )
    return posterior.flux.isel(band=0).transpose(*DRAW_DIMS).values.astype(float)


def _weights(posterior: Posterior, log_density: LogDensity, flux_prior: FluxPrior | None) -> NDArray[np.float64]:
    """Return weights ``(blend, draw of all chains)``, at most 1 in each blend; NaN where a galaxy has no draws."""
    if "reweighted" in posterior.dataset.attrs:
        raise ValueError("posterior must be under the training prior, got one that was reweighted already")
    if flux_prior is None and "flux_prior" not in posterior.dataset.attrs:
        raise ValueError("posterior must have a flux_prior if none is given, got none")
    known = FluxPrior.parse(posterior.dataset.attrs["flux_prior"]) if flux_prior is None else flux_prior
    flux, trained = _pair_fluxes(posterior), log_prior(posterior, known).values
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
