"""What a set holds is counted and compared; a set unlike the published one shows."""

from dataclasses import replace

import pytest
import torch

from benchmarks import training_sets as inspection
from probdeblend.scene import Blend, Instrument
from probdeblend.simulation.galsim import render_torch, simulate_blends
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends

HST = Instrument.candels_f160w()


def stored(path, prior, count=120):
    write_blends(path, simulate_blends(count, prior=prior, instrument=HST, seed=2, render=render_torch), instrument=HST)
    return path


@pytest.mark.slow
def test_a_published_set_looks_published(tmp_path):
    found = inspection.inspect_set(stored(tmp_path / "set", Prior.published()), progress=False)
    assert found.blends == 120
    assert dict(found.galaxies) == {2: 120}
    assert sum(found.detected.values()) == 120
    assert max(found.distance.values()) < 0.17
    assert "120 blends by number of galaxies: 120 with 2" in inspection.report(found)
    names = inspection.write_inspection(tmp_path / "pictures", found)
    assert sorted(entry.name for entry in (tmp_path / "pictures").iterdir()) == sorted(names)
    with pytest.raises(FileExistsError):
        inspection.write_inspection(tmp_path / "pictures", found)


@pytest.mark.slow
def test_another_population_shows(tmp_path):
    prior = replace(Prior.default(), separation="anywhere", crowding=(0.4, 0.3, 0.3))
    found = inspection.inspect_set(stored(tmp_path / "set", prior), progress=False)
    assert set(found.galaxies) == {1, 2, 3}
    assert found.distance["separation"] > 0.3
    assert found.distance["magnitude"] > 0.15
    assert found.identities == 0


@pytest.mark.slow
def test_the_published_table(tmp_path, data_dir):
    path = stored(tmp_path / "set", Prior.published())
    found = inspection.inspect_set(path, table=data_dir / "boucaud2020/test_results.csv", progress=False)
    assert found.reference_name == "published table"
    assert len(found.reference["separation"]) == 4776
    assert max(found.distance.values()) < 0.2


def test_a_set_needs_truth(tmp_path):
    write_blends(tmp_path / "bare", [Blend(torch.randn(2, 1, 128, 128), torch.ones(2))], instrument=HST)
    with pytest.raises(ValueError, match="bare: the set must have truth, got one without"):
        inspection.inspect_set(tmp_path / "bare", progress=False)
