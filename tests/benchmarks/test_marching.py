import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import probdeblend
from benchmarks import march as marching
from benchmarks.march import QUANTITIES, Scenes, march, report
from benchmarks.plot_march import plot_march
from probdeblend.photometry.detection import auto_flux
from probdeblend.photometry.noise import noise_rms
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.likelihood import expected_periodogram, whitened
from probdeblend.refinement.refine import Refined
from probdeblend.scene import STAMP_CENTER, Instrument
from probdeblend.simulation.prior import Prior

HST = Instrument.candels_f160w()
SCENES = Scenes(separation=(4.0, 20.0))
STEP = Scenes(separation=(20.0,))
IMAGES = 90


class Oracle:
    """A deblender that knows the true fluxes, errs by `sd` in ln flux, claims `claimed`, and is silent at times."""

    instrument, calibrator = HST, None

    def __init__(self, *, sd=0.1, claimed=0.1, bias=0.0, silent=0.0):
        self.sd, self.claimed, self.bias, self.silent = sd, claimed, bias, silent
        self.seeds, self.corners = [], []

    def __call__(self, image, *, sky_rms, draws, passes, seed, calibrate):
        assert not calibrate
        assert passes == 16
        self.seeds.append(seed)
        self.corners.append(image[:, 0, 0, 0])
        rng = np.random.default_rng(seed)
        center = np.log(SCENES.flux) + self.bias + rng.normal(0, self.sd, (len(image), 2))
        flux = np.exp(center + rng.normal(0, self.claimed, (1, draws, len(image), 2)))
        flux[:, :, : round(self.silent * len(image)), 1] = np.nan
        flags = np.zeros((len(image), 2), dtype=int)
        flags[-1, 0] = Flag.UNFAMILIAR
        return Posterior.from_draws(flux[..., None], flux_kind="total", method="network", flags=flags)


@pytest.fixture(autouse=True)
def _blind_sep(request, monkeypatch):
    """SEP, which takes most of the time, finds nothing; the table `right` is made before."""

    def sep_posterior(image, sky_rms, *, draws, **_):
        flux = np.full((1, draws, len(image), 2, 1), np.nan)
        return Posterior.from_draws(flux, flux_kind="auto", method="sep")

    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(marching, "sep_posterior", sep_posterior)


def marched(*, scenes=STEP, noise_draws=30, seed=0, **options):
    return march(Oracle(**options), scenes=scenes, noise_draws=noise_draws, seed=seed)


def chosen(table, method="network"):
    return table[table["method"] == method]


def scatter_band(count, rows, false_alarm):
    tail = false_alarm / rows / 2
    return np.sqrt(stats.chi2.ppf([tail, 1 - tail], count - 1) / (count - 1))


@pytest.fixture(scope="module")
def right():
    return marched(scenes=SCENES, noise_draws=IMAGES)


def test_right_errors_have_unit_scatter(right, false_alarm):
    rows = chosen(right)
    assert list(rows["galaxy"]) == 2 * list(QUANTITIES)
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
    np.testing.assert_allclose(rows["ratio"], rows["posterior_sd"] / rows["prior_sd"])
    assert rows["informed"].all()


def test_the_bar_catches_what_is_wrong():
    narrow = chosen(marched(claimed=0.05))
    assert not narrow["not_too_narrow"].any()
    assert not narrow["holds"].any()
    wide = chosen(marched(claimed=0.3))
    assert wide["not_too_narrow"].all()
    assert not wide["not_too_wide"].any()
    assert not wide["holds"].any()
    centered, biased = chosen(marched()), chosen(marched(bias=0.15))
    assert not biased["unbiased"].any()
    assert not biased["holds"].any()
    np.testing.assert_allclose(biased["mean"], centered["mean"] + 0.15 / biased["posterior_sd"], atol=0.05)
    np.testing.assert_allclose(biased["sd"], centered["sd"], rtol=0.05)


def test_where_the_image_says_little_only_narrow_errors_are_wrong():
    vague = chosen(marched(claimed=1.0, bias=0.5))
    assert not vague["informed"].any()
    assert vague["holds"].all()
    wrong = chosen(marched(sd=1.5, claimed=1.0))
    assert not wrong["not_too_narrow"].any()
    assert not wrong["holds"].any()


def test_silence_and_flags_are_counted_apart(false_alarm):
    rows = chosen(marched(silent=0.25, noise_draws=64))
    assert list(rows["count"]) == [64, 48, 48]
    assert list(rows["abstained"]) == [0.0, 0.25, 0.25]
    np.testing.assert_allclose(rows["flagged"], [1 / 64, 0, 1 / 48])
    low, high = scatter_band(48, len(rows), false_alarm)
    assert ((rows["sd"] > low) & (rows["sd"] < high)).all()


