"""Sources are injected into the sky of users' images, and nothing else changes."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy import ndimage

from probdeblend.posterior import Posterior
from probdeblend.simulation import Population
from probdeblend.simulation.positions import Frame
from probdeblend.training import fields
from probdeblend.training.calibrate import answer, answers_of, fit_answers
from probdeblend.training.fields import injected_fields, population_like

SIZE, RMS = 128, 2.0
FOUR = 4.0  # standard errors: a false alarm in 16,000
Y, X = np.mgrid[-20:21, -20:21]
PSF = np.exp(-(Y**2 + X**2) / 4.5) / (4.5 * np.pi)
ERROR = 0.03  # relative, of fluxes that are taken at the nearest pixel
NOISE = RMS / np.sqrt((PSF**2).sum())  # of the flux of a star


class Photometer:
    """Fits a star at each place, or at each peak, and claims an error that is off by a factor."""

    def __init__(self, factor=1.0):
        self.factor, self.images, self.false = factor, [], np.zeros((2, 0))

    def __call__(self, image, *, positions=None, seed=0, **known):
        self.images.append((image, known))
        pixels = np.nan_to_num(image)
        pixels = pixels - np.median(pixels, axis=(1, 2), keepdims=True)
        flux = np.stack([ndimage.correlate(band, PSF) for band in pixels]) / (PSF**2).sum()
        highest = ndimage.maximum_filter(flux[0], 9)
        given = positions is not None
        y, x = np.nonzero((flux[0] == highest) & (highest > 5 * NOISE))
        x, y = positions.T if given else np.append([x, y], self.false, 1)
        place = np.rint(np.stack([y, x])).astype(int)
        found = np.stack([ndimage.maximum_filter(band, 5)[*place] for band in flux], -1)  # lists err
        error = self.factor * np.hypot(NOISE, ERROR * found)
        draws = found + error * np.random.default_rng(seed).normal(size=(1, 400, *found.shape))
        columns = {"sky_rms": np.full(found.shape, RMS), "existence": np.full(len(x), 0.9)}
        number = np.arange(len(x))
        bands = tuple(map(str, range(len(image))))
        answer = Posterior.from_draws(np.maximum(draws, 1e-9), scene=0 * number, group=number, x=x, y=y, bands=bands,
                                      pixel_scale=1.0, columns=columns)  # fmt: skip
        answer.dataset.attrs["positions"] = "given" if given else "detected"
        return answer


def sky(size=SIZE, *, bands=1, stars=3, seed=0):
    """An image with a level, noise and some bright stars."""
    rng = np.random.default_rng(seed)
    pixels = 50 + RMS * rng.normal(size=(bands, size, size))
    for x, y in rng.integers(25, size - 25, (stars, 2)):
        pixels[:, y - 20 : y + 21, x - 20 : x + 21] += 60 * NOISE * PSF
    return pixels


@pytest.fixture(autouse=True)
def stars(monkeypatch):
    """Only bright stars are injected, two in a group."""
    population = Population.default().replace(star_fraction=1.0, number=(0.0, 0.0, 1.0), snr=(20.0, 60.0))
    monkeypatch.setattr(fields, "_crowds", lambda: population)
    return population


def injected(deblender, image, numbers=(7,), **changes):
    how = {"psf": PSF, "sky_rms": RMS, "gain": 5.0} | changes
    return list(injected_fields(deblender, numbers, images=[image], **how))


@pytest.mark.parametrize("bands", [1, 2])
def test_light_is_added_to_the_users_pixels(bands):
    photometer, image = Photometer(), sky(bands=bands)
    image[:, :30, 40:60] = np.nan
    ((number, scene, window),) = injected(photometer, image, wavelength=0.8)
    assert number == 7
    window.scenes(scene)
    (before, known), (after, _) = photometer.images
    assert known["gain"] == pytest.approx([5.0] * bands)
    assert known["wavelength"] == pytest.approx([0.8] * bands)
    assert known["sky_rms"].tolist() == [RMS] * bands
    level = np.nanmean(before - image, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(before - level, image, atol=1e-9)
    own = scene.flux.isfinite().all(1)
    added, light = after - before, scene.light[own].sum(0).numpy()
    np.testing.assert_array_equal(np.isnan(added), np.isnan(image))
    dark = np.isfinite(added) & (light <= 0)
    np.testing.assert_allclose(added[dark], light[dark], atol=1e-9)
    lit = light > 1
    pull = (added - light)[lit] / np.sqrt(light[lit] / 5)
    assert pull.std() == pytest.approx(1, abs=FOUR / np.sqrt(2 * lit.sum()))
    np.testing.assert_allclose(scene.image[0].numpy()[lit], (image - 50 + added)[lit], atol=0.3 * RMS)


def test_sources_that_are_there_are_listed_but_not_known(stars, monkeypatch):
    monkeypatch.setattr(fields, "_crowds", lambda: stars.replace(number=(0.0, 1.0)))
    photometer, image = Photometer(), sky(stars=4)
    found = [field[1:] for field in injected(photometer, image, range(9))]
    apart = [torch.hypot(scene.x[1:] - scene.x[0], scene.y[1:] - scene.y[0]).min() > 12 for scene, _ in found]
    scene, window = found[apart.index(True)]
    there = photometer(image)
    far = 2.0 if scene.x[0] > SIZE / 2 else SIZE - 3.0
    photometer.false = np.array([[float(scene.x[0]) + 2, far], [float(scene.y[0]) + 1, 2.0]])
    own = scene.flux.isfinite().all(1).numpy()
    assert own.tolist() == [True] + [False] * len(there)
    for name in "xy":
        np.testing.assert_allclose(getattr(scene, name)[~own], there.dataset[name])
    assert scene.light[~own].isnan().all()
    assert scene.auto_flux[~own].isnan().all()
    listed, detected = (answer(number, scene, window, 0) for number in (0, 1))
    for known, false in ((listed, 0), (detected, 2)):
        assert np.isfinite(known.truth["total"]).sum() == 1
        assert len(known.features) == 1 + len(there) + false
    assert listed.existence.shape == (2, 0)
    # The others count neither as real nor as false, nor does what is false in the dark.
    assert sorted(detected.existence[1]) == [0, 1]


def test_windows_of_a_mosaic_have_good_pixels_and_do_not_depend_on_others(monkeypatch):
    monkeypatch.setattr(fields, "SIDE", 96)
    photometer, image = Photometer(), sky(200)
    image[:, :, :60] = np.nan
    both = injected(photometer, image, (2, 5))
    (again,) = injected(photometer, image, (5,))
    np.testing.assert_array_equal(both[1][1].image, again[1].image)
    for _, scene, _ in both:
        assert scene.image.shape == (1, 1, 96, 96)
    for seen, _ in photometer.images:
        assert np.isfinite(seen[0]).mean() >= 0.5
    with pytest.raises(ValueError, match="image must have windows that can be deblended, got none in 20 tries: more"):
        injected(photometer, np.where(np.arange(200) > 40, np.nan, image))


def test_images_share_the_fields():
    photometer, images = Photometer(), [sky(seed=number) for number in range(3)]
    found = injected_fields(photometer, range(6), images=images, psf=PSF, sky_rms=RMS)
    order = [number for number, *_ in found]
    assert order == [0, 3, 1, 4, 2, 5]
    asked = [
        np.ptp(image[0] - images[number % 3][0]) for (image, _), number in zip(photometer.images, order, strict=True)
    ]
    np.testing.assert_allclose(asked, 0, atol=1e-9)  # each is looked at before anything is injected


@pytest.mark.parametrize(
    ("image", "known", "message"),
    [
        (sky(), {"psf": None}, "psf must be given"),
        (sky()[:, :64], {}, r"image must be at least 96 pixels on a side, got shape \(64, 128\)"),
        (np.ones((1, 128, 128)), {"sky_rms": None}, "sky_rms must be given where the sky"),
    ],
)
def test_images_that_cannot_be_used(image, known, message):
    with pytest.raises(ValueError, match=message):
        injected(Photometer(), image, **known)


def seen_as(**changes):
    known = {"zero_point": (25.0, 26.0), "bands": ("g", "r"), "unit": "nJy", "pixel_scale": 0.2} | changes
    return SimpleNamespace(psf=torch.from_numpy(PSF)[None], **known)


def test_injected_sources_are_like_those_of_a_catalog():
    rng = np.random.default_rng(0)
    magnitude = rng.normal(22, 1, 400)
    radius = 0.1 + 0.2 * (24 - magnitude).clip(0.5)
    magnitudes = Table({"mag_g": magnitude, "half_light_radius": radius, "mag_r": magnitude + 9})
    fluxes = Table({"flux_g": 10 ** (0.4 * (25 - magnitude)), "half_light_radius": radius})
    for catalog, middle, seen in (
        (magnitudes, 22, seen_as()),
        (fluxes, 22, seen_as()),
        (fluxes, -3, seen_as(zero_point=(np.nan, np.nan))),
    ):
        population = population_like(catalog, seen).replace(star_fraction=0.0, number=(0.0, 1.0))
        drawn = population.sample(400, Frame((SIZE, SIZE), 0.2, 4.0), seed=1)
        found = drawn["magnitude"][drawn["exists"]].numpy()
        assert found.mean() == pytest.approx(middle, abs=FOUR * np.sqrt(2 / 400))
        assert found.std() == pytest.approx(1, abs=FOUR * np.sqrt(1 / 400))
        size = (drawn["half_light_radius"] * drawn["axis_ratio"].sqrt())[drawn["exists"]].numpy()
        expected = 0.1 + 0.2 * (2 - found + middle).clip(0.5)
        assert np.median(size / expected) == pytest.approx(1, abs=0.15)


def test_catalogs_that_cannot_be_used():
    good = {"flux": np.ones(30), "half_light_radius": np.ones(30)}
    blind = seen_as(zero_point=(np.nan, np.nan))
    wanted = "catalog must have the columns flux, or mag for an image with zero points, and half_light_radius, got "
    for columns, seen, message in (
        ({"x": [1.0]}, seen_as(), f"{wanted}x"),
        ({"mag": [1.0], "half_light_radius": [1.0]}, blind, f"{wanted}mag, half_light_radius"),
        ({"flux": good["flux"]}, seen_as(), f"{wanted}flux"),
        ({name: v[:9] for name, v in good.items()}, blind, "catalog must have 20 sources with fluxes and radii, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            population_like(Table(columns), seen)
    with pytest.raises(ValueError, match="catalog must have flux in nJy, as the image's fluxes, got uJy"):
        population_like(Table(good, units={"flux": "uJy"}), blind)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "how"), [(0.5, "small"), (2.0, "wide")])
def test_a_calibrator_repairs_error_bars_in_the_users_sky(factor, how, stars, tmp_path, monkeypatch):
    """Intervals that are too narrow or too wide are reported so, and cover with the calibrator.

    False alarms: one of 16,000 for each coverage and factor.
    """
    monkeypatch.setattr(fields, "_crowds", lambda: stars.replace(number=(0.0, 1.0)))
    photometer, image = Photometer(factor), sky(384, stars=10)
    make = partial(injected_fields, photometer, images=[image], psf=PSF, sky_rms=RMS)
    fit = fit_answers(answers_of(make, 75, tmp_path), least=100)
    assert f"times too {how} for all sources" in fit.findings()[0]
    before, after = (row for row in fit.report if row["sources"] == "all sources")
    assert abs(before["factor"] - 1) > FOUR * before["factor_err"]
    assert abs(after["factor"] - 1) < FOUR * after["factor_err"]
    before, after = (row for row in fit.tested if row["sources"] == "all")
    assert before["coverage_68"] < 0.5 if how == "small" else before["coverage_68"] > 0.85
    count = after["count"]
    assert after["coverage_68"] == pytest.approx(0.68, abs=FOUR * np.sqrt(0.68 * 0.32 * (1 / count + 0.25 / count)))
