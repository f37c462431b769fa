"""A survey shared by many workers: no image is lost, and time is what follows from that of each image."""

import numpy as np
import pytest

from benchmarks import survey_plan
from benchmarks.survey_plan import simulated


def test_equal_images_keep_all_workers_busy(monkeypatch):
    monkeypatch.setattr(survey_plan, "SCATTER", 0.0)
    monkeypatch.setattr(survey_plan, "LIFE", np.inf)
    row = simulated(np.array([8.64]), 10, 10_000, seed=0)
    assert row["busy"] == pytest.approx(1)
    assert row["days"] == pytest.approx(0.1)  # 1,000 images per worker
    assert row["again"] == 0
    assert row["tail_hours"] == pytest.approx(8.64 / 3600)


def test_a_worker_that_dies_costs_time_and_no_image(monkeypatch):
    """Images of 100 s and workers that live for 1,000: one image in ten begins again, and each death costs a minute."""
    monkeypatch.setattr(survey_plan, "LIFE", 1000.0)
    row = simulated(np.array([100.0]), 20, 10**5, seed=0)
    assert row["again"] == pytest.approx(0.105, abs=0.01)  # exp(100 / 1000) - 1
    assert 0.8 < row["busy"] < 0.95
    assert row["days"] * 86400 * 20 > 100.0 * 10**5 / 0.95


@pytest.mark.slow
def test_survey_plan(run):
    table = run(survey_plan, "--count", "2", "--side", "256", weighted=False)
    assert table["workers"].tolist() == [100, 1000, 10_000]
    assert (np.diff(table["days"]) < 0).all()
    assert table.meta["CPU milliseconds per source"] > 0
    assert table.meta["bytes per source, catalog.parquet"] > 100
