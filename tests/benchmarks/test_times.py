"""Times of the methods, and the one peer that samples."""

from importlib.util import find_spec

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import pysersic_nuts, times


@pytest.mark.slow
def test_times(tmp_path):
    settings = ["--count", "2", "--refined", "1", "--draws", "50", "--output", str(tmp_path / "times")]
    answer = CliRunner().invoke(times.main, settings, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(tmp_path / "times" / "times.ecsv")
    network, refinement, sampler = table["seconds"][:3]
    assert 0 < network < refinement < sampler
    assert table["over_network"][0] == 1


@pytest.mark.skipif(find_spec("pysersic") is not None, reason="pysersic is installed")
def test_pysersic_is_asked_for(tmp_path):
    answer = CliRunner().invoke(pysersic_nuts.main, ["--output", str(tmp_path / "out")])
    assert answer.exit_code == 1
    assert "pysersic is not installed: pip install" in answer.output


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pysersic") is None, reason="pysersic is not installed")
def test_pysersic(tmp_path):
    answer = CliRunner().invoke(pysersic_nuts.main, ["--output", str(tmp_path / "out")], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(tmp_path / "out" / "pysersic_nuts.ecsv")
    assert (table["renderers_chi_square"] < 1).all()
    assert np.isfinite([table[name] for name in table.colnames[2:]]).all()
