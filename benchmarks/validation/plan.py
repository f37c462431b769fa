"""How much the report runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.population.recovery import CELLS, WIDE_CELLS
from probdeblend.deblending.deblender import Deblender
from probdeblend.surveys.library import Library

__all__ = ["FEW", "Plan"]

FEW = {
    "accuracy": 400,
    "calibration": 800,
    "rung": 60,
    "real": 250,
    "galsim": 12,
    "population": 600,
    "cells": WIDE_CELLS,
    "steps": 20,
    "draws": 400,
    "passes": 16,
}
"""Changes that make it a plan of a few minutes: bands are wide."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How much the report runs: seven numbers of blends, the batches of end-to-end training, draws and passes."""

    deblender: Deblender
    library: Library | None = None  # isolated real galaxies, for the sections on them
    seed: int = 1
    accuracy: int = 4000  # of the published joint distribution
    calibration: int = 20_000  # of the training family
    rung: int = 1000  # on each rung of the ladder
    real: int = 1500  # of real galaxies
    galsim: int = 100  # rendered by GalSim
    population: int = 10_000
    cells: Sequence[float] = CELLS  # of the population's magnitude and difference
    steps: int = 300
    draws: int = 1000
    passes: int = 32

    @property
    def sampling(self) -> dict[str, int]:
        """What the deblender is given."""
        return {"draws": self.draws, "passes": self.passes, "seed": self.seed}

    def describe(self) -> dict[str, object]:
        """Return the numbers by name, with digests in the place of the network and the library."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("deblender", "library")}
        calibrator = self.deblender.calibrator
        return {
            "network": self.deblender.digest,
            "calibrator": "none" if calibrator is None else calibrator.fitted_on,
            "library": "none" if self.library is None else self.library.digest(),
        } | numbers
