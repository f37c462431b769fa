"""What must hold of an image's posterior whatever the weights, and what trained weights must have learned."""

import pickle
import random
import threading

import numpy as np
import pytest
import torch
from tiny_weights import PSF, QUICK, light_of, listed, moments, noise_of, scene_of

from probdeblend.deblending import Deblender, Description, deblender
from probdeblend.networks import SceneNetwork
from probdeblend.posterior import Flag
from probdeblend.simulation import Cameras, Population, simulate

GIVEN = {"psf": PSF, "sky_rms": 1.0, **QUICK}
ROUNDING = 1e-4  # of ln flux and of pixels


def assert_same(first, second, *, factor=1.0, tolerance=ROUNDING):
    """The draws of two posteriors agree to rounding, the second one's fluxes being `factor` times as large."""
    for kind in ("flux", "flux_auto"):
        np.testing.assert_allclose(
            np.log(second.dataset[kind] / factor), np.log(first.dataset[kind]), rtol=0, atol=tolerance
        )
    for name in ("label", "group", "flags"):
        np.testing.assert_array_equal(first.dataset[name], second.dataset[name])


def sigmas(first, second, index=slice(None)):
    """Differences of mean ln flux, over the quoted error."""
    (mean, error), (other, other_error) = moments(first), moments(second.select(index))
    return np.abs(other - mean) / np.hypot(error, other_error)


@pytest.fixture(scope="module")
def answer(shipped, image):
    return shipped(image, **GIVEN)


def test_every_source_is_found_and_measured(answer, places):
    x, y = answer.dataset["x"].values, answer.dataset["y"].values
    distance = np.hypot(x[:, None] - places[:, 0], y[:, None] - places[:, 1])
    assert sorted(distance.argmin(1)) == list(range(len(places)))
    assert distance.min(1).max() < 1.5
    catalog = answer.catalog()
    assert catalog["label"].tolist() == list(range(1, len(places) + 1))
    assert np.isfinite(catalog["flux"]).all()
    assert np.unique(answer.dataset["group"]).tolist() == list(range(len(np.unique(answer.dataset["group"]))))
    assert answer.flux.dims == ("chain", "draw", "source", "band")
    assert answer.flux.shape == (4, 16, 6, 1)


def test_deblended_images_and_masks_lie_on_their_sources(answer, image):
    model = answer.model_image()
    assert model.shape[-2:] == image.shape
    for label in answer.dataset["label"].values:
        cutout = answer.image(int(label))
        source = answer.select([answer.index(label)]).dataset
        rows, columns = cutout.slices
        assert rows.start <= source["y"].item() < rows.stop
        assert columns.start <= source["x"].item() < columns.stop
        assert (np.abs(cutout.data) <= np.abs(image[rows, columns]) + 1e-3).all()
    owners = answer.label_image()
    at = tuple(np.round(answer.dataset[name].values).astype(int) for name in ("y", "x"))
    np.testing.assert_array_equal(owners[at], answer.dataset["label"])


@pytest.mark.parametrize("factor", [1e-20, 3.7, 1e20])
def test_the_unit_of_the_image_is_that_of_the_fluxes(shipped, image, answer, factor):
    assert_same(answer, shipped(image * factor, **GIVEN | {"sky_rms": factor}), factor=factor)


def test_the_unit_does_not_matter_where_the_sky_is_measured(shipped, image):
    wide = np.pad(image, 30, mode="reflect") + 20
    options = {"psf": PSF, **QUICK}
    first = shipped(wide, **options)
    assert len(first) >= 6
    for factor in (1e-20, 1e20):
        second = shipped(wide * factor, **options)
        assert_same(first, second, factor=factor, tolerance=1e-2)
        np.testing.assert_allclose(second.dataset["sky_rms"] / factor, first.dataset["sky_rms"], rtol=1e-4)
        assert first.dataset["sky_rms"].values == pytest.approx(1.0, rel=0.1)


