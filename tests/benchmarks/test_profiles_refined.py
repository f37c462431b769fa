"""Refinement of galaxies that violate the model."""

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import profiles
from probdeblend.refinement.model import BlendModel
from probdeblend.scene import Instrument
from probdeblend.simulation.prior import Prior


def test_what_is_counted():
    """Of twelve blends, six are far off, of which four are flagged."""
    off = np.arange(12) < 6
    error = np.where(off, 5.0, 0.5)[:, None] * np.ones(2)
    inside = np.full((12, 2), 0.1)
    row = profiles.summarize(np.arange(12) >= 4, inside, inside, error)
    assert row["blends"] == 12
    assert row["refined"] == pytest.approx(8 / 12)
    assert row["far"] == row["ungated_68"] == 0.5
    assert row["caught"] == pytest.approx(4 / 6)
    assert row["false_flags"] == 0
    assert row["network_68"] == row["answer_68"] == 1
    assert np.isnan(profiles.summarize(np.ones(12, bool), inside, inside, inside)["caught"])


def test_blends_of_every_kind():
    """Same seed, same blends; truths are the light of the images."""
    model = BlendModel(Prior.default(), Instrument.candels_f160w())
    for kind in profiles.KINDS:
        (observed, truth), (again, _) = (profiles.draw_blends(model, kind, range(2), seed=3) for _ in range(2))
        np.testing.assert_array_equal(observed.image, again.image)
        held = observed.image.double().sum((-2, -1)).numpy()
        noise = 3 * 128 * 2.25**0.5
        assert (np.abs(held - truth.sum(1)) < 0.25 * truth.sum(1) + 4 * noise).all()


@pytest.mark.slow
def test_the_command(tmp_path):
    output = tmp_path / "profiles"
    settings = ["--count", "1", "--draws", "100", "--kind", profiles.KINDS[2], "--output", str(output)]
    answer = CliRunner().invoke(profiles.main, settings, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    table = Table.read(output / "profiles.ecsv")
    assert table["model"].tolist() == ["any index", "exponential"]
    assert (table["galaxies"] == profiles.KINDS[2]).all()
    assert (table["blends"] == 1).all()
    for name in ("refined", "network_68", "ungated_68", "answer_68", "far"):
        assert ((table[name] >= 0) & (table[name] <= 1)).all()
