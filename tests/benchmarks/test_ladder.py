"""Each rung changes one thing; the command writes one row per rung and state, and resumes."""

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import ladder


@pytest.mark.parametrize("rung", ladder.RUNGS)
@pytest.mark.slow
def test_rungs_change_one_thing(rung):
    names = (rung, "all types, as trained on")
    blend, usual = (ladder.rung_mixture(name).stream(batch_size=4, seed=1).blend(0) for name in names)
    changed = {
        "photon noise of 300 s": blend.exposure[0] == 300,
        "sky noise twice as high": np.isclose(blend.sky_rms[0], 6e-3),
        "sky noise beyond the training": np.isclose(blend.sky_rms[0], 2e-2),
        "bulges with disks": (blend.galaxy_type == 2).all(),
        "irregular, knotty": (blend.galaxy_type == 3).all(),
        "all types, as trained on": True,
    }.get(rung, not np.array_equal(blend.image, usual.image))
    assert changed


@pytest.mark.slow
def test_the_command_resumes(tmp_path, monkeypatch):
    """High sky noise widens the posterior; the rungs of an interrupted run are kept."""
    options = ["--count", "40", "--draws", "64", "--passes", "4", "--output", str(tmp_path / "ladder")]
    made, compare = [], ladder.compare

    def interrupted(*arguments, **settings):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return compare(*arguments, **settings)

    monkeypatch.setattr(ladder, "compare", interrupted)
    assert CliRunner().invoke(ladder.main, options).exit_code == 1
    answer = CliRunner().invoke(ladder.main, [*options, "--resume"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert len(made) == 4 + len(ladder.RUNGS) - 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ladder", "ladder.ecsv", "ladder.png"]
    table = Table.read(tmp_path / "ladder/ladder.ecsv")
    assert list(dict.fromkeys(table["rung"])) == list(ladder.RUNGS)
    assert ((table["coverage_68"] > 0.2) & (table["coverage_68"] < 1)).all()
    network = {row["rung"]: row for row in table if row["state"] == "network"}
    usual = network["all types, as trained on"]
    assert network["sky noise beyond the training"]["width"] > usual["width"]
    assert usual["unfamiliar"] < 0.1
