"""Posteriors that are wrong in known ways, repaired, and checked on sources that the repair has not seen."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probdeblend.metrics import group_pit, pit, reliability
from probdeblend.metrics.arrays import group_total
from probdeblend.posterior import Calibrator, Flag, Posterior
from probdeblend.scene import Scene

SKY_RMS, SIZE = 0.01, 6
FOUR = 4.0  # standard errors: a false alarm in 16,000


@cache
def made(
    groups=1000, *, seed, narrow=1.0, shift=0.0, claimed=-0.6, faint=1.0, kinds=("flux",), bands=1, shape=(SIZE, SIZE)
):
    """Groups of one to four sources, one per scene, whose neighbors' errors are anticorrelated.

    `narrow` and `shift` make all draws too narrow and off, `faint` those of faint sources; `claimed` is the correlation
    with the next source that the posterior claims, in place of -0.6.
    """
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 5, groups)
    group = np.repeat(np.arange(groups), size)
    flux = np.exp(rng.uniform(0, 5, (len(group), bands)))
    width = 0.4 * flux**-0.3

    def noise(*shape, correlation):
        values = rng.normal(size=(*shape, *flux.shape))
        before = np.roll(values, 1, axis=-2)
        before[..., np.flatnonzero(np.diff(group, prepend=-1)), :] = rng.normal(size=(*shape, groups, bands))
        mix = correlation
        return (values + mix * before) / np.sqrt(1 + mix**2)

    middle = np.log(flux) + width * noise(correlation=-0.6) + shift * width
    factor = narrow * np.where(flux < 12, faint, 1.0)
    draws = np.exp(middle + factor * width * noise(4, 25, correlation=claimed))
    image = torch.zeros(groups, bands, *shape)
    one = torch.ones(groups, bands)
    place = {name: torch.full((len(group),), 2.0) for name in "xy"}
    truth = torch.from_numpy(flux)
    scene = Scene(image, SKY_RMS * one, one[..., None, None], 0.06, scene=torch.from_numpy(group), **place, flux=truth,
                  auto_flux=0.9 * truth)  # fmt: skip
    columns = {"sky_rms": np.full(flux.shape, 0.3), "half_light_radius": np.full(len(group), 0.12)}
    columns |= {"contested": rng.random(len(group)), "existence": np.full(len(group), 0.9)}
    given = {"flux": draws, "flux_auto": 0.9 * draws}
    x = np.full(len(group), 2.0)
    posterior = Posterior.from_draws(**{kind: given[kind] for kind in kinds}, scene=group, group=group, x=x, y=x,
                                     bands="gri"[:bands], pixel_scale=0.06, columns=columns)  # fmt: skip
    return posterior, scene


@cache
def fitted(**settings):
    posterior, scene = made(seed=1, **settings)
    return Calibrator.fit([(posterior, scene, np.arange(len(posterior)))])


def flat(posterior, kind="total"):
    draws = posterior.draws(kind).values
    return draws.reshape(-1, *draws.shape[2:])


def covered(draws, truth, level=0.68):
    return (np.abs(2 * pit(draws, truth) - 1) < level).mean()


def tolerance(count):
    """Both the fit's quantiles and the test's fraction scatter."""
    return FOUR * np.sqrt(2 * 0.68 * 0.32 / count)


@pytest.mark.parametrize(
    "settings",
    [{"narrow": 0.5, "kinds": ("flux", "flux_auto")}, {"narrow": 2.0}, {"shift": 1.0}],
    ids=["narrow", "wide", "off"],
)
def test_repaired_intervals_cover_as_they_say(settings):
    posterior, scene = made(seed=2, **settings)
    repaired = fitted(**settings)(posterior)
    truths = {"flux": scene.flux.numpy(), "flux_auto": scene.auto_flux.numpy()}
    for name in settings.get("kinds", ("flux",)):
        before, after = (flat(p, "auto" if "auto" in name else "total") for p in (posterior, repaired))
        assert abs(covered(before, truths[name]) - 0.68) > 0.15
        assert abs(covered(after, truths[name]) - 0.68) < tolerance(before.shape[1])
        assert abs(covered(after, truths[name], 0.95) - 0.95) < 0.02


def test_batches_of_several_cameras():
    """One band too narrow, three bands too wide, in images of other shapes: each is repaired."""
    settings = {1: {"narrow": 0.5}, 3: {"narrow": 2.0, "bands": 3, "shape": (4, 9)}}
    batches = [made(seed=seed, groups=500, **own) for own in settings.values() for seed in (1, 3)]
    calibrator = Calibrator.fit((posterior, scene, np.arange(len(posterior))) for posterior, scene in batches)
    for own in settings.values():
        posterior, scene = made(seed=2, **own)
        before, after = flat(posterior), flat(calibrator(posterior))
        assert abs(covered(before, scene.flux.numpy()) - 0.68) > 0.15
        assert abs(covered(after, scene.flux.numpy()) - 0.68) < tolerance(before.shape[1])


def test_a_batch_in_parts_is_the_same():
    posterior, scene = made(seed=1)
    index = np.arange(len(posterior))
    half = index < np.flatnonzero(posterior.dataset["scene"].values == 500)[0]
    parts = [(posterior.select(np.flatnonzero(own)), scene, index[own]) for own in (half, ~half)]
    assert Calibrator.fit(parts).describe() == fitted().describe()


def test_totals_include_false_detections():
    """A false detection takes half of the light of its neighbor: the total of both is that of the real one."""
    rng = np.random.default_rng(0)
    count = 900
    truth, owner = np.exp(rng.uniform(0, 5, count)), np.repeat(np.arange(count), 2)

    def halved(seed):
        error = np.random.default_rng(seed).normal(size=(101, count))
        draws = truth * np.exp(0.1 * (error[0] + 0.5 * error[1:]))
        return Posterior.from_draws(np.repeat(draws / 2, 2, 1)[None, ..., None], scene=owner, group=owner,
                                    x=np.zeros(2 * count), y=np.zeros(2 * count), pixel_scale=0.06)  # fmt: skip

    one = torch.ones(count, 1)
    place = {name: torch.zeros(count) for name in "xy"}
    scene = Scene(one[..., None, None], one, one[..., None, None], 0.06, scene=torch.arange(count), **place,
                  flux=torch.from_numpy(truth[:, None]))  # fmt: skip
    matched = np.where(np.arange(2 * count) % 2, -1, owner)
    repaired = Calibrator.fit([(halved(1), scene, matched)])(halved(2))
    total = group_total(flat(repaired), owner)
    assert covered(group_total(flat(halved(2)), owner), truth[:, None]) < 0.5
    assert abs(covered(total, truth[:, None]) - 0.68) < tolerance(count)


def test_colors():
    """Bands err alike, which the posterior does not know: its colors are too wide."""

    def alike(seed, count=900):
        rng = np.random.default_rng(seed)
        truth = np.exp(rng.uniform(0, 5, (count, 1)) + rng.uniform(-1, 1, (count, 3)))
        error = (rng.normal(size=(count, 1)) + 0.3 * rng.normal(size=(count, 3))) / np.hypot(1, 0.3)
        draws = truth * np.exp(0.1 * (error + rng.normal(size=(1, 100, count, 3))))
        number, one, place = np.arange(count), torch.ones(count, 3), np.zeros(count)
        scene = Scene(one[..., None, None], one, one[..., None, None], 0.06, scene=torch.from_numpy(number),
                      x=torch.zeros(count), y=torch.zeros(count), flux=torch.from_numpy(truth))  # fmt: skip
        posterior = Posterior.from_draws(draws, scene=number, group=number, x=place, y=place, bands="gri",
                                         pixel_scale=0.06)  # fmt: skip
        return posterior, scene, number

    calibrator = Calibrator.fit([alike(1)])
    posterior, scene, _ = alike(2)
    truth = np.log(scene.flux.numpy())
    before, after = (np.log(flat(p)) for p in (posterior, calibrator(posterior)))
    color, true = (np.diff(before, axis=-1), np.diff(after, axis=-1)), np.diff(truth, axis=-1)
    assert covered(color[0], true) > 0.95
    assert abs(covered(color[1], true) - 0.68) < tolerance(len(truth))
    assert abs(covered(after, truth) - 0.68) < tolerance(len(truth))


def test_a_right_posterior_stays():
    """The median of 400 sources scatters by 6 % of a sigma, that of 750 totals by 5 %, their width by 4 %."""
    posterior, _ = made(seed=2)
    repaired = fitted()(posterior)
    before, after = (np.log(flat(p)) for p in (posterior, repaired))
    sigma = before.std(0)
    assert np.median(np.abs(after.std(0) / sigma - 1)) < 0.1
    assert np.quantile(np.abs(after.mean(0) - before.mean(0)) / sigma, 0.9) < FOUR * np.hypot(0.063, 0.046)


def test_each_group_of_sources_is_repaired():
    """Faint sources alone are too narrow: one map for all would leave both kinds wrong."""
    posterior, scene = made(seed=2, faint=0.4)
    repaired, truth = flat(fitted(faint=0.4)(posterior)), scene.flux.numpy()
    for side in ((truth < 12)[:, 0], (truth >= 12)[:, 0]):
        # Some sources are on the other side of the limit in truth than in the estimate.
        assert abs(covered(repaired[:, side], truth[side]) - 0.68) < tolerance(side.sum()) + 0.02
    assert covered(flat(posterior)[:, (truth < 12)[:, 0]], truth[truth < 12][:, None]) < 0.4


@pytest.mark.parametrize("claimed", [0.0, 0.6], ids=["independent", "correlated"])
def test_totals_of_groups(claimed):
    """Anticorrelated errors that the posterior takes as independent make totals too wide."""
    posterior, scene = made(seed=2, claimed=claimed)
    repaired, group = fitted(claimed=claimed)(posterior), posterior.dataset["group"].values
    truth, size = scene.flux.numpy(), np.bincount(group)
    true = group_total(truth, group)
    before, after = (group_total(flat(p), group) for p in (posterior, repaired))
    for number in (2, 3, 4):
        chosen = size == number
        assert covered(before[:, chosen], true[chosen]) > 0.68 + 0.05
        assert abs(covered(after[:, chosen], true[chosen]) - 0.68) < tolerance(chosen.sum())
    # The width of each source remains on average.
    assert abs(covered(flat(repaired), truth) - 0.68) < tolerance(len(truth)) + 0.03
    logs = [np.log(flat(p)) for p in (posterior, repaired)]
    joint = [(group_pit(log, np.log(truth), group)[size > 1] < 0.68).mean() for log in logs]
    assert abs(joint[1] - 0.68) < abs(joint[0] - 0.68)


def test_ranks_and_chains_of_isolated_sources_stay():
    posterior, _ = made(seed=2, narrow=0.5)
    alone = np.bincount(posterior.dataset["group"].values)[posterior.dataset["group"].values] == 1
    before, after = (p.flux.values[:, :, alone] for p in (posterior, fitted(narrow=0.5)(posterior)))
    assert before.shape == after.shape
    ranks = [values.reshape(-1, *values.shape[2:]).argsort(0) for values in (before, after)]
    np.testing.assert_array_equal(*ranks)


def test_unmeasured_sources_stay():
    posterior, _ = made(seed=2)
    flux = posterior.flux.values.copy()
    flux[:, :, 0], flux[0, 0, 1] = np.nan, -1.0
    wrong = Posterior(posterior.dataset.assign(flux=(posterior.flux.dims, flux)))
    repaired = fitted()(wrong).flux.values
    np.testing.assert_array_equal(repaired[:, :, :2], flux[:, :, :2])
    assert np.isfinite(repaired[:, :, 2:]).all()


def test_one_kind_alone():
    alone, total = {"narrow": 0.5, "kinds": ("flux_auto",)}, {"narrow": 0.5}
    assert list(fitted(**alone).flux) == ["auto"]
    posterior, _ = made(seed=2, **total)
    np.testing.assert_array_equal(fitted(**alone)(posterior).flux, posterior.flux)


@pytest.mark.parametrize(("real", "kinds"), [(1.0, {"auto"}), (0.85, {"auto"}), (0.5, {"auto", "total"})])
def test_total_fluxes_that_are_unknown_are_left_out(real, kinds):
    """Of real galaxies, they are; those of the few stars beside them say nothing of galaxies."""
    posterior, scene = made(seed=1, kinds=("flux", "flux_auto"))
    unknown = torch.arange(len(scene.flux)) < real * len(scene.flux)
    given = replace(scene, flux=scene.flux.masked_fill(unknown[:, None], torch.nan))
    assert set(Calibrator.fit([(posterior, given, np.arange(len(posterior)))]).flux) == kinds


def test_false_detections_tell_nothing_of_fluxes():
    posterior, scene = made(seed=1, narrow=0.5)
    rng = np.random.default_rng(0)
    false = rng.random(len(posterior)) < 0.2
    wrong = posterior.with_columns({"existence": np.where(false, 0.5, 0.9)})
    found = Calibrator.fit([(wrong, scene, np.where(false, -1, np.arange(len(posterior))))])
    np.testing.assert_allclose(found.flux["total"][:, 1, 3], fitted(narrow=0.5).flux["total"][:, 1, 3], rtol=0.5)
    calibrated = found(wrong.with_columns({"flags": np.where(false, 0, int(Flag.DOUBTFUL | Flag.EDGE))}))
    existence = calibrated.dataset["existence"].values
    assert existence[false].max() < 0.1
    assert existence[~false].min() > 0.9
    np.testing.assert_array_equal((calibrated.flags & Flag.DOUBTFUL) > 0, false)
    assert ((calibrated.flags & Flag.EDGE > 0) == ~false).all()


@pytest.mark.parametrize("sharpen", [0.5, 2.0])
def test_existence_probabilities(sharpen):
    rng = np.random.default_rng(5)
    posterior, scene = made(seed=1)
    right = rng.beta(1, 1, len(posterior))
    real = rng.random(len(posterior)) < right
    odds = (right / (1 - right)) ** sharpen * 1.5
    wrong = posterior.with_columns({"existence": odds / (1 + odds)})
    calibrator = Calibrator.fit([(wrong, scene, np.where(real, np.arange(len(posterior)), -1))])
    error = [reliability(p.dataset["existence"].values, real).meta["ece"] for p in (wrong, calibrator(wrong))]
    # Twenty bins of 150 sources: their noise alone makes 0.027.
    assert error[0] > 0.06
    assert error[1] < 0.04


def test_sources_outside_the_fitted_range_have_a_flag():
    posterior, _ = made(seed=2)
    calibrator = fitted()
    assert not (calibrator(posterior).flags & Flag.OUTSIDE_CALIBRATION).any()
    radius = posterior.dataset["half_light_radius"].values.copy()
    radius[7] = 3.0
    flags = calibrator(posterior.with_columns({"half_light_radius": radius})).flags
    np.testing.assert_array_equal(np.flatnonzero(flags == Flag.OUTSIDE_CALIBRATION), [7])


def test_what_is_read_is_what_was_written(tmp_path):
    calibrator, (posterior, _) = fitted(narrow=0.5), made(seed=2, narrow=0.5)
    calibrator.save(tmp_path / "c.json")
    read = Calibrator.open(tmp_path / "c.json")
    np.testing.assert_allclose(read(posterior).flux, calibrator(posterior).flux, rtol=1e-3)
    assert read.describe() == calibrator.describe()
    assert Calibrator.parse(calibrator.describe()).describe() == calibrator.describe()
    with pytest.raises(FileExistsError):
        calibrator.save(tmp_path / "c.json")


def test_files_that_are_no_calibrators(tmp_path):
    numbers = json.loads(fitted().describe())
    for change, message in [
        ({"version": 10}, "must be a calibrator of version 1, got version 10"),
        ({"format": "x"}, "must be a calibrator written by probdeblend, got another file"),
        ({"bins": []}, "damaged calibrator .*not how it was written"),
        ({"flux": []}, "damaged calibrator"),
        (
            {"flux": {kind: maps[1:] for kind, maps in numbers["flux"].items()}},
            "damaged calibrator .*a map for each bin",
        ),
        (
            {"flux": {kind: [[row[::-1] for row in maps[0]], *maps[1:]] for kind, maps in numbers["flux"].items()}},
            "must be monotone",
        ),
        ({"color": {}}, "damaged calibrator"),
        ({"low": ["1.0", 2.0]}, "damaged calibrator .*not how it was written"),
        ({"high": [1.0, math.nan]}, "damaged calibrator"),
        ({"fitted_on": 3}, "damaged calibrator"),
    ]:
        (tmp_path / "c.json").write_text(json.dumps(numbers | change))
        with pytest.raises(ValueError, match=message):
            Calibrator.open(tmp_path / "c.json")
    for text in ("no", "[1]", "[" * 100_000, "\xe9"):
        (tmp_path / "c.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"c.json: must be a calibrator written by probdeblend"):
            Calibrator.open(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Calibrator.open(tmp_path / "none.json")


def test_posteriors_that_do_not_fit():
    posterior, scene = made(seed=2)
    other = Posterior(posterior.dataset.assign_attrs(method="sep"))
    with pytest.raises(ValueError, match="posterior must have method 'network' of the calibrator, got 'sep'"):
        fitted()(other)
    once = fitted()(posterior)
    with pytest.raises(ValueError, match="posterior must not be calibrated already"):
        fitted()(once)
    index = np.arange(len(posterior))
    with pytest.raises(ValueError, match="posterior must not be calibrated already: deblend with calibrate=False"):
        Calibrator.fit([(once, scene, index)])
    with pytest.raises(ValueError, match=rf"matched must have shape \({len(posterior)},\), got \(1,\)"):
        Calibrator.fit([(posterior, scene, [1])])
    with pytest.raises(ValueError, match="at least 400 sources with draws and truth are needed to fit, got 3"):
        Calibrator.fit([(posterior, scene, np.where(index < 3, index, -1))])
    alone, _ = made(seed=2, kinds=("flux_auto",))
    with pytest.raises(ValueError, match="scenes must have true fluxes of a kind that the posteriors hold, got none"):
        Calibrator.fit([(alone, Scene(**vars(scene) | {"auto_flux": None}), index)])
    one = (posterior, scene, index)
    fewer = Posterior(posterior.dataset.isel(draw=slice(10)))
    for batches, got in {
        "none": ([], r"\[\] and \[\]"),
        "methods": ([one, (other, scene, index)], r"\['network', 'sep'\] and \[100\]"),
        "draws": ([one, (fewer, scene, index)], r"\['network'\] and \[40, 100\]"),
    }.values():
        with pytest.raises(ValueError, match=f"posteriors must be of one method and number of draws, got {got}"):
            Calibrator.fit(batches)
