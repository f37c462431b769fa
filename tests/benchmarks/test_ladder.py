import numpy as np
import pytest

import probdeblend
from benchmarks.ladder import RUNGS, climb, rung_blends


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.slow
def test_rungs_change_one_thing(rung):
    blend = next(iter(rung_blends(rung, 4, seed=1)))
    usual = next(iter(rung_blends("all types, as trained on", 4, seed=1)))
    assert len(blend) == 4
    changed = {
        "photon noise of 300 s": blend.exposure[0] == 300,
        "sky noise twice as high": np.isclose(blend.sky_rms[0], 6e-3),
        "sky noise beyond the training": np.isclose(blend.sky_rms[0], 2e-2),
        "bulges with disks": (blend.galaxy_type == 2).all(),
        "irregular, knotty": (blend.galaxy_type == 3).all(),
        "all types, as trained on": True,
    }.get(rung, not np.array_equal(blend.image, usual.image))
    assert changed


def test_unknown_rung():
    with pytest.raises(ValueError, match="rung must be one of all types, as trained on"):
        rung_blends("fog", 3)


@pytest.mark.slow
def test_the_ladder_is_climbed():
    """Too much sky noise is flagged; the table holds every rung."""
    table = climb(probdeblend.load(), count=40, draws=64, passes=4, progress=False)
    assert list(dict.fromkeys(table["rung"])) == list(RUNGS)
    assert ((table["coverage_68"] > 0.2) & (table["coverage_68"] < 1)).all()
    network = {row["rung"]: row for row in table if row["state"] == "network"}
    usual = network["all types, as trained on"]
    assert network["sky noise beyond the training"]["width"] > usual["width"]
    assert usual["unfamiliar"] < 0.1
