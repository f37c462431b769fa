"""Tests without truth: they pass posteriors that are right, and fail those that are too narrow or divide wrongly."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import _held_out, consistency
from benchmarks._held_out import Blend, held_band, interpolation, light_draws
from benchmarks._real import blending_excess, difference, isolated
from benchmarks.consistency import Image, judged, observed_twice, split
from probdeblend.posterior import Cutouts, Posterior
from probdeblend.scene import drizzle_kernel

SCENES = 300


def scatter(z, false_alarm):
    """Bounds of the fraction of z within one sigma, if z is normal."""
    return stats.binom.ppf([false_alarm / 2, 1 - false_alarm / 2], len(z), 0.6827) / len(z)


@pytest.mark.parametrize(("claim", "sd"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5)])
def test_errors_too_small_or_too_large_show_in_repeats(truth, posterior, claim, sd):
    """A scatter of 1 within five standard errors, of 0.8 / sqrt(300) for the scaled MAD of so many scenes."""
    scene = truth(SCENES, 1)
    found = difference(*(posterior(scene, claim=claim, seed=seed) for seed in (1, 2)), kind="total")
    row = next(judged(found | {"scene": np.arange(SCENES)}))
    assert row["values"] == SCENES
    assert row["z_sd"] == pytest.approx(sd, rel=5 * 1.17 / SCENES**0.5)
    assert row["z_sd_low"] <= row["z_sd"] <= row["z_sd_high"]


def test_bins_of_a_feature():
    z = np.arange(8.0)
    rows = list(judged({"z": z, "snr": np.repeat([3.0, 10.0], 4), "scene": np.arange(8)}, (5.0, 20.0, np.inf)))
    assert [row["bin"] for row in rows] == ["snr 5 to 20", "snr 20 to inf"]
    assert [row["values"] for row in rows] == [4, 0]
    assert "z_sd" not in rows[1]


def test_sources_alone_in_noise_of_their_scene(truth):
    scene = truth(200, 2, snr=50.0)
    alone = isolated(scene, 0)
    assert alone.scene.tolist() == list(range(400))
    noise = alone.image - scene.light
    assert float(noise.std()) == pytest.approx(1, abs=5 / (2 * noise.numel()) ** 0.5)


class Recorder:
    """Answer with the sum of an image's pixels for each source, and note what is asked."""

    def __init__(self):
        self.asked = []

    def scenes(self, scene, *, positions=None, seed=0):
        self.asked.append(scene)
        flux = scene.image.sum((2, 3)).clamp(min=1e-3)[positions[0]].numpy()
        draws = flux * np.exp(np.random.default_rng(seed).normal(0, 0.01, (1, 300, 1, 1)))
        at = [values.numpy() for values in positions]
        return Posterior.from_draws(draws, draws, scene=at[0], group=at[0], x=at[1], y=at[2])


def test_the_blend_and_its_sources_alone_are_asked_for(truth):
    scene, asked = truth(3, 2), Recorder()
    found = blending_excess(asked, scene, kind="total")
    assert [len(part) for part in asked.asked] == [3, 6]
    assert found["number"].tolist() == [2] * 6
    assert found["scene"].tolist() == [0, 0, 1, 1, 2, 2]
    assert np.isfinite(found["z"]).all()


def test_the_second_exposure_is_deeper(truth):
    scene, asked = truth(200, 1, snr=50.0), Recorder()
    observed_twice(asked, scene, depth=4.0)
    noise = [float((part.image - scene.light).std()) for part in asked.asked]
    assert noise == pytest.approx([1.0, 0.5], rel=0.1)
    assert [float(part.sky_rms[0, 0]) for part in asked.asked] == [1.0, 0.5]


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_parts_of_a_split_image_are_independent(ratio, false_alarm):
    """The sum of correlated pixels scatters too, by up to twice the error of independent ones."""
    rng, kernel, size = np.random.default_rng(0), drizzle_kernel(1.0), 300
    pixels = consistency.draw_noise((size, size), kernel, rng)
    image = Image("", pixels, np.ones_like(pixels), kernel, 1.0, {})
    (one, first), (two, second) = split(image, ratio, rng)
    assert one.var() == pytest.approx(first, rel=0.05)
    assert two.var() == pytest.approx(second, rel=0.05)
    limit = 2 * stats.norm.isf(false_alarm / 2) / size
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < limit
    assert np.corrcoef(one.ravel(), pixels.ravel())[0, 1] > 0.3


