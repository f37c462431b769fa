"""How irregular galaxies are: measured, compared with real ones, and what is said where statmorph is missing."""

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import irregularity
from benchmarks.irregularity import AUTO, compared
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.profiles import Components, render

RMS = 0.03


def galaxy(*, knot=0.0, index=1.0, flux=300.0):
    """A Sérsic galaxy with so much of its light in a knot on one side, and its PSF."""
    camera = Camera.candels_f160w()
    columns = [(1 - knot, knot), (0.5, 0.08), (index, 1.0), (0.7, 1.0), (0.5, 0.0), (64.0, 72.0), (64.0, 70.0)]
    light = Components(*(torch.tensor([pair]) for pair in columns), torch.ones(1, 2, dtype=torch.bool))
    image = flux * render(light, camera.psf[0], pixel_scale=camera.pixel_scale, size=128)[0].double().numpy()
    return image + RMS * np.random.default_rng(0).normal(size=image.shape), camera.psf[0].double().numpy()


@pytest.fixture(scope="module")
def statmorph():
    return pytest.importorskip("statmorph", reason="statmorph is not installed")


def test_what_differs_stands_out():
    """Samples of one distribution lie within the distance that chance makes, others do not; NaN is left out."""
    rng = np.random.default_rng(0)
    found = {kind: {AUTO: rng.normal(shift, 1, 200)} for kind, shift in (("real", 0), ("same", 0), ("other", 1))}
    found["same"][AUTO][3] = np.nan
    table = compared(found)
    by_chance = table.meta["distance by chance, 95 %"]
    assert by_chance == pytest.approx(0.136)
    assert table["same: distance"][0] < by_chance < 0.3 < table["other: distance"][0]
    assert table["other"][0] - table["real"][0] == pytest.approx(1, abs=0.3)
    assert table.meta["galaxies, same"] == 200


def test_without_statmorph_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "statmorph", None)
    answer = CliRunner().invoke(irregularity.main, ["--output", str(tmp_path / "out")])
    assert answer.exit_code == 1
    assert "statmorph is needed: pip install 'probdeblend[benchmarks]'" in answer.output


@pytest.mark.slow
def test_a_knot_and_a_steep_profile_are_seen(statmorph):
    smooth, knotty, steep = (
        irregularity.measure(statmorph, image, RMS, psf)
        for image, psf in (galaxy(), galaxy(knot=0.15), galaxy(index=3.5))
    )
    assert smooth["Sersic index"] == pytest.approx(1, abs=0.15)
    assert knotty["asymmetry"] > smooth["asymmetry"] + 0.1
    assert knotty["Sersic chi-square"] > 1.2 * smooth["Sersic chi-square"]
    assert steep["concentration"] > smooth["concentration"] + 0.3
    assert -0.2 < smooth[AUTO] < 0.05
    assert irregularity.measure(statmorph, *[galaxy(flux=1.0)[0], RMS, galaxy()[1]]) is None


@pytest.mark.slow
def test_irregularity(run, statmorph, data_dir):
    table = run(irregularity, "--count", "3", weighted=False)
    assert table.colnames[:3] == ["measure", "real", "simulated"]
    assert set(table["measure"]) == {*irregularity.MEASURES, AUTO}
    assert np.isfinite(table["real"]).all()
    assert ((table["simulated: distance"] > 0) & (table["simulated: distance"] <= 1)).all()
