"""Posteriors that are wrong in known ways, repaired, and checked on galaxies that the repair has not seen."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from probdeblend.metrics import expected_coverage, interval_score, joint_pit, pit
from probdeblend.posterior import Calibrator, Flag, Posterior, estimated_features
from probdeblend.posterior.draws import variance_parts
from probdeblend.posterior.groups import FEATURES
from probdeblend.posterior.maps import NODES, QuantileMap, apart, together


@cache
def wrong(count, *, seed, narrow=0.6, shift=0.0, heavy=False, **named):
    """Posteriors of pairs that are too narrow, more so the fainter the galaxy, and too faint."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.uniform(3, 7, (count, 2, 1)))
    width = 0.3 * (truth / 50) ** -0.5
    scatter = rng.standard_t(4, truth.shape) if heavy else rng.normal(size=truth.shape)
    middle = np.log(truth) + width * scatter + shift * width
    factor = narrow * np.where(truth < 150, 0.7, 1.0)
    noise = rng.multivariate_normal([0, 0], [[1, -0.8], [-0.8, 1]], size=(4, 25, count))[..., None]
    flux = np.exp(middle + factor * width * noise)
    x = np.stack([np.full(count, 63.0), 63.0 + rng.uniform(3, 30, count)], -1)
    settings = {"flux_kind": "total", "method": "network", "x": x, "y": np.full((count, 2), 63.0)} | named
    return Posterior.from_draws(flux, **settings), truth


@cache
def fitted(count, **settings):
    return Calibrator.fit(*wrong(count, seed=1, **settings))


def covered(posterior, truth):
    values = pit(posterior.draws("blend", "galaxy", "band").transpose(3, 0, 1, 2), truth)
    return expected_coverage(values)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"narrow": 1.8}, marks=pytest.mark.slow),
        pytest.param({"shift": 0.7}, marks=pytest.mark.slow),
        pytest.param({"heavy": True}, marks=pytest.mark.slow),
    ],
)
def test_repaired_intervals_cover_as_they_say(settings):
    calibrator = fitted(4000, **settings)
    posterior, truth = wrong(4000, seed=2, **settings)
    before, after = covered(posterior, truth), covered(calibrator(posterior), truth)
    assert np.abs(before[:, 1] - before[:, 0]).max() > 0.05
    assert np.abs(after[:, 1] - after[:, 0]).max() < 0.015


def total_and_ratio(posterior, truth):
    """ln of the total flux and of the flux ratio: draws ``(draw, blend, quantity)`` and truths."""
    draws, true = posterior.draws("blend", "galaxy", "band")[:, :, 0], truth[..., 0]
    both = [np.stack([np.log(flux.sum(1)), np.log(flux[:, 0] / flux[:, 1])], 1) for flux in (draws, true)]
    return both[0].transpose(2, 0, 1), both[1]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"narrow": 1.8}, {"shift": 0.7}])
def test_what_is_guaranteed_holds(settings, false_alarm):
    """Total flux and flux ratio; blends that were fitted to scatter as much as those that it is tested on."""
    calibrator = fitted(4000, **settings)
    posterior, truth = wrong(4000, seed=2, **settings)
    draws, true = total_and_ratio(calibrator(posterior), truth)
    for quantity in (0, 1):
        found = expected_coverage(pit(draws[..., quantity], true[:, quantity]), levels=[0.68])
        scatter = np.sqrt(2 * 0.68 * 0.32 / 4000)
        assert abs(found[0, 1] - 0.68) < stats.norm.isf(false_alarm / 2) * scatter


@pytest.mark.slow
def test_each_group_is_repaired(false_alarm):
    """Faint galaxies are more wrong than bright ones: one factor for all would leave both wrong."""
    calibrator = fitted(4000)
    posterior, truth = wrong(4000, seed=2)
    repaired = calibrator(posterior).draws("blend", "galaxy", "band").transpose(3, 0, 1, 2)
    snr = estimated_features(posterior)[..., 0]
    faint = snr < np.median(snr)
    for side in (faint, ~faint):
        before, after = (
            expected_coverage(pit(draws[:, side], truth[side]), levels=[0.68])[0, 1]
            for draws in (posterior.draws("blend", "galaxy", "band").transpose(3, 0, 1, 2), repaired)
        )
        assert before < 0.55
        assert stats.binomtest(round(after * side.sum()), int(side.sum()), 0.68).pvalue > false_alarm


