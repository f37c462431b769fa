"""From Kron to total flux: the aperture correction, measured on simulated isolated galaxies.

A Kron aperture misses the faint wings of a galaxy: 0.06 mag of a disk and 0.13 mag of a spheroid at CANDELS depth. How
much depends on its signal-to-noise ratio, its radius and its concentration. A quadratic in their logarithms is fitted
to isolated galaxies of the population, drawn with the instrument's PSF and noise and measured as real ones are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ..scene import Instrument
from ..simulation.cameras import Camera
from ..simulation.population import Population
from ..simulation.scenes import Simulator
from .isolated import IsolatedGalaxy, NotIsolatedError, measure_galaxy
from .library import STAMP_SIZE, Library

__all__ = ["ApertureCorrection", "fit_aperture_correction", "library_of"]

LARGEST = 0.5  # departure of the log factor from its median; beyond it, another galaxy was measured


@dataclass(frozen=True, eq=False)
class ApertureCorrection:
    """Factor from Kron to total flux, its relative scatter, and the range of the features that it was fitted to."""

    regression: Pipeline
    scatter: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def factors(self, galaxies: Sequence[IsolatedGalaxy]) -> NDArray[np.float64]:
        """Return the ratio of total to Kron flux of each galaxy, with its features clipped to the fitted range."""
        return np.exp(self.regression.predict(np.clip(_features(galaxies), self.low, self.high)))


def fit_aperture_correction(instrument: Instrument, *, count: int = 600, seed: int = 0) -> ApertureCorrection:
    """Measure the aperture correction on `count` simulated isolated galaxies."""
    found = list(_simulated(count, instrument, seed=seed))
    if len(found) < 50:
        raise ValueError(f"at least 50 simulated galaxies must be found, got {len(found)} of {count}")
    galaxies, total = zip(*found, strict=True)
    target = np.log([flux / galaxy.auto_flux for flux, galaxy in zip(total, galaxies, strict=True)])
    inside = np.abs(target - np.median(target)) < LARGEST
    features, target = _features(galaxies)[inside], target[inside]
    regression = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-3, 3, 13)))
    left = target - regression.fit(features, target).predict(features)
    return ApertureCorrection(regression, float(mad_std(left)), features.min(0), features.max(0))


def _simulated(count: int, instrument: Instrument, *, seed: int) -> Iterator[tuple[IsolatedGalaxy, float]]:
    """Yield the galaxies that are found, with their total fluxes."""
    population = Population.published().extended(0.3)
    simulator = Simulator(population, Camera.of(instrument), (STAMP_SIZE, STAMP_SIZE), number=1)
    for scenes in simulator.batches(count, seed=seed):
        stamps = scenes.image[:, 0].double().numpy()
        for stamp, x, y, flux in zip(
            stamps, scenes.x.tolist(), scenes.y.tolist(), scenes.flux[:, 0].tolist(), strict=True
        ):
            with suppress(NotIsolatedError):
                yield measure_galaxy(stamp, instrument.sky_rms, (x, y)), flux


def _features(galaxies: Sequence[IsolatedGalaxy]) -> NDArray[np.float64]:
    rows = [(g.auto_flux / (g.sky_rms * g.half_light_radius), g.half_light_radius, g.concentration) for g in galaxies]
    return np.log(np.maximum(rows, 1e-3))


def library_of(
    galaxies: Sequence[IsolatedGalaxy], *, origin: str, instrument: Instrument, correction: ApertureCorrection
) -> Library:
    """Make a library of galaxies, with AUTO fluxes corrected to total ones; those without a quality flag are kept."""
    measured = {f.name for f in fields(Library)} & {f.name for f in fields(IsolatedGalaxy)}
    columns = {name: np.array([getattr(galaxy, name) for galaxy in galaxies]) for name in measured}
    flux = columns["auto_flux"] * correction.factors(galaxies)
    error = flux * np.hypot(columns["flux_error"] / columns["auto_flux"], correction.scatter)
    columns |= {"flux": flux, "flux_error": error, "keep": columns["quality"] == 0}
    columns["half_light_radius"] = instrument.pixel_scale * columns["half_light_radius"]
    same = {"origin": origin, "flux_kind": "corrected"}
    same |= {name: float(getattr(instrument, name)) for name in ("zero_point", "exposure")}
    return Library(**columns, **{name: np.full(len(galaxies), value) for name, value in same.items()})
