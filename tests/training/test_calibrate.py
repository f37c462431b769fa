"""Calibrators are fitted to answers that are too narrow or too wide, and tested on scenes that they have not seen."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy.table import Table

from probdeblend.deblending import Deblender, Description
from probdeblend.networks import SceneNetwork
from probdeblend.posterior import Posterior
from probdeblend.posterior.calibrator import Known
from probdeblend.scene import Scene
from probdeblend.training import fit_calibrator
from probdeblend.training.calibrate import CalibratorFit, answer, answers_of, fit_answers
from probdeblend.training.fields import AsImages, simulated_fields

SIZE, SKY_RMS, COUNT = 8, 0.01, 400
SOURCES = 100  # in a field
FOUR = 4.0  # standard errors: a false alarm in 16,000
FIT = CalibratorFit(*(None,) * 4)


def scenes_of(count=COUNT, *, seed=0, bands=1):
    """Scenes of one to three bright sources and a faint one, each a few pixels of light."""
    rng = np.random.default_rng(seed)
    size = rng.integers(2, 5, count)
    owner = np.repeat(np.arange(count), size)
    last = np.diff(owner, append=-1) != 0
    flux = np.where(last, 1e-3, np.exp(rng.uniform(0, 3, len(owner))))
    light = flux[:, None, None] * rng.random((len(owner), SIZE, SIZE)) / 8
    light = np.repeat(light[:, None], bands, 1)
    image = np.zeros((count, bands, SIZE, SIZE))
    np.add.at(image, owner, light)
    flux = np.repeat(flux[:, None], bands, 1)
    number = np.concatenate([np.arange(n) for n in size])
    truth = {"x": 2.0 * number, "y": 2.0 * number, "flux": flux, "auto_flux": 0.9 * flux}
    known = {name: torch.from_numpy(values) for name, values in (truth | {"light": light}).items()}
    one = torch.ones(count, bands)
    image = torch.from_numpy(image)
    return Scene(image, SKY_RMS * one, one[..., None, None], 0.06, scene=torch.from_numpy(owner), **known)


def batches_of(scenes, size=20):
    return [scenes.select(slice(start, start + size)) for start in range(0, len(scenes), size)]


class Wrong:
    """Errs by 0.2 in ln flux and claims another error; claims too much of existence."""

    def __init__(self, narrow=0.5, *, existence=True):
        self.narrow, self.existence = narrow, existence

    def scenes(self, scene, *, positions=None, seed=0):
        rng = np.random.default_rng(seed)
        given = positions is not None
        total = scene.auto_flux.numpy() / 0.9
        chosen = np.flatnonzero(total[:, 0] > 0.1)
        false = 0 if given else len(scene) // 2
        owner = np.append(scene.scene.numpy()[chosen], rng.integers(len(scene), size=false))
        x = np.append(scene.x.numpy()[chosen], np.full(false, 100.0))
        flux = np.append(total[chosen], np.ones((false, total.shape[1])), 0)
        noise = rng.normal(size=(101, *flux.shape))
        draws = flux * np.exp(0.2 * (noise[:1] + self.narrow * noise[1:]))
        columns = {"sky_rms": np.full(flux.shape, SKY_RMS)}
        columns |= {"existence": np.full(len(owner), 0.99)} if self.existence else {}
        return Posterior.from_draws(draws[None], 0.9 * draws[None], scene=owner.astype(int), group=owner.astype(int),
                                    x=x, y=x, bands="gri"[: total.shape[1]], pixel_scale=0.06,
                                    columns=columns)  # fmt: skip


def rows(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


@pytest.fixture(scope="module")
def fit():
    return fit_calibrator(batches_of(scenes_of()), Wrong(), fitted_on="made up")


def spread(count, fitted):
    """Tolerance of a coverage of 68 %: both the fit's quantiles and the test's fraction scatter."""
    return FOUR * np.sqrt(0.68 * 0.32 * (1 / count + 1 / fitted))


def test_the_test_is_on_unseen_scenes(fit):
    for kind in ("flux", "flux_auto"):
        before, after = rows(fit.tested, flux=kind, sources="all")
        assert (before["state"], after["state"], after["bands"]) == ("before", "after", 1)
        assert 130 < after["count"] < 190  # a fifth of about 800 bright sources
        assert before["coverage_68"] < 0.5
        assert after["coverage_68"] == pytest.approx(0.68, abs=spread(after["count"], 600))
        assert after["interval_score"] < before["interval_score"]
        assert before["total_68"] < 0.55
        assert after["total_68"] == pytest.approx(0.68, abs=spread(80, 200))
        assert abs(after["joint_68"] - 0.68) < abs(before["joint_68"] - 0.68)


def test_posteriors_that_are_too_wide():
    found = fit_calibrator(batches_of(scenes_of()), Wrong(2.0)).tested
    before, after = rows(found, flux="flux", sources="all")
    assert before["coverage_68"] > 0.85
    assert after["coverage_68"] == pytest.approx(0.68, abs=spread(after["count"], 600))


def test_each_number_of_bands_is_tested():
    one, three = scenes_of(), scenes_of(200, seed=1, bands=3)
    found = fit_calibrator(batches_of(one) + batches_of(three), Wrong(), least=200).tested
    for bands in (1, 3):
        before, after = rows(found, flux="flux", sources="all", bands=bands)
        assert before["coverage_68"] < 0.5
        # Bands are drawn independently: three times as many values as sources.
        assert after["coverage_68"] == pytest.approx(0.68, abs=spread(after["count"], 600))
    assert not np.isfinite(rows(found, bands=1)["color_68"]).any()
    assert rows(found, flux="flux", sources="all", bands=3)["color_68"][1] == pytest.approx(0.68, abs=spread(160, 600))


@pytest.mark.parametrize(("narrow", "how"), [(0.5, "small"), (2.0, "wide")])
def test_the_report_says_how_wrong_error_bars_were(narrow, how):
    fit = fit_calibrator(batches_of(scenes_of()), Wrong(narrow))
    for kind in ("flux", "flux_auto"):
        before, after = rows(fit.report, flux=kind, sources="all sources")
        assert before["count"] > 4 * after["count"]  # before calibration, no scene needs to be held out
        assert abs(np.log(before["factor"] * narrow)) < FOUR * before["factor_err"] / before["factor"]
        assert abs(after["factor"] - 1) < FOUR * after["factor_err"]
    total, kron, *_ = fit.findings()
    assert total.startswith("Your error bars of total fluxes were ")
    assert kron.startswith("Your error bars of Kron fluxes were ")
    (first,) = re.findall(rf"were (\S+) ± \S+ times too {how} for all sources", total)
    assert float(first) == pytest.approx(2, abs=0.3)


def test_the_report_tells_classes_apart():
    """Errors of extended sources alone are understated."""
    rng = np.random.default_rng(0)
    size, draws = np.repeat([1.0, 5.0], 300), rng.normal(size=(200, 600, 1))
    truth, one = rng.normal(size=(600, 1)) * np.where(size > 3, 1.5, 1.0)[:, None], np.ones(600)
    features, none = np.stack([one, size, 100 * one, one, 0 * one, one], -1)[:, None], np.zeros((2, 0))
    known = [
        Known("network", {"total": draws[:, part]}, {"total": truth[part]}, features[part], np.arange(60), none)
        for part in np.arange(600).reshape(60, 10).T
    ]
    report = {row["sources"]: row for row in fit_answers(known, least=100).report if row["state"] == "before"}
    assert "detected sources" not in report
    assert abs(report["extended sources"]["factor"] - 1.5) < FOUR * report["extended sources"]["factor_err"]
    assert abs(report["compact sources"]["factor"] - 1) < FOUR * report["compact sources"]["factor_err"]


def test_right_error_bars_are_said_to_be_right():
    table = Table({"state": ["before"], "flux": ["flux"], "sources": ["all sources"], "factor": [1.09]})
    table["factor_err"] = 0.05
    assert replace(FIT, report=table).findings() == [
        "Your error bars of total fluxes were right, as far as this test can tell."
    ]
    table["factor"] = 0.8
    assert replace(FIT, report=table).findings() == [
        "Your error bars of total fluxes were 1.25 ± 0.08 times too wide for all sources."
    ]


def test_the_calibrator_that_was_used_so_far_is_judged(fit):
    scenes = batches_of(scenes_of(seed=1))
    found = fit_answers([answer(*one, Wrong(), 0) for one in enumerate(scenes)], before=fit.calibrator)
    for kind in ("flux", "flux_auto"):
        before = rows(found.tested, flux=kind, sources="all", state="before")
        assert before["coverage_68"] == pytest.approx(0.68, abs=spread(before["count"][0], 800))
        before = rows(found.report, flux=kind, sources="all sources", state="before")
        assert abs(before["factor"] - 1) < FOUR * np.hypot(1, 1) * before["factor_err"]
    assert (found.probabilities["ece"] < 0.05).all()


def test_an_interrupted_run_is_resumed(tmp_path):
    asked = []

    def fields(numbers):
        for number in numbers:
            asked.append(number)
            yield number, scenes[number], Wrong()

    scenes = batches_of(scenes_of(30), 5)
    whole = [answer(number, scene, Wrong(), 0) for number, scene in enumerate(scenes)]
    scenes[3] = None
    with pytest.raises(AttributeError):
        answers_of(fields, 6, tmp_path)
    scenes[3] = batches_of(scenes_of(30), 5)[3]
    found = answers_of(fields, 6, tmp_path)
    assert asked == [0, 1, 2, 3, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"field-{number:06d}.npz" for number in range(6)]
    for one, other in zip(whole, found, strict=True):
        assert one.method == other.method
        for kind in ("total", "auto"):
            np.testing.assert_array_equal(one.draws[kind], other.draws[kind])
            np.testing.assert_array_equal(one.truth[kind], other.truth[kind])
        for name in ("features", "group", "existence"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(ValueError, match="scenes must hold at least 5 batches, got 4"):
        answers_of(fields, 4, tmp_path)


def test_listed_and_detected_sources_take_turns():
    asked = []

    class Asked(Wrong):
        def scenes(self, scene, *, positions=None, seed=0):
            asked.append(positions)
            return super().scenes(scene, positions=positions, seed=seed)

    scenes = scenes_of()
    fit_calibrator(batches_of(scenes), Asked())
    assert [places is not None for places in asked] == [True, False] * 10
    number, x, y = asked[0]
    bright = (scenes.flux[:, 0] > 0.1) & (scenes.scene < 20)
    np.testing.assert_array_equal(number, scenes.scene[bright])
    error = np.stack([x - scenes.x[bright], y - scenes.y[bright]])
    assert 0.1 < error.std() < 0.7  # those at the edge are moved into the image
    assert (np.stack([x, y]) >= 0).all()


def test_probabilities(fit):
    before, after = rows(fit.probabilities, quantity="existence")["ece"]
    assert before > 0.1
    assert after < 0.05


def test_the_calibrator_is_fitted_to_all_scenes(fit):
    assert fit.calibrator.fitted_on == "made up"
    assert fit.calibrator.method == "network"
    scenes = scenes_of(seed=1)
    bright = scenes.flux[:, 0] > 0.1
    answer = fit.calibrator(Wrong().scenes(scenes, positions=(scenes.scene, scenes.x, scenes.y), seed=9))
    low, high = np.quantile(answer.flux.values[0], (0.16, 0.84), axis=0)
    truth = scenes.flux[bright].numpy()
    inside = ((low < truth) & (truth < high)).mean()
    assert inside == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 * 2 / len(truth)))


def test_what_is_not_known_is_left_out():
    found = fit_calibrator(batches_of(scenes_of()), Wrong(existence=False))
    assert len(found.probabilities) == 0
    assert found.calibrator.existence is None


def test_total_fluxes_that_are_unknown_are_left_out():
    """As of real galaxies."""
    scenes = scenes_of()
    real = replace(scenes, flux=torch.full_like(scenes.flux, torch.nan))
    fit = fit_calibrator(batches_of(real), Wrong())
    assert set(fit.calibrator.flux) == {"auto"}
    assert (rows(fit.tested, flux="flux")["count"] == 0).all()
    assert (rows(fit.tested, flux="flux_auto", sources="all")["count"] > 130).all()


def test_too_few_scenes():
    for few in ([], batches_of(scenes_of(4), 1)):
        with pytest.raises(ValueError, match=f"scenes must hold at least 5 batches, got {len(few)}"):
            fit_calibrator(few, Wrong())
    with pytest.raises(ValueError, match="at least 320 sources with draws and truth are needed to fit, got"):
        fit_calibrator(batches_of(scenes_of(20), 4), Wrong())
    blind = replace(scenes_of(20), light=None)
    with pytest.raises(ValueError, match="scenes must have truth, got some without light"):
        fit_calibrator([blind], Wrong())


class Photometer:
    """Sums pixels around the places that it knows, and takes the sky of an image 1 rms too high."""

    def __init__(self):
        self.known = []

    def scenes(self, scene, *, positions=None, seed=0):
        return self.summed(scene.image[0].numpy(), scene.sky_rms[0].numpy(), seed, given=positions is not None)

    def __call__(self, image, *, positions=None, seed=0, **known):
        self.known.append(known)
        sky, rms = np.median(image), 1.4826 * np.median(np.abs(image - np.median(image)))
        return self.summed(image - sky - rms, rms, seed, given=positions is not None)

    def summed(self, image, rms, seed, *, given):
        around = np.add(3 + SIZE * np.arange(SOURCES)[:, None], np.arange(3))
        flux = image[0, 3:6, around].sum((1, 2))[:, None]
        draws = np.maximum(flux + 3 * rms * np.random.default_rng(seed).normal(size=(101, *flux.shape)), 1e-9)
        number, columns = np.arange(SOURCES), {"sky_rms": np.broadcast_to(rms, flux.shape)}
        answer = Posterior.from_draws(draws[None], scene=0 * number, group=number, x=around[:, 1], y=0 * number + 4.0,
                                      pixel_scale=1.0, columns=columns)  # fmt: skip
        answer.dataset.attrs["positions"] = "given" if given else "detected"
        return answer


def fields_of(count, seed):
    """Fields of bright sources in a row, each of 3 by 3 pixels."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        flux = torch.from_numpy(np.exp(rng.uniform(0, 1, (SOURCES, 1))))
        light = torch.zeros(SOURCES, 1, SIZE, SOURCES * SIZE, dtype=torch.float64)
        for number, own in enumerate(light):
            own[0, 3:6, SIZE * number + 3 : SIZE * number + 6] = flux[number] / 9
        image = light.sum(0)[None] + SKY_RMS * torch.from_numpy(rng.normal(size=(1, *light.shape[1:])))
        number, one = torch.arange(SOURCES), torch.ones(1, 1)
        truth = {"scene": 0 * number, "x": SIZE * number + 4.0, "y": 0 * number + 4.0, "flux": flux, "light": light}
        known = {"exposure": 50 * one, "wavelength": torch.nan * one}
        yield Scene(image, SKY_RMS * one, one[..., None, None], 1.0, auto_flux=flux, **known, **truth)