def test_a_new_truth_is_below_a_node_at_its_level(false_alarm):
    """Thirty truths at a time; draws of the map rank one more evenly, tails and all."""
    rng = np.random.default_rng(3)
    below, ranks = [], []
    for _ in range(2000):
        draws, truth = rng.standard_t(4, (1, 200)), rng.standard_t(4, 31)
        learned = QuantileMap.fit(np.repeat(draws, 30, axis=0), truth[:30])
        low, middle, high = np.quantile(draws, (0.16, 0.5, 0.84))
        below.append((truth[30] - middle) / (high - low) * 2 < np.array(learned.wanted))
        ranks.append((learned(draws) < truth[30]).sum())
    share, expected = np.mean(below, 0), np.array(learned.given)
    scatter = np.sqrt(expected * (1 - expected) / 2000)
    assert (np.abs(share - expected) < stats.norm.isf(false_alarm / 2 / len(expected)) * scatter + 1e-5).all()
    inside = stats.binomtest(int(np.sum(np.abs(np.array(ranks) - 100) < 80.4)), 2000, 161 / 201)
    assert inside.pvalue > false_alarm


@pytest.mark.parametrize("method", ["conformal", "floor"])
@pytest.mark.parametrize("count", [2, 5, 1000])
def test_right_draws_hardly_move(method, count):
    """As many truths as draws, at the same places: whatever is learned from them, it is to leave them there."""
    values = np.tile(stats.norm.ppf((np.arange(1000) + 0.5) / 1000), (count, 1))
    truth = stats.norm.ppf((np.arange(count) + 0.5) / count)
    moved = QuantileMap.fit(values, truth, method=method)(values)
    assert np.isfinite(moved).all()
    assert (np.diff(moved, axis=-1) >= 0).all()
    if count == 1000:
        assert np.abs(moved - values)[:, 100:-100].max() < 0.02


def test_a_floor_is_added_in_quadrature(false_alarm):
    """Precise or not, all galaxies lack the same error: one quantile map would leave both wrong."""
    rng = np.random.default_rng(5)

    def lacking(error):
        width = np.where(np.arange(4000) % 2, 0.02, 0.2)
        middle = np.hypot(width, error) * rng.normal(size=4000)
        return middle[:, None] + width[:, None] * rng.normal(size=(4000, 400)), np.zeros(4000)

    floor, whole = (QuantileMap.fit(*lacking(0.1), method=method) for method in ("floor", "conformal"))
    assert floor.wanted[0] == pytest.approx(0.1, rel=0.1)
    values, truth = lacking(0.1)
    for learned, right in ((floor, True), (whole, False)):
        inside = np.abs(2 * pit(learned(values).T, truth) - 1) < 0.68
        for some in (inside[::2], inside[1::2]):
            assert (stats.binomtest(int(some.sum()), 2000, 0.68).pvalue > false_alarm) == right


def test_what_is_too_wide_is_narrowed_by_a_floor_too():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(1000, 400))
    assert QuantileMap.fit(values, 0.5 * rng.normal(size=1000), method="floor").given[0] == pytest.approx(0.5, rel=0.1)


@pytest.mark.slow
def test_the_score_improves():
    calibrator = fitted(4000)
    posterior, truth = wrong(2000, seed=2)
    repaired = calibrator(posterior)
    scores = [
        interval_score(part.draws("blend", "galaxy", "band").transpose(3, 0, 1, 2), truth, level=0.9)
        for part in (posterior, repaired)
    ]
    relative = (scores[1] - scores[0]) / truth
    assert relative.mean() < -5 * relative.std() / np.sqrt(relative.size)


