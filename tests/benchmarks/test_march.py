"""The marching companion: what counts as a right error, and that the scenes are what they are said to be."""

import math

import numpy as np
import pytest
import torch
from astropy.table import Table
from click.testing import CliRunner
from scipy import stats

from benchmarks import march
from benchmarks.march import FLUX, SKY_RMS, Scenes, scores, tabulate
from probdeblend.photometry.noise import noise_rms
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.likelihood import expected_periodogram, whitened
from probdeblend.scene import STAMP_CENTER, Instrument
from probdeblend.simulation.prior import Prior

pytestmark = pytest.mark.slow

HST = Instrument.candels_f160w()
IMAGES = 128
SEPARATION = (4.0, 20.0)


def marched(*, sd=0.1, claimed=0.1, bias=0.0, silent=0.0, images=IMAGES):
    """Judge posteriors that err by `sd` in ln flux and claim `claimed`; a fraction has no companion."""
    rng = np.random.default_rng(8)
    steps = []
    for _ in SEPARATION:
        center = np.log(FLUX) + bias + rng.normal(0, sd, (images, 2))
        flux = np.exp(center + rng.normal(0, claimed, (1, 400, images, 2)))
        flux[:, :, : round(silent * images), 1] = np.nan
        flags = np.zeros((images, 2), dtype=int)
        flags[-1, 0] = Flag.UNFAMILIAR
        posterior = Posterior.from_draws(flux[..., None], flux_kind="total", method="network", flags=flags)
        steps.append(scores(posterior, np.broadcast_to(FLUX, (images, 2))))
    return tabulate({"network": steps}, SEPARATION, fwhm=3.07, seed=0)


def scatter_band(count, rows, false_alarm):
    tail = false_alarm / rows / 2
    return np.sqrt(stats.chi2.ppf([tail, 1 - tail], count - 1) / (count - 1))


def test_right_errors_have_unit_scatter(false_alarm):
    rows = marched()
    assert list(rows["galaxy"]) == 2 * list(march.QUANTITIES)
    assert list(rows["separation"]) == 3 * [4.0] + 3 * [20.0]
    assert (rows["count"] == IMAGES).all()
    low, high = scatter_band(IMAGES, len(rows), false_alarm)
    assert ((rows["sd"] > low) & (rows["sd"] < high)).all()
    most = stats.norm.isf(false_alarm / len(rows) / 2)
    assert (np.abs(rows["mean"]) < most * high / math.sqrt(IMAGES)).all()
    # Of normal numbers, the mean has the standard error 1 / sqrt(n) and the standard deviation 1 / sqrt(2 n).
    np.testing.assert_allclose(rows["mean_error"], 1 / math.sqrt(IMAGES), rtol=0.5)
    np.testing.assert_allclose(rows["sd_error"], 1 / math.sqrt(2 * IMAGES), rtol=0.5)
    np.testing.assert_allclose(rows["posterior_sd"][rows["galaxy"] != "total"], 0.1, rtol=0.03)
    assert rows["informed"].all()


def test_the_bar_catches_what_is_wrong():
    narrow, wide, right, biased = (
        marched(**wrong) for wrong in ({"claimed": 0.05}, {"claimed": 0.3}, {}, {"bias": 0.15})
    )
    assert not narrow["not_too_narrow"].any()
    assert wide["not_too_narrow"].all()
    assert not wide["not_too_wide"].any()
    assert not biased["unbiased"].any()
    assert not any(table["holds"].any() for table in (narrow, wide, biased))
    np.testing.assert_allclose(biased["mean"], right["mean"] + 0.15 / biased["posterior_sd"], atol=0.05)


def test_where_the_image_says_little_only_narrow_errors_are_wrong():
    vague, wrong = marched(claimed=1.0, bias=0.5), marched(sd=1.5, claimed=1.0)
    assert not vague["informed"].any()
    assert vague["holds"].all()
    assert not wrong["not_too_narrow"].any()
    assert not wrong["holds"].any()


def test_abstentions_and_flags_are_counted_apart():
    rows = marched(silent=0.25, images=64)[:3]
    assert list(rows["count"]) == [64, 48, 48]
    assert list(rows["abstained"]) == [0.0, 0.25, 0.25]
    np.testing.assert_allclose(rows["flagged"], [1 / 64, 0, 1 / 48])
    silent = marched(silent=1.0, images=10)[1:3]
    assert (silent["abstained"] == 1).all()
    assert np.isnan(silent["mean"]).all()
    assert not silent["holds"].any()


def test_fluxes_may_be_negative_where_errors_are_those_of_fluxes():
    truth = np.array([[80.0, 40.0]])
    draws = truth + np.resize([50.0, -50.0], 400)[:, None, None]
    z, sd, _ = scores(Posterior.from_draws(draws[None, ..., None], flux_kind="auto", method="sep"), truth, linear=True)
    np.testing.assert_allclose(z, 0, atol=1e-12)
    np.testing.assert_allclose(sd[0], [50 / 80, 50 / 40, 100 / 120], rtol=0.01)


def test_the_prior_has_the_width_of_the_population():
    magnitude = Prior.default().sample(4000, seed=9)["magnitude"].numpy()
    flux = 10 ** (-0.4 * magnitude)
    expected = {"central": np.log(flux).std(), "companion": np.log(flux).std(), "total": np.log(flux.sum(1)).std()}
    for row in marched(images=10):
        assert row["prior_sd"] == pytest.approx(expected[row["galaxy"]], rel=0.05)