def test_a_shift_by_whole_strides_changes_nothing_but_positions(blank):
    places = np.array([[150.2, 149.7], [158.4, 152.1], [140.3, 161.8]])
    light = light_of((304, 304), *places.T, [800, 500, 900]) + noise_of((304, 304))
    scene = scene_of([light[:288, :288], light[16:, 16:]])
    both = blank.scenes(scene, positions=listed(places, places - 16), **QUICK)
    first, second = both.scene(0), both.scene(1)
    np.testing.assert_allclose(first.dataset["x"] - 16, second.dataset["x"], atol=1e-3)
    for kind in ("flux", "flux_auto"):
        np.testing.assert_allclose(np.log(first.dataset[kind]), np.log(second.dataset[kind]), rtol=0, atol=ROUNDING)


def test_trained_weights_hardly_see_shifts_flips_turns_and_padding(shipped, image, places):
    height, width = image.shape
    x, y = places.T
    moved = {
        "whole": (image, places),
        "shifted": (np.pad(image, ((5, 0), (11, 0)))[:height, :width], places + np.array([11, 5])),
        "flipped": (image[:, ::-1], np.stack([width - 1 - x, y], 1)),
        "upside down": (image[::-1], np.stack([x, height - 1 - y], 1)),
        "transposed": (image.T, np.stack([y, x], 1)),
        "turned": (np.rot90(image), np.stack([y, width - 1 - x], 1)),
    }
    images, positions = zip(*moved.values(), strict=True)
    options = {"draws": 1000, "passes": 10}
    posterior = shipped.scenes(scene_of(images), positions=listed(*positions), **options)
    whole = posterior.scene(0)
    for number, name in enumerate(moved):
        assert sigmas(whole, posterior.scene(number)).max() < 0.6, name
    padded = np.pad(image, ((10, 30), (20, 6)), constant_values=np.nan)
    other = shipped(padded, psf=PSF, sky_rms=1.0, positions=places + np.array([20, 10]), **options)
    assert sigmas(whole, other).max() < 0.6


def test_the_order_of_the_positions_does_not_matter(blank, image, places):
    order = np.array([3, 0, 5, 1, 4, 2])
    first, second = (blank(image, positions=given, **GIVEN) for given in (places, places[order]))
    np.testing.assert_array_equal(first.flux.values[:, :, order], second.flux)
    np.testing.assert_array_equal(first.dataset["x"].values[order], second.dataset["x"])
    assert second.dataset["label"].values.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(second.mask(2).data, first.mask(1).data)
    batch = blank.scenes(scene_of([image, image]), positions=listed(places, places[order]), **QUICK)
    np.testing.assert_array_equal(batch.scene(0).flux.values[:, :, order], batch.scene(1).flux)
    assert batch.dataset["label"].values.tolist() == list(range(1, 13))


@pytest.mark.parametrize(("given", "tiles"), [(False, [512, 256, 128]), (True, [512, 128])])
def test_tiles_of_any_size_give_the_same_catalog(shipped, given, tiles):
    """The strip is so long that a tile with its margins sees only a part of it."""
    rng = np.random.default_rng(2)
    places = rng.uniform(4, [508, 36], (32, 2))
    strip = light_of((40, 512), *places.T, np.exp(rng.uniform(5.5, 8, 32))) + noise_of((40, 512))
    whole, *others = (shipped(strip, tile=tile, positions=places if given else None, **GIVEN) for tile in tiles)
    assert len(whole) == 32 if given else 15 < len(whole) < 36
    for other in others:
        assert_same(whole, other, tolerance=1e-3)
        np.testing.assert_allclose(whole.dataset["x"], other.dataset["x"], atol=1e-3)
    x, y = whole.dataset["x"].values, whole.dataset["y"].values
    assert given or (np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(len(whole))).min() > 1.5


def test_many_groups_are_answered_in_parts(shipped, image, answer, monkeypatch):
    monkeypatch.setattr(deblender, "ROWS", 1)
    assert_same(answer, shipped(image, **GIVEN))


