"""The training prior of a network: the density of the two fluxes of a blend, in units of the sky noise.

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
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.special import ndtr

from ..scene import LN_FLUX_UNIT

__all__ = ["FluxPrior"]

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
        """Return the parameters as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the prior that `describe` has written as JSON."""
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
