"""What is in a set is counted and compared; a set unlike the published one shows."""

from dataclasses import replace

import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import training_sets
from probdeblend.scene import Blend, Instrument
from probdeblend.simulation.galsim import render_torch, simulate_blends
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends

HST = Instrument.candels_f160w()


def stored(path, prior, count=120):
    write_blends(path, simulate_blends(count, prior=prior, instrument=HST, seed=2, render=render_torch), instrument=HST)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("sets") / "set", Prior.published())


@pytest.mark.slow
def test_a_published_set_looks_published(tmp_path, published):
    output = tmp_path / "out"
    answer = CliRunner().invoke(training_sets.main, [str(published), "--output", str(output)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert sorted(entry.name for entry in output.iterdir()) == sorted(training_sets.FILES)
    table = Table.read(output / "training_sets.ecsv")
    numbers = dict(zip(table["measure"], table["set"], strict=True))
    assert numbers["blends"] == numbers["with 2 galaxies"] == 120
    assert sum(numbers[f"fraction with {name} detected"] for name in training_sets.DETECTED) == pytest.approx(1)
    assert max(numbers[f"distance in {label}"] for label in training_sets.LABELS.values()) < 0.17
    assert numbers["distinct real galaxies"] == 0


@pytest.mark.slow
def test_another_population_shows(tmp_path):
    prior = replace(Prior.default(), separation="anywhere", crowding=(0.4, 0.3, 0.3))
    found = training_sets.inspect_set(stored(tmp_path / "set", prior))
    assert set(found.galaxies) == {1, 2, 3}
    assert found.distance["separation"] > 0.3
    assert found.distance["magnitude"] > 0.15


@pytest.mark.slow
def test_the_published_table(published, data_dir):
    found = training_sets.inspect_set(published, table=data_dir / "boucaud2020/test_results.csv", detect=2)
    assert sum(found.detected.values()) == 2
    assert len(found.reference["separation"]) == 4776
    assert max(found.distance.values()) < 0.2
    table = found.table()
    detected = table[[name.startswith("fraction with") for name in table["measure"]]]["reference"]
    assert detected.sum() == pytest.approx(1)


def test_a_set_needs_truth(tmp_path):
    write_blends(tmp_path / "bare", [Blend(torch.randn(2, 1, 128, 128), torch.ones(2))], instrument=HST)
    with pytest.raises(ValueError, match="bare: the set must have truth, got one without"):
        training_sets.inspect_set(tmp_path / "bare")