def test_images_show_a_calibrator_what_is_wrong_with_the_sky():
    """Scenes whose sky is known do not."""
    photometer, (*fields, other) = Photometer(), fields_of(6, 1)
    seen, blind = (fit_calibrator(fields, deblender, least=100) for deblender in (AsImages(photometer), photometer))
    tolerance = spread(SOURCES, 4 * SOURCES)
    for fit, before in ((seen, 0), (blind, 0.68)):
        found = rows(fit.tested, sources="all")["coverage_68"]
        np.testing.assert_allclose(found, [before, 0.68], atol=tolerance)
    answer = AsImages(photometer).scenes(other)
    for fit, expected in ((seen, 0.68), (blind, 0)):
        low, high = np.quantile(fit.calibrator(answer).flux.values[0], (0.16, 0.84), axis=0)
        inside = (low < other.flux.numpy()) & (other.flux.numpy() < high)
        assert inside.mean() == pytest.approx(expected, abs=tolerance)


def test_images_come_with_what_users_know():
    """The wavelength of these scenes is not known."""
    (scene,), photometer = fields_of(1, 1), Photometer()
    both = AsImages(photometer).scenes(Scene.join([scene, scene]))
    assert both.dataset.attrs["scenes"] == 2
    assert len(both) == 2 * SOURCES
    assert [sorted(known) for known in photometer.known] == [["gain", "psf"]] * 2
    assert photometer.known[0]["gain"] == [50.0]