def test_a_scene_alone_gives_what_it_gives_in_a_batch(shipped, image):
    images = np.stack([image, noise_of(image.shape), image[::-1]])
    batch = shipped.scenes(scene_of(images), **QUICK)
    assert [len(batch.scene(number)) for number in range(3)] == [6, 0, 6]
    groups = []
    for number in (0, 2):
        alone = shipped.scenes(scene_of(images[[number]]), **QUICK)
        groups += np.unique(alone.dataset["group"]).tolist()
        np.testing.assert_allclose(batch.scene(number).flux, alone.flux, rtol=1e-5)  # sums in another order
    assert len(np.unique(batch.dataset["group"])) == len(groups)
    called = shipped(image, **GIVEN)
    np.testing.assert_allclose(np.log(called.flux), np.log(batch.scene(0).flux), atol=0.05)


def test_the_seed_alone_decides_and_global_states_stay(blank, image, places):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads()
    first, again, other = (blank(image, positions=places, seed=seed, **GIVEN) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.flux, again.flux)
    assert not np.isclose(first.flux, other.flux).any()
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert (random.getstate(), torch.get_num_threads()) == (states[2], threads)


def test_threads_and_pickles_give_the_same(blank, image, places):
    images = [image[:, ::step] if step > 0 else image for step in (1, -1, 0)]
    serial = [blank(pixels, positions=places, **GIVEN).flux for pixels in images]
    answers = [None] * len(images)

    def work(number):
        answers[number] = blank(images[number], positions=places, **GIVEN).flux

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(serial, answers, strict=True):
        np.testing.assert_array_equal(one, other)
    copy = pickle.loads(pickle.dumps(blank))
    np.testing.assert_array_equal(copy(image, positions=places, **GIVEN).flux, serial[0])


def test_one_network_serves_one_band_and_three(shipped, image, places):
    cube = np.stack([0.3 * image, image, 1.7 * image + noise_of(image.shape, 5)])
    posterior = shipped(cube, psf=PSF, sky_rms=[0.3, 1.0, 2.0], positions=places, zero_point=[25, 26, 27], **QUICK)
    assert posterior.flux.shape[2:] == (6, 3)
    assert posterior.covariance(1).shape[1] == 3
    names = posterior.catalog().colnames
    assert {"flux_0", "flux_1", "flux_2"} <= set(names)
    assert np.isfinite(posterior.color("0", "1")).all()
    assert posterior.image(1).data.shape[0] == 3
    missing = cube.copy()
    missing[2] = np.nan
    two = shipped(missing, psf=PSF, sky_rms=[0.3, 1.0, 2.0], positions=places, **QUICK)
    assert np.isfinite(two.flux).all()
    assert (two.flags & Flag.BAD_PIXELS > 0).all()


def test_flags(shipped, image, places):
    held = np.array(image)
    held[38:43, 88:93] = np.nan
    posterior = shipped(held, positions=[*places[1:], [1.0, 70.0]], **GIVEN)
    flags = posterior.flags
    assert flags[0] & Flag.UNLISTED
    assert not flags[2] & Flag.UNLISTED
    assert ((flags & Flag.BAD_PIXELS) > 0).tolist() == [False, True, False, False, False, False]
    assert ((flags & Flag.EDGE) > 0).tolist() == [False] * 5 + [True]
    assert flags[5] & Flag.DOUBTFUL
    assert not (flags[[2, 3, 4]] & Flag.DOUBTFUL).any()


def test_light_that_a_border_cuts_and_uneven_noise_are_flagged(shipped):
    light = light_of((96, 96), [26.0, 70.0], [30.0, 66.0], 4000)
    image, noise = light + noise_of((96, 96)), np.ones((96, 96))
    image[:, :22], noise[66:] = np.nan, 1.9
    flags = shipped(image, positions=[[26, 30], [70, 66]], **GIVEN | {"sky_rms": noise}).flags
    assert ((flags & Flag.EDGE) > 0).tolist() == [True, False]
    assert ((flags & Flag.UNEVEN_NOISE) > 0).tolist() == [False, True]
    cut = shipped(image[:, 22:], positions=[[4, 30], [48, 66]], **GIVEN).flags
    assert ((cut & Flag.EDGE) > 0).tolist() == [True, False]
    assert not (cut & Flag.UNEVEN_NOISE).any()


