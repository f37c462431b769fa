"""How much the report runs."""

from __future__ import annotations

from dataclasses import dataclass

from probdeblend.deblending.deblender import Deblender
from probdeblend.surveys.library import Library

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """How much the report runs.

    Parameters
    ----------
    deblender
        The network with its calibrator.
    library
        Lone real galaxies, for the sections on them; None leaves those out.
    seed
        Same seed, same report.
    accuracy, calibration, rung, real, galsim, population
        Numbers of blends: of the published joint distribution; of the training family; on each rung of the ladder;
        of real galaxies; rendered by GalSim; for the population.
    steps
        Batches of end-to-end training.
    draws, passes
        Given to the deblender.
    """

    deblender: Deblender
    library: Library | None = None
    seed: int = 1
    accuracy: int = 4000
    calibration: int = 20_000
    rung: int = 1000
    real: int = 1500
    galsim: int = 100
    population: int = 10_000
    steps: int = 300
    draws: int = 1000
    passes: int = 32

    @classmethod
    def quick(cls, deblender: Deblender, **changes: object) -> Plan:
        """Return a plan of a few minutes.

        Parameters
        ----------
        deblender
            The network.
        **changes
            Other fields.

        Returns
        -------
        Plan
            With few blends: bands are wide.
        """
        few = {
            "accuracy": 400,
            "calibration": 800,
            "rung": 60,
            "real": 250,
            "galsim": 12,
            "population": 600,
            "steps": 20,
        }
        return cls(deblender, **few | {"draws": 400, "passes": 16} | changes)

    @property
    def sampling(self) -> dict[str, int]:
        """What the deblender is given."""
        return {"draws": self.draws, "passes": self.passes, "seed": self.seed}

    def describe(self) -> dict[str, object]:
        """Return the numbers by name.

        Returns
        -------
        dict
            With digests in the place of the network and the library.
        """
        numbers = {name: value for name, value in vars(self).items() if name not in ("deblender", "library")}
        calibrator = self.deblender.calibrator
        return {
            "network": self.deblender.digest,
            "calibrator": "none" if calibrator is None else calibrator.fitted_on,
            "library": "none" if self.library is None else self.library.digest(),
        } | numbers