def test_parts_of_the_variance_follow():
    """The parts add up to the variance of the repaired draws, and the central galaxy's draws keep their order."""
    posterior, truth = wrong(400, seed=1)
    within, between = variance_parts(posterior.flux)
    parts = {"flux_variance_within": within, "flux_variance_between": between}
    dims = ("blend", "galaxy", "band")
    posterior = Posterior(posterior.dataset.assign({name: (dims, part) for name, part in parts.items()}))
    repaired = Calibrator.fit(posterior, truth, least=200)(posterior)
    found = repaired.dataset["flux_variance_within"] + repaired.dataset["flux_variance_between"]
    np.testing.assert_allclose(found, repaired.flux.var(("chain", "draw")), rtol=0.05)
    assert float((found / (within + between)).median()) > 1.5
    before, after = (part.flux.isel(galaxy=0, blend=5, band=0).values.argsort(None) for part in (posterior, repaired))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("claimed", [pytest.param(0.0, marks=pytest.mark.slow), -0.95])
def test_the_total_flux_is_repaired(claimed, false_alarm):
    """Errors correlate -0.7; draws that know of no correlation, or of too much, make the total too wide or narrow."""

    def tied(seed):
        rng = np.random.default_rng(seed)
        truth = np.exp(rng.uniform(4, 6, (3000, 2)))
        middle = np.log(truth) + 0.1 * rng.multivariate_normal([0, 0], [[1, -0.7], [-0.7, 1]], 3000)
        noise = rng.multivariate_normal([0, 0], [[1, claimed], [claimed, 1]], size=(1, 100, 3000))
        flux = np.exp(middle + 0.1 * noise)[..., None]
        return Posterior.from_draws(flux, flux_kind="total", method="network"), truth[..., None]

    calibrator = Calibrator.fit(*tied(1))
    posterior, truth = tied(2)
    for part, right in ((posterior, False), (calibrator(posterior), True)):
        total = part.draws("blend", "galaxy", "band")[:, :, 0].sum(1).T
        found = expected_coverage(pit(total, truth.sum(1)[:, 0]), levels=[0.68])[0, 1]
        assert (stats.binomtest(round(found * 3000), 3000, 0.68).pvalue > false_alarm) == right


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_the_pair_is_repaired_jointly(shared):
    """Some blends are hard in total and in ratio alike; draws that know nothing of it are right in each alone."""

    def uneven(seed):
        rng = np.random.default_rng(seed)
        count = 6000
        hard = np.exp(rng.normal(size=(2, count)))
        total_scale, ratio_scale = (hard[0], hard[0]) if shared else hard
        truth = apart(np.exp(rng.uniform(4, 6, (count, 2))), logarithmic=True)
        middle = truth + np.stack([0.02 * total_scale, 0.2 * ratio_scale], 1) * rng.normal(size=(count, 2))
        noise = rng.normal(size=(count, 2, 400)) * np.array([[0.02], [0.2]])
        flux = together(middle[..., None] + noise, logarithmic=True).transpose(2, 0, 1)[None, ..., None]
        return Posterior.from_draws(flux, flux_kind="total", method="network"), together(truth, logarithmic=True)

    posterior, truth = uneven(1)
    calibrator = Calibrator.fit(posterior, truth[..., None])
    independent = replace(calibrator, pairs=_without_ties(calibrator.pairs))
    posterior, truth = uneven(2)
    wrong_by = []
    for repair in (calibrator, independent):
        draws = repair(posterior).draws("blend", "galaxy", "band")[:, :, 0]
        values = joint_pit(np.log(draws).transpose(2, 0, 1), np.log(truth))
        wrong_by.append(abs((values <= 0.5).mean() - 0.5))
    # A calibrator of 6000 blends in groups of 200 is itself known to a few percent.
    assert wrong_by[0] < 0.035
    assert not shared or wrong_by[1] > 0.035


def _without_ties(group):
    """Return groups of pairs whose total and ratio err independently."""
    if group.below is not None:
        return replace(group, below=_without_ties(group.below), above=_without_ties(group.above))
    rng = np.random.default_rng(0)
    places = np.array(group.repair.places)
    places[:, 1] = rng.permutation(places[:, 1])
    return replace(group, repair=replace(group.repair, places=tuple(map(tuple, places.tolist()))))