def test_a_network_takes_them():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deblender = Deblender(SceneNetwork(), Description())
    y, x = np.mgrid[-20:21, -20:21]
    psf = torch.from_numpy(np.exp(-0.3 * (y**2 + x**2))).expand(2, 1, 41, 41)
    image = torch.from_numpy(np.random.default_rng(0).normal(0, SKY_RMS, (2, 1, 64, 64)))
    image[:, :, 10:51, 10:51] += psf
    scene = Scene(image.float(), torch.full((2, 1), SKY_RMS), psf / psf.sum((-2, -1), keepdim=True), 0.06)
    places = tuple(torch.tensor(values) for values in ([0, 0, 1], [30.0, 40.0, 30.0], [30.0, 30.0, 30.0]))
    answer = AsImages(deblender).scenes(scene, positions=places)
    assert answer.dataset["scene"].values.tolist() == [0, 0, 1]
    assert answer.dataset.attrs["positions"] == "given"
    np.testing.assert_allclose(answer.dataset["x"], places[1], atol=2)
    np.testing.assert_allclose(answer.dataset["sky_rms"], SKY_RMS, rtol=0.1)


@pytest.mark.slow
def test_fields_like_the_scenes_of_the_training():
    numbers, fields, wrapped = zip(*simulated_fields(Photometer(), range(8), seed=5), strict=True)
    assert numbers == tuple(range(8))
    assert {type(deblends) for deblends in wrapped} == {AsImages}
    assert {field.image.shape[2:] for field in fields} == {(384, 384)}
    assert {field.image.shape[1] for field in fields} >= {1, 3}
    assert len({field.pixel_scale for field in fields}) > 4
    assert all(field.group.max() >= 3 for field in fields)
    pairs = [field for field in fields if field.pixel_scale == 0.06]
    assert 0 < len(pairs) < 6
    again, other = (next(simulated_fields(Photometer(), [3], seed=seed))[1] for seed in (5, 6))
    np.testing.assert_array_equal(fields[3].image, again.image)
    assert fields[3].image.shape != other.image.shape or not np.array_equal(fields[3].image, other.image)


@pytest.mark.slow
def test_fields_are_seen_by_the_cameras_of_the_training():
    """A network that saw F160W alone is calibrated on F160W alone, and one that never saw it without."""
    others = {"native_fraction": 0.0, "bands": [0, 0, 1]}
    for cameras, expected in (({"native_fraction": 1.0}, (1, True)), (others, (3, False))):
        known = {"stream": {"templates": {"cameras": cameras}}}
        network = SimpleNamespace(description=Description(training=known))
        fields = [field for _, field, _ in simulated_fields(network, range(4), seed=5)]
        seen = {(field.image.shape[1], field.pixel_scale == 0.06) for field in fields}
        assert seen == {expected}
