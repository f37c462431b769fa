"""Refinement against the bound on what can be known."""

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import refinement


@pytest.fixture
def normal():
    """Truths of 800 fluxes, and a function that draws posteriors of them: right ones for a claim of one."""
    rng = np.random.default_rng(3)
    truth, bound = rng.normal(8, 1, (400, 2)), np.full((400, 2), 0.1)

    def draw(claim):
        middle = truth + bound * rng.normal(size=truth.shape)
        return middle + claim * bound * rng.normal(size=(200, *truth.shape))

    return truth, bound, draw


def test_a_posterior_at_the_bound(normal):
    truth, bound, draw = normal
    drawn = draw(1.0)
    drawn[:, :10] = np.nan  # abstentions
    row = refinement.summarize(drawn, truth, bound)
    # The NMAD of 780 errors is known to 4 %, coverage to 0.017, that of both at once to 0.024.
    assert row["nmad_over_bound"] == pytest.approx(1, abs=0.15)
    assert row["coverage_68"] == pytest.approx(0.68, abs=0.06)
    assert row["coverage_95"] == pytest.approx(0.95, abs=0.03)
    assert row["joint_68"] == pytest.approx(0.68, abs=0.08)
    assert row["joint_95"] == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(("claim", "low", "high"), [(0.5, 0.3, 0.5), (2.0, 0.9, 1.0)])
def test_a_posterior_too_narrow_or_too_wide(normal, claim, low, high):
    truth, bound, draw = normal
    row = refinement.summarize(draw(claim), truth, bound)
    assert row["nmad_over_bound"] == pytest.approx(1, abs=0.15)
    assert low < row["coverage_68"] < high
    assert not 0.6 < row["joint_68"] < 0.76


@pytest.mark.slow
def test_the_command(tmp_path):
    output = tmp_path / "refinement"
    settings = ["--count", "2", "--draws", "100", "--output", str(output)]
    answer = CliRunner().invoke(refinement.main, settings, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(output / "refinement.ecsv")
    assert table["method"].tolist() == ["refined", "network"]
    assert (table["nmad_over_bound"] > 0).all()
    assert (table["seconds"] > 0).all()
    assert table.meta["blends"] == 2
    assert 0 < table.meta["effective"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["refinement"]
    again = CliRunner().invoke(refinement.main, [*settings, "--overwrite", "--resume"])
    assert again.exit_code == 1
    assert "nothing to resume" in again.output
