"""Compare refinement with stored posteriors that the No-U-Turn sampler found.

The blends are the generative model's own: drawn on whole stamps, where a guess of the unknowns is found, and cut to
their middle, which is quicker to sample. A few have white noise and a PSF that is as good as known: what other codes
assume. `benchmarks.sample_references` makes such files; the datasets are the fields of `References`, and the attribute
``settings`` states in JSON how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import click
import h5py
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option
from probdeblend._files import check_header
from probdeblend.refinement.importance import Refined, refine
from probdeblend.refinement.latents import LATENTS
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.nuts import LARGEST_R_HAT, LEAST_EFFECTIVE
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior

__all__ = ["KIND", "SIZE", "STORED", "References", "compare", "main", "read_references", "reference_model"]

STORED = Path(__file__).parent / "data" / "reference_64px.h5"
KIND = "references"
SIZE = 64  # pixels
KNOWN_PSF = 1e-3  # standard deviation of ln of the width of a PSF that is as good as known
FLUXES = [0, len(LATENTS)]
LARGEST_DIFFERENCE = 0.3  # of means, in standard deviations
LEAST_RATIO, LARGEST_RATIO = 0.75, 1.33  # of standard deviations
LARGEST_CORRELATION = 0.15  # difference of the correlations of both ln fluxes
COLUMNS = ("mean_flux", "mean_all", "ratio_least", "ratio_largest", "correlation", "k_hat", "effective")


@benchmark("references", resume=False)
@click.argument("path", type=click.Path(path_type=Path), default=STORED)
@sized_option("--count", 2, 12, help="Blends of each kind of noise, at most.")
@click.option("--draws", type=click.IntRange(100), default=2000, show_default=True, help="Draws of each proposal.")
def main(run: Run, path: Path, count: int, draws: int) -> None:
    """Refine blends whose posteriors the No-U-Turn sampler has found, and compare with those in PATH.

    Columns: the largest differences of means over the reference's standard deviation, of both ln fluxes and of all
    unknowns; ratios of the standard deviations of ln flux; the difference of their correlation; k-hat and effective
    draws of refinement; and whether all are within 0.3, 0.75 to 1.33, and 0.15. Where refinement abstains they are NaN.
    """
    stored = read_references(path)
    if not stored.converged.any():
        raise ValueError(f"references must have converged, got none of {len(stored.white)}")
    rows = []
    for white in np.unique(stored.white[stored.converged]).tolist():
        chosen = np.flatnonzero(stored.converged & (stored.white == white))[:count]
        *taken, start = (torch.from_numpy(getattr(stored, name)[chosen]) for name in (*Observed._fields, "start"))
        settings = {"draws": draws, "seed": run.seed}
        found = refine(reference_model(white=white), Observed(*taken), start, **settings)
        rows += [
            {"blend": blend, "white": white} | compare(found, place, stored.draws[blend])
            for place, blend in enumerate(chosen.tolist())
        ]
    table = Table(rows)
    for name in COLUMNS:
        table[name].info.format = ".2f"
    known = np.isfinite(table["mean_flux"])
    table.meta = {"stored": len(stored.white), "converged": int(stored.converged.sum()), "compared": len(table)}
    table.meta |= {"abstained": int((~known).sum()), "within": float(np.mean(table["within"]))}
    run.write(table)


@dataclass(frozen=True, eq=False)
class References:
    """Blends, their truth, and draws of their posteriors; numbers are in the order of ``BlendModel.split``."""

    image: NDArray[np.float32]  # (blend, y, x), over the sky noise
    sky_rms: NDArray[np.float32]  # (blend,), flux units per pixel
    exposure: NDArray[np.float32]  # (blend,), counts per unit of flux
    start: NDArray[np.float32]  # (blend, number): the guess that refinement starts from
    unknown: NDArray[np.float32]  # (blend, number): the truth
    draws: NDArray[np.float32]  # (blend, chain, draw, number), thinned
    r_hat: NDArray[np.float32]  # (blend, number), of all draws
    effective: NDArray[np.float32]  # (blend, number), of all draws
    white: NDArray[np.bool_]  # (blend,): whether the noise is white and the PSF known
    seconds: NDArray[np.float32]  # (blend,) that sampling took

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether r-hat is below 1.01 and the effective sample size above 400 for every unknown ``(blend,)``."""
        return ((self.r_hat < LARGEST_R_HAT) & (self.effective > LEAST_EFFECTIVE)).all(-1)


def reference_model(*, white: bool = False) -> BlendModel:
    """Return the model that stored blends are drawn from; with white noise, the PSF is known as well."""
    model = BlendModel(Prior.default(), Instrument.candels_f160w(), size=SIZE)
    instrument = model.instrument.replace(noise_kernel=None)
    return replace(model, instrument=instrument, psf_growth=KNOWN_PSF) if white else model


def read_references(path: Path = STORED) -> References:
    """Read stored blends."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with h5py.File(path, "r") as file:
        check_header(file.attrs, KIND, path)
        return References(**{field.name: file[field.name][()] for field in fields(References)})


def compare(found: Refined, place: int, draws: NDArray) -> dict[str, object]:
    """Compare one refined blend with draws of its reference ``(chain, draw, number)``."""
    drawn = draws.reshape(-1, draws.shape[-1]).astype(np.float64)
    known = 1.0 if found.usable[place] else np.nan
    mean, covariance = (known * moment[place] for moment in found.moments())
    expected = np.cov(drawn, rowvar=False)
    difference = np.abs(mean - drawn.mean(0)) / np.sqrt(np.diag(expected))
    ratio = np.sqrt(np.diag(covariance) / np.diag(expected))[FLUXES]
    correlation = abs(_flux_correlation(covariance) - _flux_correlation(expected))
    values = (difference[FLUXES].max(), difference.max(), ratio.min(), ratio.max(), correlation)
    row = dict(zip(COLUMNS, (*values, found.k_hat[place], found.effective[place]), strict=True))
    ratios = row["ratio_least"] >= LEAST_RATIO and row["ratio_largest"] <= LARGEST_RATIO
    others = row["mean_flux"] <= LARGEST_DIFFERENCE and row["correlation"] <= LARGEST_CORRELATION
    return row | {"within": bool(ratios and others)}


def _flux_correlation(covariance: NDArray[np.float64]) -> float:
    (first, both), (_, second) = covariance[np.ix_(FLUXES, FLUXES)]
    return both / np.sqrt(first * second)


if __name__ == "__main__":
    main()