def test_a_total_that_is_known_stays_known():
    """The total of inseparable galaxies is known to 2 %: maps of the single fluxes would lose that."""
    rng = np.random.default_rng(3)
    total, log_ratio = np.log(rng.uniform(100, 1000, 2000)), rng.normal(0, 1, (2000,))
    truth = together(np.stack([total, log_ratio], 1), logarithmic=True)
    drawn = np.stack([total[:, None] + 0.02 * rng.normal(size=(2000, 1)) + 0.02 * rng.normal(size=(2000, 100))], 1)
    drawn = np.concatenate([drawn, 1.5 * rng.normal(size=(2000, 1, 100))], 1)
    flux = together(drawn, logarithmic=True).transpose(2, 0, 1)[None, ..., None]
    posterior = Posterior.from_draws(flux, flux_kind="total", method="network")
    calibrator = Calibrator.fit(posterior.select(slice(1000)), truth[:1000, :, None])
    rest, wanted = posterior.select(slice(1000, None)), truth[1000:]
    repaired = np.log(calibrator(rest).draws("blend", "galaxy", "band")[:, :, 0].sum(1))
    error = np.median(repaired, -1) - np.log(wanted.sum(1))
    assert not calibrator.singly
    assert np.median(np.abs(error)) < 1.1 * np.median(np.abs(rng.normal(0, 0.02, 100_000)))
    assert 0.64 < (np.abs((repaired < np.log(wanted.sum(1))[:, None]).mean(-1) - 0.5) < 0.34).mean() < 0.72
    # With fluxes repaired one by one first, totals are off farther.
    singly = replace(calibrator, singly=True)
    lost = np.log(singly(rest).draws("blend", "galaxy", "band")[:, :, 0].sum(1))
    assert np.median(np.abs(np.median(lost, -1) - np.log(wanted.sum(1)))) > 1.15 * np.median(np.abs(error))
    # Where widths of both fluxes are wrong and totals no better, fluxes come first.
    assert fitted(500).singly


@pytest.mark.parametrize("logarithmic", [True, False])
def test_fluxes_come_back_from_total_and_ratio(logarithmic):
    flux = np.exp(np.random.default_rng(0).normal(size=(50, 2, 7)) * 5) + (0 if logarithmic else -1)
    np.testing.assert_allclose(together(apart(flux, logarithmic=logarithmic), logarithmic=logarithmic), flux, rtol=1e-9)


@pytest.mark.slow
def test_groups_hold_enough_galaxies():
    posterior, truth = wrong(3000, seed=1)
    calibrator = Calibrator.fit(posterior, truth)
    leaves = calibrator.root.leaves()
    assert len(leaves) > 8
    assert min(leaf.galaxies for leaf in leaves) >= 200
    assert sum(leaf.galaxies for leaf in leaves) == 6000
    assert {leaf.galaxies for leaf in Calibrator.fit(posterior, truth, least=4000).root.leaves()} == {6000}
    repeated = Calibrator.fit(posterior, truth, galaxies=np.arange(6000).reshape(3000, 2) % 300)
    assert {200 <= leaf.galaxies <= 300 for leaf in repeated.root.leaves()} == {True}
    with pytest.raises(ValueError, match="at least 200 galaxies with draws are needed to fit, got 150"):
        Calibrator.fit(posterior, truth, galaxies=np.arange(6000).reshape(3000, 2) % 150)


def test_draws_that_are_not_positive():
    """Normal errors, as SEP quotes them."""

    def quoted(seed):
        rng = np.random.default_rng(seed)
        truth = rng.uniform(1, 10, (3000, 2, 1))
        measured = truth + 2 * rng.normal(size=truth.shape)
        return Posterior.from_draws(
            measured + rng.normal(size=(1, 100, 3000, 2, 1)), flux_kind="auto", method="sep"
        ), truth

    calibrator = Calibrator.fit(*quoted(1))
    assert not calibrator.logarithmic
    posterior, truth = quoted(2)
    after = covered(calibrator(posterior), truth)
    assert np.abs(after[:, 1] - after[:, 0]).max() < 0.02