def gaussian(x, y, width, size):
    rows, columns = np.indices((size, size))
    return np.exp(-0.5 * ((rows - y) ** 2 + (columns - x) ** 2) / width**2) / (2 * np.pi * width**2)


class Divided:
    """Answer with given shares of the light."""

    def __init__(self, shares):
        self.shares = shares

    def __call__(self, image, *, positions, **settings):
        light = self.shares[:, None] * image
        cuts = Cutouts(np.zeros((len(light), 2)), image.shape[1:], image=list(light.astype(np.float32)))
        draws = np.ones((1, 2, len(light), len(image)))
        bands = [str(band) for band in range(len(image))]
        known = {"group": np.zeros(len(light)), "x": positions[:, 0], "y": positions[:, 1]}
        return Posterior.from_draws(draws, scene=np.zeros(len(light)), bands=bands, cutouts=cuts, **known)


def test_a_band_is_predicted_by_the_right_division_alone():
    """Two sources of opposite colors; chi-square is 1 within five standard errors, of more than 500 free pixels."""
    rng, size, place = np.random.default_rng(1), 48, np.array([[19.0, 24.0], [28.0, 24.0]])
    shape = np.stack([gaussian(*at, 3.0, size) for at in place])
    flux = np.array([[3000.0, 2000, 4000, 1000, 800], [800.0, 1000, 500, 2000, 3000]])
    noise = np.stack([consistency.draw_noise((size, size), _held_out.NOISE_KERNEL, rng) for _ in range(5)])
    image, psf = np.einsum("sb,syx->byx", flux, shape) + noise, np.broadcast_to(gaussian(20, 20, 1.8, 41), (5, 41, 41))
    blend = Blend("", image, np.ones_like(image), np.ones((size, size), dtype=bool), psf, place)
    found = held_band(Divided(shape / shape.sum(0).clip(1e-9)), blend, "i")
    assert found["network"] == pytest.approx(1, abs=5 * (2 / 500) ** 0.5)
    assert found["whole"] > 5
    assert held_band(Divided(np.full((2, size, size), 0.5)), blend, "i")["network"] > 5


def test_colors_of_a_power_law_are_predicted_exactly():
    waves = [0.5, 0.62, 0.9]
    assert interpolation(waves) @ np.log([waves[0] ** 1.7, waves[2] ** 1.7]) == pytest.approx(np.log(0.62**1.7))


def test_drawn_light_has_the_drawn_flux():
    shape = {"x_err": 0.1, "y_err": 0.1, "half_light_radius": 3.0, "half_light_radius_err": 0.1, "axis_ratio": 0.7}
    shape |= {"axis_ratio_err": 0.05, "angle": 0.3, "angle_err": 0.1, "sersic_index": 1.0, "sersic_index_err": 0.05}
    columns = {name: np.full(2, value) for name, value in (shape | {"star": 0.0}).items()}
    draws = np.exp(np.random.default_rng(0).normal(3, 0.1, (1, 8, 2, 1)))
    known = {"scene": [0, 0], "group": [0, 0], "x": [30.0, 50.0], "y": [40.0, 40.0], "pixel_scale": 1.0}
    posterior = Posterior.from_draws(draws, columns=columns, **known)
    light = light_draws(posterior, gaussian(20, 20, 1.8, 41), (80, 80), draws=8, seed=0)
    np.testing.assert_allclose(light.sum((1, 2)), draws[0, :, :, 0].sum(1), rtol=0.02)
    assert light.std(0).max() > 0


@pytest.mark.slow
def test_consistency(run, monkeypatch, data_dir):
    monkeypatch.setattr(consistency, "NUMBERS", (2,))
    monkeypatch.setattr(consistency, "color_scatter", lambda band: 0.01)
    table = run(consistency, "--count", "1", "--blends", "1")
    tests = ("repeats", "blending excess", "held-out band", "predicted flux", "held-out pixels")
    assert set(table["test"]) == set(tests)
    assert set(table["images"]) >= {"simulated", "HSC i", "HSC r"}
    chi2 = table["chi2"][table["test"] == "held-out band"]
    assert len(chi2) == 12
    assert (np.asarray(chi2) > 0).all()


@pytest.mark.slow
def test_the_prior_bends_colors_little():
    assert 0 < consistency.color_scatter("r") < 0.05
