"""Tabulate the Fourier transform of the Sérsic profile with GalSim: the table that ships with the package.

The profile has unit flux and unit half-light radius. The table is a ``.npy`` file of 32-bit floats of shape (Sérsic
index, wavenumber), on the nodes that `probdeblend.simulation.profiles` interpolates between. It takes a few minutes,
most of them for the steepest profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import galsim
import numpy as np
from numpy.typing import NDArray

from probdeblend.simulation.profiles import TABLE_INDEX, TABLE_WAVENUMBER

__all__ = ["main", "sersic_table"]


@click.command("python -m benchmarks.sersic_table")
@click.argument("output", type=click.Path(path_type=Path, exists=False), default="sersic_table.npy")
def main(output: Path) -> None:
    """Write the table to OUTPUT; it ships as probdeblend/data/sersic_table.npy."""
    np.save(output, sersic_table(TABLE_INDEX), allow_pickle=False)
    click.echo(f"written to {output}")


def sersic_table(indices: Sequence[float]) -> NDArray[np.float32]:
    """Return the transforms ``(index, wavenumber)`` of profiles of these Sérsic indices."""
    precise = galsim.GSParams(
        kvalue_accuracy=1e-8, integration_relerr=1e-9, integration_abserr=1e-11, folding_threshold=1e-4
    )
    profiles = [galsim.Sersic(index, half_light_radius=1.0, gsparams=precise) for index in indices]
    rows = [[profile.kValue(wavenumber, 0.0).real for wavenumber in TABLE_WAVENUMBER] for profile in profiles]
    return np.array(rows, dtype=np.float32)


if __name__ == "__main__":
    main()
