"""What the benchmark of real galaxies counts, on errors that are known."""

import numpy as np
import pytest
from scipy import special

from benchmarks.real_galaxies import TELLING, numbers
from probdeblend.posterior.flags import Flag

COUNT = 4000


def answered(rng, scatter, *, strange=1.0):
    """Errors in ln flux of one `scatter`, larger by a factor where the anomaly score is high, quoted as 0.1."""
    anomaly = np.linspace(0, 1, COUNT)
    error = scatter * rng.normal(size=COUNT) * np.where(anomaly > 2 / 3, strange, 1.0)
    rank = special.ndtr(-error / 0.1)
    return {
        "flux": np.ones(COUNT),
        "estimate": np.exp(error),
        "width": np.full(COUNT, 0.1),
        "rank": rank,
        "score": np.full(COUNT, 0.2),
        "snr": np.full(COUNT, 50.0),
        "flags": np.zeros(COUNT, dtype=int),
        "contested": np.tile([0.1, 0.9, 0.1, 0.1], COUNT // 4),
        "anomaly": anomaly,
        "identity": np.repeat(np.arange(COUNT // 10), 10),
        "excess": error / 0.1,
        "group_size": np.full(COUNT, 2),
        "group_joint": np.abs(2 * rank - 1),
        "group_total": rank,
    }


def test_right_error_bars_cover_as_often_as_they_claim():
    """Standard error of a coverage .007; four of them are the tolerance."""
    found = answered(np.random.default_rng(0), 0.1)
    row = numbers(found, found)
    assert row["coverage_68"] == pytest.approx(0.68, abs=0.03)
    assert row["coverage_95"] == pytest.approx(0.95, abs=0.015)
    assert row["joint_68"] == pytest.approx(0.68, abs=0.03)
    assert row["low_68"] < row["coverage_68"] < row["high_68"]
    assert row["excess"] == pytest.approx(1.0, abs=0.06)
    assert row["ratio_familiar"] == pytest.approx(row["ratio_strange"], rel=0.15)
    assert row["galaxies"] == COUNT // 10


@pytest.mark.parametrize(("scatter", "covered"), [(0.2, 0.38), (0.05, 0.954)])
def test_too_narrow_and_too_wide_error_bars_are_seen(scatter, covered):
    found = answered(np.random.default_rng(1), scatter)
    assert numbers(found, found)["coverage_68"] == pytest.approx(covered, abs=0.03)


def test_errors_that_grow_with_the_anomaly_score_are_seen():
    found = answered(np.random.default_rng(2), 0.1, strange=2.0)
    row = numbers(found, found)
    assert row["ratio_strange"] / row["ratio_familiar"] == pytest.approx(2.0, rel=0.15)


def test_flags_are_judged_by_the_errors_that_they_tell_of():
    """Of four errors beyond three sigma three are flagged, and one of the others; a flag of no doubt does not count."""
    found = answered(np.random.default_rng(3), 0.0)
    found["estimate"][:4] = np.exp(0.5)
    found["flags"][[0, 1, 2, 9]] = int(Flag.DOUBTFUL)
    found["flags"][3:9] = int(next(flag for flag in Flag if not flag & TELLING))
    row = numbers(found, found)
    assert row["caught"] == 0.75
    assert row["false_flags"] == pytest.approx(1 / (COUNT - 4))
    assert row["beyond"] == pytest.approx(4 / COUNT)


def test_scatter_beside_another_code_is_that_of_the_sources_it_finds():
    found = answered(np.random.default_rng(4), 0.1)
    found["estimate"][: COUNT // 2] *= 3
    other = {"estimate": np.where(np.arange(COUNT) < COUNT // 2, np.nan, 1.0)}
    assert numbers(found, other)["of_sep"] == pytest.approx(0.1086, rel=0.1)
    assert numbers(found, other)["wrong"] == pytest.approx(0.5, abs=0.01)
    assert numbers(found, other)["wrong_contested"] == pytest.approx(0.25, abs=0.01)