def test_silence_alone_passes_no_bar():
    table = marched(silent=1.0, noise_draws=10)
    rows = chosen(table)[1:]
    assert (rows["count"] == 0).all()
    assert (rows["abstained"] == 1).all()
    assert np.isnan(rows["mean"]).all()
    assert not rows["holds"].any()
    assert report(table).splitlines()[5].split() == ["network", "companion", "0", "of", "1", "-", "-", "100%", *"---"]


def test_sep_stands_beside_it(right):
    """Quoted errors know neither the correlation of the noise nor the neighbor's light."""
    rows = chosen(right, "sep")
    near, far = rows[:3], rows[3:]
    assert list(near["abstained"][1:]) == [1, 1]
    assert (far["abstained"] == 0).all()
    assert (far["sd"] > 1.5).all()
    assert not far["holds"].any()
    assert (far["posterior_sd"] < 0.02).all()


def test_sep_is_judged_by_what_it_measures(monkeypatch):
    """A flux that is that of the galaxy alone, in a Kron aperture, has z = 0; fluxes may be negative."""
    alone = np.array([[auto_flux(galaxy, STEP.sky_rms)] for galaxy in STEP.light(HST)[0].numpy()])
    assert (alone[:, 0] < 0.97 * np.array(STEP.flux)).all()

    def sep_posterior(image, sky_rms, *, draws, x, y, exposure, **_):
        assert (exposure == HST.exposure).all()
        np.testing.assert_allclose(np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]), 20.0, rtol=1e-5)
        # Half of the draws lie one standard deviation above, half of them one below, and beyond zero.
        error = np.resize([50.0, -50.0], draws)[:, None, None, None] + np.zeros((len(image), 2, 1))
        return Posterior.from_draws((alone + error)[None], flux_kind="auto", method="sep")

    monkeypatch.setattr(marching, "sep_posterior", sep_posterior)
    rows = chosen(marched(noise_draws=10), "sep")
    np.testing.assert_allclose(rows["mean"], 0, atol=1e-5)
    np.testing.assert_allclose(rows["posterior_sd"][:2], 50 / alone[:, 0], rtol=0.01)


def test_same_seed_same_table():
    first, again, other = (chosen(marched(noise_draws=10, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(again[name], first[name]) for name in first.colnames)
    assert not np.array_equal(other["mean"], first["mean"])


def test_integers_are_numbers_too():
    whole = Scenes(flux=(80, 40), separation=(20,))
    rows = [chosen(march(Oracle(), scenes=scenes, noise_draws=10)) for scenes in (whole, STEP)]
    assert rows[0]["mean"][2] == rows[1]["mean"][2]


def test_every_image_has_noise_of_its_own():
    oracle = Oracle()
    march(oracle, scenes=SCENES, noise_draws=70, seed=5)
    assert oracle.seeds == [5, 69, 75, 139]
    assert len(torch.unique(torch.cat(oracle.corners))) == 140


def test_a_calibrator_makes_a_method_of_its_own():
    oracle = Oracle(claimed=0.05)

    def widened(posterior):
        log_flux = np.log(posterior.dataset["flux"])
        mean = log_flux.mean("draw")
        return Posterior(posterior.dataset.assign(flux=np.exp(mean + 2 * (log_flux - mean))))

    oracle.calibrator = widened
    table = march(oracle, scenes=STEP, noise_draws=20)
    assert list(dict.fromkeys(table["method"])) == ["network", "uncalibrated", "sep"]
    network, plain = (chosen(table, name)["galaxy", "sd"] for name in ("network", "uncalibrated"))
    each = network["galaxy"] != "total"
    np.testing.assert_allclose(plain["sd"][each], 2 * network["sd"][each])


def expected_rms(light, scenes):
    return noise_rms(light, torch.tensor(scenes.sky_rms), torch.tensor(HST.exposure), kernel=HST.noise_kernel)


def matched(light, rms):
    """Fourier components of a stamp, in which its noise is independent and of unit variance."""
    return whitened(light / rms, expected_periodogram(HST.noise_kernel, 128)).flatten(-3)


class Fit:
    """Generalized least squares with the true shapes of one step: its errors are those of sky and photon noise."""

    instrument, calibrator = HST, None

    def __init__(self, scenes):
        light = scenes.light(HST)[0]
        self.rms = expected_rms(light.sum(0), scenes)
        self.shapes = matched(light / torch.tensor(scenes.flux)[:, None, None], self.rms).double()
        self.covariance = torch.linalg.inv(self.shapes @ self.shapes.T).numpy()

    def __call__(self, image, *, sky_rms, draws, seed, **_):
        flux = matched(image[:, 0], self.rms).double() @ self.shapes.T
        noise = np.random.default_rng(seed).multivariate_normal([0, 0], self.covariance, (draws, len(image)))
        draws = flux.numpy() @ self.covariance + noise
        return Posterior.from_draws(draws[None, ..., None], flux_kind="total", method="network")


def test_images_hold_the_noise_that_a_fit_expects(false_alarm):
    """Of both fluxes, and of the total, whose error knows that the two are anticorrelated."""
    scenes = Scenes(separation=(6.0,))
    fit = Fit(scenes)
    assert fit.covariance[0, 1] < -0.1 * math.sqrt(fit.covariance[0, 0] * fit.covariance[1, 1])
    rows = chosen(march(fit, scenes=scenes, noise_draws=128))
    low, high = scatter_band(128, 3, false_alarm)
    assert ((rows["sd"] > low) & (rows["sd"] < high)).all()
    assert (np.abs(rows["mean"]) < stats.norm.isf(false_alarm / 6) * high / math.sqrt(128)).all()


def test_scenes_are_what_they_say():
    scenes = Scenes()
    x, y = scenes.positions()
    assert (torch.stack([x, y])[..., 0] == STAMP_CENTER).all()
    np.testing.assert_allclose(torch.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]), scenes.separation, rtol=1e-5)
    light = scenes.light(HST)
    assert light.shape == (len(scenes), 2, 128, 128)
    np.testing.assert_allclose(light.sum((-2, -1)), [[80.0, 40.0]] * len(scenes), rtol=0.01)
    rows, columns = torch.meshgrid(*(2 * [torch.arange(128.0)]), indexing="ij")
    weight = (light[:8, 1] / light[:8, 1].sum((-2, -1), keepdim=True)).flatten(1)
    np.testing.assert_allclose(weight @ columns.flatten(), x[:8, 1], atol=0.15)
    np.testing.assert_allclose(weight @ rows.flatten(), y[:8, 1], atol=0.15)