def test_sources_unlike_the_training_are_flagged(blank, image, places):
    bright = light_of(image.shape, *places.T, 1e8) + noise_of(image.shape)
    flags = blank(bright, positions=places, **GIVEN).flags
    assert (flags & Flag.BRIGHT > 0).all()
    network = blank.network
    far, near = (Deblender(network, Description(), tokens=1e4 * offset + torch.randn(300, 96)) for offset in (1, 0))
    assert (far(image, positions=places, **GIVEN).flags & Flag.ANOMALY > 0).all()
    assert not (near(image, positions=places, **GIVEN).dataset["anomaly"] > 1e3).any()
    unknown = Deblender(SceneNetwork(), Description())(image, positions=places, **GIVEN)
    assert np.isnan(unknown.dataset["anomaly"]).all()


@pytest.mark.parametrize("bands", [1, 3])
def test_an_image_without_a_source_has_an_empty_catalog(blank, bands):
    cube = noise_of((bands, 100, 90))
    for posterior in (blank(cube, **GIVEN), blank.scenes(scene_of([cube, cube]), **QUICK)):
        assert len(posterior) == 0
        assert len(posterior.catalog()) == 0
        assert posterior.flux.shape[2:] == (0, bands)
        assert not posterior.model_image().any()


@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (1, 1), (7, 5), (17, 40)])
def test_images_smaller_than_a_tile_are_answered(shipped, shape):
    image = 50 * noise_of(shape)
    assert len(shipped(image, **GIVEN).catalog()) >= 0
    posterior = shipped(image, positions=[[0, 0]], **GIVEN)
    assert len(posterior.catalog()) == 1
    assert posterior.flags[0] & Flag.EDGE


def test_bad_images_have_no_sources_and_listed_ones_are_flagged(shipped):
    for image in (np.full((60, 50), np.nan), np.zeros((60, 50)), np.ma.masked_all((60, 50))):
        for sky_rms in (None, 1.0):
            options = GIVEN | {"sky_rms": sky_rms}
            assert len(shipped(image, **options).catalog()) == 0
            posterior = shipped(image, positions=[[20, 30], [40, 20]], **options)
            assert len(posterior.catalog()) == 2
            assert (posterior.flags & Flag.BAD_PIXELS > 0).all()
            assert np.isfinite(posterior.flux).all() == (sky_rms is not None)


def gaussian(sigma):
    psf = np.exp(-0.5 * (np.hypot(*np.mgrid[-20:21, -20:21]) / sigma) ** 2)
    return psf / psf.sum()


@pytest.mark.parametrize(
    ("sigma", "message"),
    [(0.3, r"psf must be 1\.2 to 6 pixels wide .* got 0\.\d+: the pixels are too coarse"),
     (4.0, r"psf must be 1\.2 to 6 .* got 9\.\d+: bin the image by a factor of 2")],
)  # fmt: skip
def test_a_psf_far_outside_the_trained_range_is_refused(blank, image, sigma, message):
    with pytest.raises(ValueError, match=message):
        blank(image, psf=gaussian(sigma), sky_rms=1.0)
    with pytest.raises(ValueError, match=message):
        blank.scenes(scene_of([image], psf=gaussian(sigma)))
    with pytest.raises(ValueError, match="in band 1: "):
        blank([image, image], psf=[PSF, gaussian(sigma)], sky_rms=1.0)


