"""From Kron to total flux: the aperture correction, measured on simulated lone galaxies.

A Kron aperture misses the faint wings of a galaxy: 0.06 mag of a disk and 0.13 mag of a spheroid at CANDELS depth.
How much follows from what is measured of the galaxy itself: its signal-to-noise ratio, its radius and its
concentration. A quadratic in their logarithms is fitted to galaxies of the prior, drawn alone with the
instrument's PSF and noise and measured as real ones are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from ..metrics.fluxes import nmad
from ..photometry.noise import add_noise
from ..scene import Instrument
from ..simulation.galsim import render_torch
from ..simulation.prior import Prior
from .isolated import LoneGalaxy, NotAloneError, measure_galaxy

__all__ = ["ApertureCorrection", "fit_aperture_correction"]


@dataclass(frozen=True, eq=False)
class ApertureCorrection:
    """Factor from the Kron to the total flux of a lone galaxy.

    Parameters
    ----------
    regression
        Predicts the logarithm of the factor from what is measured.
    scatter
        Robust relative scatter of the true factors around the predicted ones.
    low, high
        Range of what is measured among the galaxies that it was fitted to ``(feature,)``; beyond, the factor is that
        of the end.
    """

    regression: Pipeline
    scatter: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def factor(self, galaxy: LoneGalaxy) -> float:
        """Return the factor of a galaxy.

        Parameters
        ----------
        galaxy
            What was measured of it.

        Returns
        -------
        float
            Total over Kron flux.
        """
        features = np.clip(_features([galaxy]), self.low, self.high)
        return float(np.exp(self.regression.predict(features)[0]))


def fit_aperture_correction(instrument: Instrument, *, count: int = 600, seed: int = 0) -> ApertureCorrection:
    """Measure the aperture correction on simulated lone galaxies.

    Parameters
    ----------
    instrument
        PSF, noise and zero point of the images.
    count
        Number of galaxies to simulate.
    seed
        Same seed, same correction.

    Returns
    -------
    ApertureCorrection
        The fitted correction.

    Raises
    ------
    ValueError
        If fewer than 50 of the galaxies are found.
    """
    galaxies, factors = [], []
    for start in range(0, count, 64):
        for galaxy, total in _simulated(min(64, count - start), instrument, seed=seed + start):
            galaxies.append(galaxy)
            factors.append(np.log(total / galaxy.auto_flux))
    if len(galaxies) < 50:
        raise ValueError(f"at least 50 simulated galaxies must be found, got {len(galaxies)} of {count}")
    target = np.array(factors)
    inside = np.abs(target - np.median(target)) < 0.5
    features, target = _features(galaxies)[inside], target[inside]
    regression = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-3, 3, 13)))
    left = target - regression.fit(features, target).predict(features)
    return ApertureCorrection(regression, nmad(left), features.min(0), features.max(0))


def _simulated(count: int, instrument: Instrument, *, seed: int) -> list[tuple[LoneGalaxy, float]]:
    prior = replace(Prior.default(), crowding=(1.0,))
    pairs = prior.sample(count, seed=seed)
    light = prior.components(pairs, instrument, seed=seed)
    isolated = render_torch(light, instrument)[:, :1].cpu()
    noise = {name: torch.full((count,), getattr(instrument, name)) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(seed)
    image = add_noise(isolated, instrument.to("cpu"), **noise, generator=generator)[:, 0].numpy()
    found = []
    for number, stamp in enumerate(image):
        center = float(pairs["x"][number, 0]), float(pairs["y"][number, 0])
        try:
            galaxy = measure_galaxy(stamp.astype(np.float64), instrument.sky_rms, center)
        except NotAloneError:
            continue
        found.append((galaxy, float(light.total_flux[number, 0])))
    return found


def _features(galaxies: list[LoneGalaxy]) -> NDArray[np.float64]:
    rows = [(g.auto_flux / (g.sky_rms * g.half_light_radius), g.half_light_radius, g.concentration) for g in galaxies]
    return np.log(np.maximum(rows, 1e-3))
