"""What benchmarks of scenes measure: coverage of right and wrong posteriors, and chunks that are kept."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import _scenes
from benchmarks._scenes import compare, joined, match, measure, summary

SCENES = 400


def bounds(count, false_alarm, tests=5):
    """The fraction of `count` values in 68 % intervals, unless something is wrong."""
    return stats.binom.ppf([false_alarm / tests / 2, 1 - false_alarm / tests / 2], count, 0.68) / count


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_right_posterior_is_found_right(truth, posterior, false_alarm, number):
    scene = truth(SCENES, number)
    row = summary(measure(scene, posterior(scene, tied=-0.3)))
    assert row["sources"] == number * SCENES
    assert row["groups"] == SCENES
    assert row["detected"] == 1
    low, high = bounds(SCENES, false_alarm)  # as few as there are scenes are independent
    for name in ("coverage_68", "joint_68", "total_68"):
        assert low < row[name] < high, name
    assert row["nmad_mag"] == pytest.approx(1.0857 * 0.1, rel=0.2)
    assert row["width"] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(("claim", "low", "high"), [(0.5, 0.3, 0.5), (2.0, 0.88, 1.0)])
def test_a_posterior_too_narrow_or_too_wide(truth, posterior, claim, low, high):
    scene = truth(SCENES)
    row = summary(measure(scene, posterior(scene, claim=claim)))
    for name in ("coverage_68", "total_68"):
        assert low < row[name] < high, name
    assert not 0.55 < row["joint_68"] < 0.8


def test_each_flux_may_be_right_and_the_group_wrong(truth, posterior):
    """Claimed errors of neighbors that are independent, where true ones are tied."""
    scene = truth(SCENES)
    right, independent = posterior(scene, tied=-0.8), posterior(scene, tied=0.0, seed=5)
    middle = right.dataset["flux"].values.mean((0, 1)) / scene.flux.numpy()
    wrong = independent.dataset.copy(deep=True)
    wrong["flux"].values[:] *= middle / independent.dataset["flux"].values.mean((0, 1)) * scene.flux.numpy()
    row = summary(measure(scene, type(right)(wrong)))
    assert 0.6 < row["coverage_68"] < 0.76
    assert row["total_68"] > 0.8


def test_missed_sources_are_counted_and_their_groups_left_out(truth, posterior):
    scene = truth(100)
    kept = np.setdiff1d(np.arange(200), [1, 3])
    found = measure(scene, posterior(scene, kept=kept))
    assert np.flatnonzero(match(scene, posterior(scene, kept=kept)) < 0).tolist() == [1, 3]
    assert np.isnan(found["estimate"][[1, 3]]).all()
    row = summary(found)
    assert row["detected"] == 0.99
    assert row["groups"] == 98
    assert np.isfinite([row["joint_68"], row["total_68"]]).all()


def test_faint_sources_do_not_count(truth, posterior):
    scene = truth(50, snr=3.0)
    assert _scenes.truth(scene)["snr"][0] == pytest.approx(3)
    assert summary(measure(scene, posterior(scene)))["sources"] == 0


def test_contested_light(truth):
    """Two sources in one pixel share half of their light; alone there is nothing to share."""
    np.testing.assert_allclose(_scenes.truth(truth(3, 2))["contested"], 0.5)
    np.testing.assert_allclose(_scenes.truth(truth(3, 1))["contested"], 0.0, atol=1e-6)


def test_chunks_are_kept_and_joined(tmp_path, truth, posterior):
    asked = []

    def draw(count, seed):
        asked.append((count, seed))
        if len(asked) == 3 and broken:
            raise OSError("interrupted")
        return truth(count, seed=seed % 1000)

    def answer(scene):
        return measure(scene, posterior(scene))

    broken = True
    with pytest.raises(OSError, match="interrupted"):
        compare(tmp_path, "scenes", 10, draw, {"a": answer}, seed=3, chunk=4)
    broken = False
    found = compare(tmp_path, "scenes", 10, draw, {"a": answer}, seed=3, chunk=4)["a"]
    assert [count for count, _ in asked] == [4, 4, 2, 2]
    assert found["scene"].tolist() == np.repeat(np.arange(10), 2).tolist()
    assert len(found["group_joint"]) == 10
    assert joined([found, found])["scene"].max() == 19