def test_an_image_with_a_narrow_psf_is_smoothed(shipped, places):
    """The unit, the tiles and the way to call do not matter; pixels and their noise stay those of the image."""
    narrow, flux = gaussian(0.65), np.array([600.0, 300, 400, 900, 250, 500])
    image = light_of((144, 144), *places.T, flux, sigma=0.65) + noise_of((144, 144))
    given = {"psf": narrow, "sky_rms": 1.0, "positions": places, **QUICK}
    answer = shipped(image, **given)
    assert np.abs(moments(answer)[0][:, 0] - np.log(flux)).max() < 0.3
    assert "smoothed with Gaussians of 1." in answer.dataset.attrs["notes"]
    assert (answer.dataset["sky_rms"] == 1).all()
    cutout = answer.image(3)
    np.testing.assert_allclose(cutout.data[0].max(), image[cutout.slices].max(), rtol=0.05)
    assert_same(answer, shipped(image, tile=64, **given))
    assert_same(answer, shipped(1e-3 * image, **given | {"sky_rms": 1e-3}), factor=1e-3)
    batch = shipped.scenes(scene_of([image], psf=narrow), positions=listed(places), **QUICK)
    assert_same(answer, batch, tolerance=0.05)
    assert batch.dataset.attrs["notes"] == answer.dataset.attrs["notes"].split("; ")[-1]


@pytest.mark.slow
def test_sky_around_an_image_does_not_change_the_answer(shipped, image, places):
    """The sky is subtracted where there is enough of it, which adds less than its noise."""
    padded = noise_of((560, 560), 4)
    padded[208:352, 208:352] = image
    options = {"psf": PSF, "draws": 400, "passes": 10}
    alone = shipped(image, positions=places, sky_rms=1.0, **options)
    for sky_rms in (1.0, None):
        other = shipped(padded, positions=places + 208, sky_rms=sky_rms, **options)
        assert sigmas(alone, other).max() < 0.4


@pytest.mark.slow
def test_fluxes_through_narrow_psfs_are_as_good_as_through_trained_ones(shipped):
    """Fraction of the 68 % intervals that cover, and bias, of 240 sources: standard errors are 0.03 and 0.01."""
    covers, bias = {}, {}
    for width in (1.3, 2.2):
        cameras = Cameras(fwhm=(width, width), native_fraction=0.0, bands=(1.0,))
        found = []
        for seed in range(30):
            camera = cameras.sample(np.random.default_rng(seed))
            population = Population.default().replace(snr=(20.0, 300.0))
            scene = simulate(4, population=population, camera=camera, size=96, number=2, seed=seed)
            answer = shipped.scenes(scene, positions=(scene.scene, scene.x, scene.y), draws=200, passes=10)
            logs = np.log(answer.flux.values.reshape(-1, len(answer))) - np.log(scene.flux[:, 0].numpy())
            found.append(np.stack([np.median(logs, 0), *np.quantile(logs, [0.16, 0.84], axis=0)]))
        median, low, high = np.concatenate(found, 1)
        covers[width], bias[width] = ((low < 0) & (high > 0)).mean(), np.median(median)
    assert abs(covers[1.3] - covers[2.2]) < 0.17
    assert abs(bias[1.3]) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 0}, "draws must be at least 1, got 0"), ({"passes": -1}, "passes must be at least 0, got -1"),
     ({"seed": -2}, "seed must be at least 0, got -2"), ({"tile": 0}, "tile must be at least 16 pixels, got 0")],
)  # fmt: skip
def test_numbers_out_of_range(blank, image, places, options, message):
    with pytest.raises(ValueError, match=message):
        blank(image, positions=places, **GIVEN | options)
    with pytest.raises(ValueError, match=message):
        blank(noise_of((60, 60)), **GIVEN | options)


def test_passes_are_chains_and_progress_is_told(blank, image, places):
    told = []
    posterior = blank(
        image, positions=places, tile=100, progress=lambda *seen: told.append(seen), **GIVEN | {"passes": 0}
    )
    assert posterior.flux.shape[:2] == (1, 64)
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert blank(image, positions=places, **GIVEN | {"draws": 10}).flux.shape[:2] == (4, 3)


def test_assumptions_are_noted(blank, image):
    notes = blank(image, **GIVEN).dataset.attrs["notes"]
    assert "sky-subtracted" in notes
    assert "sizes are in pixels" in notes
