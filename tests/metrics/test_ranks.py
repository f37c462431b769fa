"""Every diagnostic passes on an exact posterior, and fails on wrong ones that it is made to see."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import group_pit, interval_score, joint_pit, pit

BLENDS, DRAWS = 2000, 120
COVARIANCE = np.array([[1.0, -0.85], [-0.85, 1.0]])
WRONG = ("narrow", "wide", "biased", "uncorrelated")


@cache
def posteriors(kind="exact", *, seed=1):
    """Draws and truths of pairs whose posterior widths differ from blend to blend."""
    rng = np.random.default_rng(seed)
    scale = np.exp(0.5 * rng.normal(size=(BLENDS, 1)))
    mean = 10 + 3 * rng.normal(size=(BLENDS, 2))
    truth = mean + scale * rng.multivariate_normal([0, 0], COVARIANCE, size=BLENDS)
    covariance = np.diag(np.diag(COVARIANCE)) if kind == "uncorrelated" else COVARIANCE
    noise = rng.multivariate_normal([0, 0], covariance, size=(DRAWS, BLENDS))
    width = {"narrow": 0.7, "wide": 1.5}.get(kind, 1.0)
    shift = 0.5 * scale if kind == "biased" else 0.0
    draws = mean + shift + width * scale * noise
    return draws, truth


def values(diagnostic, kind):
    draws, truth = posteriors(kind)
    return {
        "pit": lambda: pit(draws[..., 0], truth[:, 0]),
        "total": lambda: pit(draws.sum(-1), truth.sum(-1)),
        "joint_pit": lambda: joint_pit(draws, truth),
    }[diagnostic]()


SEES = {
    "pit": ("narrow", "wide", "biased"),
    "total": WRONG,
    "joint_pit": WRONG,
}


@pytest.mark.parametrize("diagnostic", SEES)
def test_exact_posteriors_pass(diagnostic, false_alarm):
    found = values(diagnostic, "exact")
    assert stats.kstest(found, "uniform").pvalue > false_alarm


@pytest.mark.parametrize(("diagnostic", "kind"), [(name, kind) for name, kinds in SEES.items() for kind in kinds])
def test_wrong_posteriors_fail(diagnostic, kind, false_alarm):
    found = values(diagnostic, kind)
    assert stats.kstest(found, "uniform").pvalue < false_alarm


@pytest.mark.parametrize("kind", WRONG)
def test_interval_score_worsens(kind):
    """By more than five standard errors of the paired difference, for the total, which sees the correlation."""
    right, wrong = (interval_score(*(part.sum(-1) for part in posteriors(name))) for name in ("exact", kind))
    difference = wrong - right
    assert difference.mean() > 5 * difference.std() / np.sqrt(len(difference))


def test_interval_score_of_an_interval(rng):
    draws = np.linspace(0, 1, 1001)[:, None] * np.ones((1, 3))
    found = interval_score(draws, np.array([0.5, 0.0, 1.0]), level=0.8)
    np.testing.assert_allclose(found, [0.8, 0.8 + 10 * 0.1, 0.8 + 10 * 0.1], atol=1e-6)


def test_non_detections_are_left_out():
    draws, truth = (array.copy() for array in posteriors())
    draws[:, :10] = np.nan
    assert len(pit(draws[..., 0], truth[:, 0])) == BLENDS - 10
    assert len(joint_pit(draws, truth)) == BLENDS - 10


def crowd(*, narrow=1.0, correlated=True, seed=0, draws=100):
    """Draws ``(draw, source, band)`` and truths of 600 groups of one to six sources in two bands, shuffled."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 7, 600)
    group = np.repeat(np.arange(600), size)
    common = rng.normal(size=(draws + 1, 600))[:, group, None]
    own = rng.normal(size=(draws + 1, len(group), 2))
    error = own + 2 * common
    if not correlated:
        error[1:] = np.sqrt(5) * rng.normal(size=error[1:].shape)
    error[1:] *= narrow
    order = rng.permutation(len(group))
    return error[1:, order], error[0, order], group[order]


def test_groups_of_any_size_jointly(false_alarm):
    """Twelve parts and a hundred draws: the rank is exact, since no draw takes part in its own covariance."""
    draws, truth, group = crowd()
    found = group_pit(draws, truth, group)
    assert stats.kstest(found, "uniform").pvalue > false_alarm
    size = np.bincount(group)
    for number in (1, 6):
        assert stats.kstest(found[size == number], "uniform").pvalue > false_alarm


@pytest.mark.parametrize("wrong", [{"narrow": 0.7}, {"narrow": 1.5}, {"correlated": False}])
def test_groups_that_are_wrong(wrong, false_alarm):
    assert stats.kstest(group_pit(*crowd(**wrong)), "uniform").pvalue < false_alarm


def test_groups_keep_their_place():
    draws, truth, group = crowd()
    whole = np.isfinite(group_pit(draws, truth, group))
    assert whole.all()
    draws[:, group == 3, 1], truth[group == 5] = np.nan, np.nan
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(group_pit(draws, truth, group))), [3, 5])
    assert len(group_pit(draws[:, :0], truth[:0], group[:0])) == 0


def test_same_seed_same_values():
    draws, truth = posteriors()
    assert np.array_equal(joint_pit(draws, truth, seed=3), joint_pit(draws, truth, seed=3))
    assert not np.array_equal(joint_pit(draws, truth, seed=3), joint_pit(draws, truth, seed=4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pit(np.ones((5, 3)), np.ones(4)), r"draws must have the shape \(draw, \*\(4,\)\), got"),
        (lambda: pit(np.ones((1, 3)), np.ones(3)), "draws must be at least 2, got 1"),
        (lambda: pit(np.ones((5, 2)), [1, np.nan]), "truth must be finite, got 1 non-finite values"),
        (lambda: joint_pit(np.ones((5, 3)), np.ones(3)), r"truth must have the axes \(group, part\)"),
        (lambda: joint_pit(np.ones((5, 3, 2)), np.ones((3, 2))), "draws must be more than twice the 2 parts, got 5"),
        (lambda: group_pit(np.ones((9, 3)), np.ones(3), [1]), "draws, truth and group must have one row per source"),
        (lambda: interval_score(np.ones((5, 3)), np.ones(3), level=1), "level must be between 0 and 1"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
