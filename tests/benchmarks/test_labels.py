"""The labels of pixels: a network is trained on a stored set and scored on other blends."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from click.testing import CliRunner

from benchmarks import labels
from probdeblend.networks.fcn import LABELS, FullyConvolutional
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import render_torch, simulate_blends
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "pairs"
    hst = Instrument.candels_f160w()
    settings = {
        "prior": replace(Prior.published(), separation="anywhere"),
        "instrument": hst,
        "seed": 1,
        "render": render_torch,
    }
    write_blends(path, simulate_blends(60, **settings), instrument=hst)
    return path


def test_scores_of_labels():
    counts = np.diag([90, 6, 4, 0])
    counts[0, 1] = 10
    table = labels.labels_table(counts)
    np.testing.assert_allclose(table["iou"], [0.9, 6 / 16, 1, np.nan])
    np.testing.assert_allclose(table["pixels"], np.array([100, 6, 4, 0]) / 110)
    assert table["as_first"][0] == pytest.approx(0.1)


@pytest.mark.slow
def test_the_command_learns_and_resumes(pairs, tmp_path, monkeypatch):
    """Training that is interrupted before its scores are known starts from its checkpoint."""
    before = labels.labels_table(labels.confusion(FullyConvolutional(), pairs, start=54))
    output = tmp_path / "labels"
    options = [str(pairs), "--steps", "60", "--batch-size", "8", "--output", str(output)]

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(labels, "confusion", interrupted)
        assert CliRunner().invoke(labels.main, options).exit_code == 1
    assert (tmp_path / "labels.partial/labels.checkpoint").is_file()
    answer = CliRunner().invoke(labels.main, [*options, "--resume"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["labels", "labels.ecsv"]
    table = Table.read(output / "labels.ecsv")
    assert table["label"].tolist() == list(LABELS)
    assert table["pixels"].sum() == pytest.approx(1)
    assert np.nanmean(table["iou"][:3]) > np.nanmean(before["iou"][:3]) + 0.2