def test_the_signal_to_noise_ratio_is_the_documented_one():
    scenes = Scenes()
    light = scenes.light(HST)[5]
    np.testing.assert_allclose(matched(light, expected_rms(light, scenes)).norm(dim=-1), [167, 115], atol=0.6)


def test_separation_is_over_the_width_of_the_psf(right):
    assert right["separation_fwhm"][0] == pytest.approx(4.0 / 3.07, rel=0.05)
    rows, columns = np.indices((41, 41)) - 20
    psf = np.exp(-(rows**2 + columns**2) / (2 * 2.5**2))
    gaussian = HST.replace(psf=torch.from_numpy(psf / psf.sum()))
    assert gaussian.fwhm == pytest.approx(2.5 * math.sqrt(8 * math.log(2)), rel=0.03)


def test_the_prior_has_the_width_of_the_population(right):
    magnitude = Prior.default().sample(4000, seed=9)["magnitude"].numpy()
    flux = 10 ** (-0.4 * magnitude)
    expected = {"central": np.log(flux).std(), "companion": np.log(flux).std(), "total": np.log(flux.sum(1)).std()}
    for row in right:
        assert row["prior_sd"] == pytest.approx(expected[row["galaxy"]], rel=0.05)


def test_refined_answers_are_of_the_first_images_and_may_abstain(monkeypatch):
    seen = []

    def refine(model, observed, start, *, fits, seed):
        seen.append((tuple(observed.image.shape), start))
        rng = np.random.default_rng(seed)
        number = len(start)
        ratio = np.log(np.array(SCENES.flux) / SCENES.sky_rms)
        unknown = np.zeros((400, number, model.numbers))
        unknown[..., [0, 7]] = ratio + rng.normal(0, 0.1, (number, 2)) + rng.normal(0, 0.1, (400, number, 2))
        k_hat = np.where(np.arange(number) < 10, 0.65, 0.1)
        numbers = {name: np.zeros(number) for name in ("effective", "log_evidence", "log_evidence_error")}
        numbers |= {"log_weight": np.full((400, number), -math.log(400)), "chi_square": np.ones((number, 2))}
        numbers |= {"order": np.zeros((400, number), dtype=int), "heaviest": np.ones((400, number))}
        return Refined(unknown=unknown, k_hat=k_hat, **numbers)

    monkeypatch.setattr(marching, "refine", refine)
    start = lambda image: image.mean((1, 2, 3))[:, None].expand(-1, 16)  # noqa: E731
    table = march(Oracle(), scenes=SCENES, noise_draws=42, start=start)
    rows = chosen(table, "refined")
    assert [shape for shape, _ in seen] == 2 * [(40, 128, 128)]
    assert seen[0][1].std() > 0
    assert (rows["count"] == 30).all()
    assert (rows["abstained"] == 0.25).all()
    np.testing.assert_allclose(rows["posterior_sd"][rows["galaxy"] != "total"], 0.1, rtol=0.1)
    assert ((rows["sd"] > 0.5) & (rows["sd"] < 1.6)).all()


