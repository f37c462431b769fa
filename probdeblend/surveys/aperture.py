"""From Kron to total flux: the aperture correction, measured on simulated isolated galaxies.

A Kron aperture misses the faint wings of a galaxy: 0.06 mag of a disk and 0.13 mag of a spheroid at CANDELS depth. How
much depends on its signal-to-noise ratio, its radius and its concentration. A quadratic in their logarithms is fitted
to isolated galaxies of the prior, drawn with the instrument's PSF and noise and measured as real ones are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from astropy.stats import mad_std
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ..photometry.noise import add_noise
from ..scene import Instrument
from ..simulation.galsim import render_torch
from ..simulation.prior import Prior
from .isolated import IsolatedGalaxy, NotIsolatedError, measure_galaxy
from .library import Library

__all__ = ["ApertureCorrection", "fit_aperture_correction", "library_of"]

BATCH = 64
LARGEST = 0.5  # of the logarithm of the factor; beyond, another galaxy was measured


@dataclass(frozen=True, eq=False)
class ApertureCorrection:
    """Factor from Kron to total flux, its relative scatter, and the range of the features that it was fitted to."""

    regression: Pipeline
    scatter: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def factors(self, galaxies: Sequence[IsolatedGalaxy]) -> NDArray[np.float64]:
        """Return total over Kron flux of each galaxy; beyond the range, that at its end."""
        return np.exp(self.regression.predict(np.clip(_features(galaxies), self.low, self.high)))


def fit_aperture_correction(instrument: Instrument, *, count: int = 600, seed: int = 0) -> ApertureCorrection:
    """Measure the aperture correction on `count` simulated isolated galaxies."""
    galaxies, factors = [], []
    for start in range(0, count, BATCH):
        for galaxy, total in _simulated(min(BATCH, count - start), instrument, seed=seed + start):
            galaxies.append(galaxy)
            factors.append(np.log(total / galaxy.auto_flux))
    if len(galaxies) < 50:
        raise ValueError(f"at least 50 simulated galaxies must be found, got {len(galaxies)} of {count}")
    target = np.array(factors)
    inside = np.abs(target - np.median(target)) < LARGEST
    features, target = _features(galaxies)[inside], target[inside]
    regression = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-3, 3, 13)))
    left = target - regression.fit(features, target).predict(features)
    return ApertureCorrection(regression, float(mad_std(left)), features.min(0), features.max(0))


def _simulated(count: int, instrument: Instrument, *, seed: int) -> list[tuple[IsolatedGalaxy, float]]:
    prior = replace(Prior.default(), crowding=(1.0,))
    pairs = prior.sample(count, seed=seed)
    light = prior.components(pairs, instrument, seed=seed)
    noise = {name: torch.full((count,), getattr(instrument, name)) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(seed)
    images = add_noise(render_torch(light, instrument)[:, 0].cpu(), instrument.to("cpu"), **noise, generator=generator)
    found = []
    for stamp, x, y, total in zip(images.numpy(), pairs["x"], pairs["y"], light.total_flux, strict=True):
        try:
            galaxy = measure_galaxy(stamp.astype(np.float64), instrument.sky_rms, (float(x[0]), float(y[0])))
        except NotIsolatedError:
            continue
        found.append((galaxy, float(total[0])))
    return found


def _features(galaxies: Sequence[IsolatedGalaxy]) -> NDArray[np.float64]:
    rows = [(g.auto_flux / (g.sky_rms * g.half_light_radius), g.half_light_radius, g.concentration) for g in galaxies]
    return np.log(np.maximum(rows, 1e-3))


def library_of(
    galaxies: Sequence[IsolatedGalaxy],
    *,
    origin: str,
    instrument: Instrument,
    correction: ApertureCorrection,
    wcs: WCS | None = None,
    true_flux: ArrayLike | None = None,
) -> Library:
    """Make a library of galaxies, with their `true_flux` or the AUTO flux corrected to the total one.

    Those without a quality flag are kept. `wcs` holds the world coordinates of the mosaic they were cut out of.
    """
    names = ("identity", "pixels", "segmentation", "sky_rms", "x", "y", "auto_flux", "galaxy_type", "quality")
    columns = {name: np.array([getattr(galaxy, name) for galaxy in galaxies]) for name in names}
    flux, error = np.asarray(true_flux, dtype=float), np.zeros(len(galaxies))
    if true_flux is None:
        flux = columns["auto_flux"] * correction.factors(galaxies)
        relative = np.array([galaxy.flux_error for galaxy in galaxies]) / columns["auto_flux"]
        error = flux * np.hypot(relative, correction.scatter)
    ra, dec = np.full((2, len(galaxies)), np.nan)
    if wcs is not None:
        ra, dec = wcs.pixel_to_world_values(*np.array([(g.x0 + g.x, g.y0 + g.y) for g in galaxies]).T)
    columns |= {"ra": np.asarray(ra, float), "dec": np.asarray(dec, float), "flux": flux, "flux_error": error}
    columns["half_light_radius"] = instrument.pixel_scale * np.array([galaxy.half_light_radius for galaxy in galaxies])
    same = {"origin": origin, "flux_kind": "corrected" if true_flux is None else "true"}
    same |= {name: float(getattr(instrument, name)) for name in ("zero_point", "exposure")}
    columns |= {name: np.full(len(galaxies), value) for name, value in same.items()}
    return Library(**columns, keep=columns["quality"] == 0)
