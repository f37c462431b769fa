"""The tables that ship with the package, made with GalSim."""

from os import PathLike

import galsim
import numpy as np

from .profiles import TABLE_INDEX, TABLE_WAVENUMBER

__all__ = ["write_sersic_table"]


def write_sersic_table(path: str | PathLike[str]) -> None:
    """Tabulate the Fourier transform of the Sérsic profile, as GalSim computes it.

    The profile has unit flux and unit half-light radius. The table is a ``.npy`` file of 32-bit floats of
    shape (Sérsic index, wavenumber), on the nodes ``TABLE_INDEX`` and
    ``TABLE_WAVENUMBER``. It takes a few minutes, most of them at the steepest profiles.

    Parameters
    ----------
    path
        The file to write; the one that ships is ``probdeblend/data/sersic_table.npy``.
    """
    precise = galsim.GSParams(
        kvalue_accuracy=1e-8, integration_relerr=1e-9, integration_abserr=1e-11, folding_threshold=1e-4
    )
    table = np.empty((len(TABLE_INDEX), len(TABLE_WAVENUMBER)), dtype=np.float32)
    for row, index in zip(table, TABLE_INDEX, strict=True):
        profile = galsim.Sersic(index, half_light_radius=1.0, gsparams=precise)
        row[:] = [profile.kValue(wavenumber, 0.0).real for wavenumber in TABLE_WAVENUMBER]
    np.save(path, table, allow_pickle=False)
