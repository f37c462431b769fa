"""The torch renderer against GalSim."""

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import render


def test_profiles_agree(rng):
    table = render.compare_profiles(indices=(0.8,), radii=(0.1, 1.2), rng=rng)
    assert table["passed"].all()
    assert table["peak_limit"].tolist() == [1e-3, 2e-3]
    assert (table["peak_error"] < 3e-4).all()


def test_a_wrong_renderer_exceeds_the_limits(monkeypatch, rng):
    """A tenth of a pixel too far, and half a percent too bright."""
    true = render.render

    def wrong(components, psf, **options):
        return true(components, psf, **options).roll(1, -1) * 0.1 + 0.905 * true(components, psf, **options)

    monkeypatch.setattr(render, "render", wrong)
    table = render.compare_profiles(indices=(1.0,), radii=(0.3,), rng=rng)
    assert not table["passed"][0]
    assert table["peak_error"][0] > 1e-3
    assert table["flux_error"][0] == pytest.approx(0.005, rel=0.1)


@pytest.mark.slow
def test_the_command(tmp_path):
    output = tmp_path / "render"
    answer = CliRunner().invoke(render.main, ["--pairs", "2", "--output", str(output)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(output / "render.ecsv")
    assert table["passed"].all()
    assert len(table) == 6
    assert np.isfinite([table[name] for name in ("peak_error", "flux_error", "galsim_time")]).all()
    assert table.meta["pairs"] == 2
    assert table.meta["pairs_peak_error"] < 1e-3
    assert table.meta["pairs_torch_rate"] > table.meta["pairs_galsim_rate"]
    again = CliRunner().invoke(render.main, ["--output", str(output)])
    assert again.exit_code == 1
    assert "exists already; --overwrite replaces it" in again.output
