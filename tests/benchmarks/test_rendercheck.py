import numpy as np
import pytest

from benchmarks import render as rendercheck
from benchmarks.render import render_check, tabulate
from probdeblend.scene import Instrument


@pytest.fixture(scope="module")
def table():
    return render_check(indices=(0.8, 2.0), radii=(0.1, 0.6))


def test_small_grid_keeps_the_limits(table):
    assert table.colnames[:4] == ["sersic_index", "half_light_radius", "peak_error", "flux_error"]
    assert len(table) == 4
    assert table["passed"].all()
    assert (table["peak_error"] < 3e-4).all()
    assert (table["peak_limit"] == 1e-3).all()
    assert str(table["half_light_radius"].unit) == "arcsec"
    assert table.meta["speed_ratio"] == pytest.approx(table.meta["galsim_time"] / table.meta["torch_time"])


def test_is_deterministic(table):
    again = render_check(indices=(0.8, 2.0), radii=(0.1, 0.6), rng=np.random.default_rng(0))
    assert (again["peak_error"] == table["peak_error"]).all()
    other = render_check(indices=(0.8,), radii=(0.1,), rng=np.random.default_rng(1))
    assert other["peak_error"][0] != table["peak_error"][0]


def test_text(table):
    lines = tabulate(table).splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("index  radius  peak error")
    assert "EXCEEDED" not in tabulate(table)
    assert "times faster" in lines[-1]
    wrong = table.copy()
    wrong["passed"][1] = False
    assert tabulate(wrong).splitlines()[2].endswith("LIMIT EXCEEDED")


def test_sees_a_wrong_renderer(monkeypatch):
    """A tenth of a pixel too far, and half a percent too bright."""
    true = rendercheck.render

    def wrong(components, psf, **options):
        return true(components, psf, **options).roll(1, -1) * 0.1 + 0.905 * true(components, psf, **options)

    monkeypatch.setattr(rendercheck, "render", wrong)
    table = render_check(indices=(1.0,), radii=(0.3,))
    assert not table["passed"][0]
    assert table["peak_error"][0] > 1e-3
    assert table["flux_error"][0] == pytest.approx(0.005, rel=0.1)


def test_looser_limits_beyond():
    table = render_check(Instrument.candels_f160w(), indices=(0.5,), radii=(1.2,))
    assert table["peak_limit"][0] == 2e-3
    assert table["flux_limit"][0] == 1e-2


@pytest.mark.slow
def test_full_grid():
    table = render_check()
    assert table["passed"].all(), tabulate(table)
    assert table.meta["speed_ratio"] > 10


def test_blends_of_the_prior_agree_and_are_faster():
    speed = rendercheck.scene_check(3, seed=1)
    assert speed.peak_error < 1e-3
    assert speed.torch_rate > speed.galsim_rate
    assert str(speed).startswith("3 blends of the prior: ")
