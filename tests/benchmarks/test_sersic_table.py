"""The table of Sérsic transforms that ships with the package."""

from importlib.resources import files

import numpy as np

from benchmarks.sersic_table import sersic_table
from probdeblend.simulation.profiles import TABLE_INDEX


def test_shipped_table_is_what_the_benchmark_makes():
    rows = [0, 20, 36]
    with (files("probdeblend") / "data" / "sersic_table.npy").open("rb") as file:
        shipped = np.load(file, allow_pickle=False)
    assert shipped.shape == (64, 248)
    np.testing.assert_allclose(sersic_table(TABLE_INDEX[rows]), shipped[rows], rtol=1e-5, atol=1e-8)