def test_non_detections_stay():
    (posterior, truth), calibrator = wrong(500, seed=1), fitted(500)
    flux = posterior.flux.values.copy()
    flux[:, :, 3, 1] = np.nan
    holes = Posterior(posterior.dataset.assign(flux=(posterior.flux.dims, flux, posterior.flux.attrs)))
    repaired = calibrator(holes)
    assert np.isnan(repaired.flux.values[:, :, 3, 1]).all()
    assert np.isfinite(repaired.flux.values[:, :, 3, 0]).all()
    assert len(Calibrator.fit(holes, truth).root.leaves()) >= 1


def test_galaxies_beyond_the_fitted_ones_are_flagged():
    calibrator = fitted(500)
    posterior, _ = wrong(20, seed=2)
    far = posterior.dataset.assign(x=posterior.dataset["x"] + [[0, 60]])
    assert not (calibrator(posterior).flags.values & Flag.OUTSIDE_CALIBRATION).any()
    assert (calibrator(Posterior(far)).flags.values & Flag.OUTSIDE_CALIBRATION).all()


def test_a_calibrator_comes_back(tmp_path):
    posterior, truth = wrong(500, seed=1)
    calibrator = Calibrator.fit(posterior, truth, fitted_on="made up")
    calibrator.save(tmp_path / "c.json")
    again = Calibrator.open(tmp_path / "c.json")
    assert again == calibrator
    assert again(posterior).dataset.attrs["calibrated"] == "made up"
    np.testing.assert_array_equal(again(posterior).flux, calibrator(posterior).flux)
    with pytest.raises(FileExistsError):
        calibrator.save(tmp_path / "c.json")


def test_calibrators_that_do_not_fit(tmp_path):
    (posterior, _), calibrator = wrong(500, seed=1), fitted(500)
    other, _ = wrong(5, seed=1, flux_kind="auto")
    with pytest.raises(
        ValueError, match="posterior must have flux_kind 'total', which the calibrator was fitted to, got 'auto'"
    ):
        calibrator(other)
    with pytest.raises(
        ValueError, match="posterior must have method 'sep', which the calibrator was fitted to, got 'network'"
    ):
        replace(calibrator, subject=calibrator.subject | {"method": "sep"})(posterior)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Calibrator.open(tmp_path / "none.json")
    numbers = json.loads(calibrator.describe())
    for change, message in [
        ({"version": 10}, "must be a calibrator of version 1, got version 10"),
        ({"format": "x"}, "must be a calibrator written by probdeblend, got another file"),
        ({"features": [0.5]}, "must be fitted with the features snr, separation, ratio, brightness, correlation"),
        ({"root": {}}, "damaged calibrator"),
    ]:
        (tmp_path / "c.json").write_text(json.dumps(numbers | change))
        with pytest.raises(ValueError, match=message):
            Calibrator.open(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("no")
    with pytest.raises(ValueError, match=r"c.json: must be a calibrator written by probdeblend"):
        Calibrator.open(tmp_path / "c.json")


def test_truths_that_do_not_fit():
    posterior, truth = wrong(500, seed=1)
    with pytest.raises(ValueError, match=r"truth must have the shape \(blend, galaxy, band\) \(500, 2, 1\), got"):
        Calibrator.fit(posterior, truth[:5])
    with pytest.raises(ValueError, match="truth must be positive and finite for every galaxy"):
        Calibrator.fit(posterior, -truth)
    with pytest.raises(ValueError, match=r"galaxies must have the shape \(blend, galaxy\) \(500, 2\), got"):
        Calibrator.fit(posterior, truth, galaxies=[1])
    with pytest.raises(ValueError, match="least must be at least 2 galaxies, got 1"):
        Calibrator.fit(posterior, truth, least=1)


def test_features_are_estimated():
    posterior, _ = wrong(10, seed=1)
    features = estimated_features(posterior)
    assert features.shape == (10, 2, 1, len(FEATURES))
    x = posterior.dataset["x"].values
    np.testing.assert_allclose(features[:, 0, 0, 1], x[:, 1] - x[:, 0])
    np.testing.assert_allclose(features[:, 0, 0, 2], -features[:, 1, 0, 2])
    assert sorted(NODES) == list(NODES)
    single = Posterior.from_draws(np.ones((1, 5, 3, 1, 1)), flux_kind="total", method="network")
    with pytest.raises(ValueError, match="posterior must be of pairs, got 1 galaxies"):
        estimated_features(single)
