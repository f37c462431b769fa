"""The example that ships is what its benchmark makes."""

import numpy as np
from astropy.io import fits
from click.testing import CliRunner

from benchmarks.example import EXAMPLE_PATH, main


def test_the_example_that_ships_is_reproduced(tmp_path):
    path = tmp_path / "example.fits"
    first = CliRunner().invoke(main, ["--output", str(path)])
    assert first.exit_code == 0, first.output
    with fits.open(path) as made, fits.open(EXAMPLE_PATH) as shipped:
        np.testing.assert_allclose(made[0].data, shipped[0].data, rtol=1e-4, atol=1e-4)
        assert repr(made[0].header) == repr(shipped[0].header)
        np.testing.assert_allclose(made["TRUTH"].data["flux"], shipped["TRUTH"].data["flux"], rtol=1e-4)
    assert EXAMPLE_PATH.stat().st_size < 200_000
    again = CliRunner().invoke(main, ["--output", str(path)])
    assert again.exit_code == 1
    assert "exists already" in again.output