def test_scenes_are_what_they_say():
    scenes = Scenes.along(march.SEPARATIONS, HST)
    x, y = scenes.center
    assert (scenes.center[..., 0] == STAMP_CENTER).all()
    np.testing.assert_allclose(torch.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]), scenes.separation, rtol=1e-5)
    np.testing.assert_allclose(scenes.light.sum((-2, -1)), len(x) * [FLUX], rtol=0.01)
    assert (scenes.auto < 0.97 * torch.tensor(FLUX)).all()
    weight = scenes.light[:8, 1] / scenes.light[:8, 1].sum((-2, -1), keepdim=True)
    for axis, center in ((1, x), (2, y)):
        np.testing.assert_allclose(weight.sum(axis) @ torch.arange(128.0), center[:8, 1], atol=0.15)


def expected_rms(light):
    return noise_rms(light, torch.tensor(SKY_RMS), torch.tensor(HST.exposure), kernel=HST.noise_kernel)


def matched(light, rms):
    """Fourier components of a stamp, in which its noise is independent and of unit variance."""
    return whitened(light / rms, expected_periodogram(HST.noise_kernel, 128)).flatten(-3)


def test_images_hold_the_noise_that_a_fit_expects(false_alarm):
    """Generalized least squares with the true shapes: of both fluxes, and of the total of two anticorrelated ones."""
    scenes = Scenes.along((6.0, 4.0), HST)
    light = scenes.light[0]
    rms = expected_rms(light.sum(0))
    np.testing.assert_allclose(
        matched(scenes.light[1], expected_rms(scenes.light[1])).norm(dim=-1), [167, 115], atol=0.6
    )
    shapes = matched(light / torch.tensor(FLUX)[:, None, None], rms).double()
    covariance = torch.linalg.inv(shapes @ shapes.T).numpy()
    assert covariance[0, 1] < -0.1 * math.sqrt(covariance[0, 0] * covariance[1, 1])
    blends = scenes.blends(0, IMAGES, seed=4)
    assert len(torch.unique(blends.image[:, 0, 0, 0])) == IMAGES
    flux = (matched(blends.image[:, 0], rms).double() @ shapes.T).numpy() @ covariance
    draws = flux + np.random.default_rng(1).multivariate_normal([0, 0], covariance, (400, IMAGES))
    posterior = Posterior.from_draws(draws[None, ..., None], flux_kind="total", method="network")
    rows = tabulate({"fit": [scores(posterior, blends.flux[:, :, 0])]}, (6.0,), fwhm=3.07, seed=0)
    low, high = scatter_band(IMAGES, 3, false_alarm)
    assert ((rows["sd"] > low) & (rows["sd"] < high)).all()
    assert (np.abs(rows["mean"]) < stats.norm.isf(false_alarm / 6) * high / math.sqrt(IMAGES)).all()


def test_the_figure_shows_every_method():
    table = marched(claimed=1.0, images=10)
    figure = march.plot(table)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:3]] == list(march.QUANTITIES)
    scatter = figure.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_array_equal(scatter, table["sd"][::3])
    assert [line.get_ydata()[0] for line in figure.axes[3].lines[:3]] == [0.0, -0.3, 0.3]


def test_the_command(tmp_path, monkeypatch):
    """Interrupted after a step and resumed, it writes what an undisturbed run writes."""
    settings = ["--noise-draws", "10", "--draws", "100", "--output"]
    run = CliRunner()
    whole = run.invoke(march.main, [*settings, str(tmp_path / "whole")], catch_exceptions=False)
    assert whole.exit_code == 0, whole.output
    steps, step = [], march._step

    def interrupted(*given, **named):
        if len(steps) == 1:
            raise OSError("interrupted")
        steps.append(given[3])
        return step(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(march, "_step", interrupted)
        assert "interrupted" in run.invoke(march.main, [*settings, str(tmp_path / "march")]).output
    answer = run.invoke(march.main, [*settings, str(tmp_path / "march"), "--resume"], catch_exceptions=False)
    assert answer.stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["march", "whole"]
    assert (tmp_path / "march" / "march.png").is_file()
    table = Table.read(tmp_path / "march" / "march.ecsv")
    assert list(dict.fromkeys(table["method"])) == ["network", "uncalibrated", "sep"]
    network = table[table["method"] == "network"]
    assert (network["count"] == 10).all()
    assert (network["sd"] < 1.5).all()
    assert np.isfinite(network["mean"]).all()


def test_refinement_makes_errors_smaller_and_right():
    """Far apart, of few images."""
    deblender, guide = march.load_with_guide(None, None)
    scenes = Scenes.along((20.0,), HST)
    found = march._step(scenes, deblender, guide, 0, noise_draws=5, draws=400, seed=0)
    table = tabulate({name: [values] for name, values in found.items()}, (20.0,), fwhm=HST.fwhm, seed=0)
    network, refined, sep = (table[table["method"] == method] for method in ("network", "refined", "sep"))
    assert (refined["posterior_sd"] < network["posterior_sd"]).all()
    assert (refined["abstained"] < 0.5).all()
    # Five standard errors of the mean, and the fourth root of ten thousand in the scatter of few numbers.
    assert (np.abs(refined["mean"]) < 5 / np.sqrt(refined["count"])).all()
    assert (refined["sd"] < 2).all()
    assert (sep["sd"] > refined["sd"]).all()