def test_an_interrupted_march_goes_on(tmp_path, monkeypatch):
    """Steps that are kept are not marched again, and are what was found."""
    settings = {"scenes": SCENES, "noise_draws": 20, "kept": tmp_path}
    whole = march(Oracle(), **settings)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00.npz", "step-01.npz"]
    (tmp_path / "step-01.npz").unlink()
    asked = []
    answers = marching._answers
    monkeypatch.setattr(marching, "_answers", lambda *given, **named: asked.append(given) or answers(*given, **named))
    assert report(march(Oracle(), **settings)) == report(whole)
    assert len(asked) == 1


def test_the_report_says_where(right):
    text = report(marched(claimed=0.05, scenes=SCENES, noise_draws=20))
    assert text.startswith("The bar: sd of z at most 1.15; where the posterior is narrower than 0.5 of the prior")
    network = text.splitlines()[4].split()
    assert network[:5] == ["network", "central", "0", "of", "2"]
    assert "4, 20" in text
    assert len(report(right).splitlines()) == 4 + 6


def test_the_figure_shows_every_method(right):
    table = marched(claimed=1.0, scenes=SCENES, noise_draws=10)
    figure = plot_march(table)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:3]] == list(QUANTITIES)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["network", "sep"]
    scatter = figure.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_array_equal(scatter, chosen(table)["sd"][::3])
    heights = [line.get_ydata()[0] for line in figure.axes[3].lines[:3]]
    assert heights == [0.0, -0.3, 0.3]
    assert plot_march(right) is not figure


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": (80.0,)}, r"flux must be two positive numbers, got \(80.0,\)"),
        ({"flux": (1.0, math.nan)}, r"flux must be two positive numbers, got \(1.0, nan\)"),
        ({"half_light_radius": (0.4, 0.0)}, r"half_light_radius must be two positive numbers, got \(0.4, 0.0\)"),
        ({"sersic_index": (1.2, -1.0)}, r"sersic_index must be two positive numbers, got \(1.2, -1.0\)"),
        ({"separation": ()}, r"separation must be above 0 and at most 63.5 pixels, got \(\)"),
        ({"separation": (5.0, 0.0)}, r"separation must be above 0 and at most 63.5 pixels, got \(5.0, 0.0\)"),
        ({"separation": (64.0,)}, r"separation must be above 0 and at most 63.5 pixels, got \(64.0,\)"),
        ({"sky_rms": 0.0}, "sky_rms must be positive, got 0.0"),
    ],
)
def test_bad_scenes(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SCENES, **changes)


def test_too_few_noise_draws():
    with pytest.raises(ValueError, match="noise_draws must be at least 10, got 9"):
        march(Oracle(), noise_draws=9)


def test_an_index_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"sersic_index must be 0\.5 to 6, got 8"):
        march(Oracle(), scenes=replace(SCENES, sersic_index=(1.0, 8.0)), noise_draws=10)


@pytest.mark.slow
def test_the_march_of_the_shipped_weights():
    """Far apart, errors are not too small for the noise; refinement makes them smaller, and right ones."""
    deblender = probdeblend.load()
    guide = JointGuide(deblender.network, pixel_scale=HST.pixel_scale)
    scenes = Scenes(separation=(20.0,))
    table = march(deblender, scenes=scenes, noise_draws=10, start=lambda image: guide.encode(image)[1])
    assert list(dict.fromkeys(table["method"])) == ["network", "uncalibrated", "sep", "refined"]
    network, refined, sep = (chosen(table, method) for method in ("network", "refined", "sep"))
    assert (network["count"] == 10).all()
    assert (network["sd"] < 1.5).all()
    assert (refined["posterior_sd"] < network["posterior_sd"]).all()
    assert (refined["abstained"] < 0.5).all()
    # Five standard errors of the mean, and the fourth root of ten thousand in the scatter of few numbers.
    assert (np.abs(refined["mean"]) < 5 / np.sqrt(refined["count"])).all()
    assert (refined["sd"] < 2).all()
    assert (sep["sd"] > refined["sd"]).all()
