"""SEP as a posterior of any number of sources: detection, given positions, draws, groups, masks and flags."""

from pathlib import Path

import numpy as np
import pytest
import sep
import torch
from scipy import stats

from probdeblend.deblending import SepDeblender
from probdeblend.photometry import detection as photometry
from probdeblend.posterior.flags import Flag
from probdeblend.scene import Scene
from probdeblend.simulation.sets import read_scenes

SCENES = Path(__file__).parent / "scenes"
SIZE, SKY_RMS = 96, 0.01
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(float)
CROWD = {"x": [30.0, 39.0, 75.0, 20.0, 80.0], "y": [30.0, 33.0, 70.0, 75.0, 20.0], "flux": [20.0, 10.0, 15.0, 8.0, 3.0]}


def gaussian(x, y, flux, *, sigma=2.5):
    return flux * np.exp(-0.5 * ((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


def scene_of(*images, exposure=None, sky_rms=SKY_RMS):
    """Scenes of noiseless images ``(band, y, x)``, or ``(y, x)`` for one band, with noise."""
    rng = np.random.default_rng(3)
    light = np.stack([image if np.ndim(image) == 3 else image[None] for image in images])
    noisy = light + sky_rms * rng.normal(size=light.shape)
    both = light.shape[:2]
    depth = None if exposure is None else torch.full(both, float(exposure))
    psf = torch.full((*both, 3, 3), 1 / 9)
    return Scene(torch.from_numpy(noisy).float(), torch.full(both, sky_rms), psf, 0.06, exposure=depth)


def crowd():
    return sum(gaussian(*source) for source in zip(*CROWD.values(), strict=True))


@pytest.fixture(scope="module")
def scene():
    """Five sources, of which two touch; one source; and blank sky."""
    return scene_of(crowd(), gaussian(40, 50, 5.0), np.zeros((SIZE, SIZE)))


@pytest.fixture(scope="module")
def posterior(scene):
    return SepDeblender(draws=300).scenes(scene)


def test_every_source_is_found_and_measured(posterior):
    assert len(posterior) == 6
    assert posterior.dataset.attrs["method"] == "sep"
    assert posterior.dataset.attrs["scenes"] == 3
    assert list(posterior.dataset["scene"].values) == [0] * 5 + [1]
    x = posterior.dataset["x"].values[:5]
    nearest = np.abs(x[:, None] - CROWD["x"]).argmin(1)
    assert sorted(nearest) == [0, 1, 2, 3, 4]
    flux = posterior.flux_auto.values.mean((0, 1))[:5, 0]
    np.testing.assert_allclose(flux, np.array(CROWD["flux"])[nearest], rtol=0.1)
    assert not posterior.flags.any()


def test_touching_segments_are_a_group(posterior):
    group, x = posterior.dataset["group"].values, posterior.dataset["x"].values
    first, second = (int(np.abs(x[:5] - place).argmin()) for place in CROWD["x"][:2])
    assert first != second
    assert group[first] == group[second]
    assert len(set(group.tolist())) == 5
    assert group[5] not in group[:5]


def test_masks_are_the_segments(scene, posterior):
    image = scene.image[0, 0].double().numpy() / SKY_RMS
    segments = photometry.detect(image, 1.0).segmentation
    rebuilt = np.zeros_like(segments)
    for label in posterior.dataset["label"].values[:5]:
        cutout = posterior.mask(label)
        rebuilt[cutout.slices] += np.where(cutout.data > 0, label, 0).astype(np.int32)
        assert cutout.data.max() == 1
    np.testing.assert_array_equal(rebuilt > 0, segments > 0)


def by_hand(image, rms, exposure):
    """SExtractor's AUTO photometry with the settings of Boucaud et al. (2020, table 3), by SEP itself."""
    deblending = {"deblend_nthresh": 64, "filter_type": "conv", "segmentation_map": True}
    found, segments = sep.extract(image / rms, 5.0, err=1.0, minarea=10, deblend_cont=0.01, **deblending)
    hot, hot_segments = sep.extract(image / rms, 4.0, err=1.0, minarea=6, deblend_cont=1e-4, **deblending)
    for label in range(1, len(hot) + 1):
        own = hot_segments == label
        if not segments[own].any():
            found = np.append(found, hot[label - 1])
            segments[own] = len(found)
    ellipses = [found[name] for name in ("x", "y", "a", "b", "theta")]
    owners = {"seg_id": np.arange(1, len(found) + 1, dtype=np.int32), "segmap": segments}
    radius = np.maximum(2.5 * sep.kron_radius(image, *ellipses, 6.0, **owners)[0], 3.5)
    flux, error, _ = sep.sum_ellipse(image, *ellipses, radius, err=rms, gain=exposure, **owners)
    return found, np.bincount(segments.ravel(), minlength=len(found) + 1)[1:], flux, error


def test_photometry_is_that_of_the_published_settings():
    """Stored scenes of one to four sources, some of which only the hot settings find."""
    stored = read_scenes(SCENES, 42, 58)
    answer = SepDeblender(draws=2000).scenes(stored)
    values = (stored.image.double().numpy(), stored.sky_rms.tolist(), stored.exposure.tolist())
    found, area, flux, error = zip(
        *(by_hand(image[0], *rms, *exposure) for image, rms, exposure in zip(*values, strict=True)), strict=True
    )
    found, flux, error = np.concatenate(found), np.concatenate(flux), np.concatenate(error)
    np.testing.assert_array_equal([mask.sum() for mask in answer.cutouts.mask], np.concatenate(area))
    columns = {"x": found["x"], "y": found["y"], "axis_ratio": found["b"] / found["a"], "angle": found["theta"]}
    for name, expected in columns.items():
        np.testing.assert_allclose(answer.dataset[name], expected, atol=1e-6)
    np.testing.assert_allclose(answer.dataset["sky_rms"], stored.sky_rms.numpy()[answer.dataset["scene"]])
    draws = answer.flux_auto.values[0, :, :, 0]
    assert len(draws) == 2000
    assert np.abs((draws.mean(0) - flux) / error).max() < 6 / 2000**0.5
    np.testing.assert_allclose(draws.std(0), error, rtol=0.1)


def test_the_published_settings_reach_sep(scene, monkeypatch):
    """Table 3 of Boucaud et al. (2020): threshold, least area, levels and contrast, cold and hot."""
    taken, extract = [], sep.extract

    def record(image, threshold, *, minarea, deblend_nthresh, deblend_cont, **others):
        taken.append((threshold, minarea, deblend_nthresh, deblend_cont))
        given = {"minarea": minarea, "deblend_nthresh": deblend_nthresh, "deblend_cont": deblend_cont}
        return extract(image, threshold, **given, **others)

    monkeypatch.setattr(sep, "extract", record)
    for pairs in (False, True):
        taken.clear()
        SepDeblender(draws=2, pairs=pairs).scenes(scene.select(slice(1, 2)))
        assert taken == [(5.0, 10, 64, 0.01), (4.0, 6, 64, 1e-4)]


def positions_of(scene, x, y):
    return tuple(torch.tensor(values, dtype=torch.float64) for values in (scene, x, y))


def test_given_positions_keep_their_order(scene, posterior):
    x, y = [*CROWD["x"][::-1], 60.0], [*CROWD["y"][::-1], 45.0]
    forced = SepDeblender(draws=300).scenes(scene, positions=positions_of([0] * 5 + [2], x, y))
    np.testing.assert_array_equal(forced.dataset["x"], x)
    np.testing.assert_array_equal(forced.flags, [0] * 5 + [int(Flag.NOT_DETECTED)])
    flux = forced.flux_auto.values.mean((0, 1))[:, 0]
    np.testing.assert_allclose(flux[:5], CROWD["flux"][::-1], rtol=0.1)
    assert np.isnan(flux[5])
    assert forced.mask(6).data.sum() == 0
    assert len(set(forced.dataset["group"].values)) == 5


def test_a_detection_serves_positions_within_ten_pixels(scene):
    for apart, far in ((9.5, False), (10.5, True)):
        forced = SepDeblender(draws=2).scenes(scene, positions=positions_of([1], [40.0 + apart], [50.0]))
        assert np.isnan(forced.flux_auto.values).all() == far
        assert (int(forced.flags[0]) == int(Flag.NOT_DETECTED)) == far


def test_a_detection_serves_one_position(scene):
    forced = SepDeblender(draws=10).scenes(scene, positions=positions_of([1, 1], [41.0, 47.0], [50.0, 50.0]))
    np.testing.assert_array_equal(np.isnan(forced.flux_auto.values).all((0, 1, 3)), [False, True])
    assert len(set(forced.dataset["group"].values)) == 2


def test_draws_have_the_quoted_errors(false_alarm):
    scene = scene_of(crowd(), exposure=100)
    found = SepDeblender(draws=4000).scenes(scene)
    image = scene.image[0, 0].double().numpy()
    detection = photometry.detect(image / SKY_RMS, 1.0)
    value, error = photometry.kron_flux(image, detection, SKY_RMS, exposure=100)
    pulls = ((found.flux_auto.values[0, :, :, 0] - value) / error)[:, :2]
    assert all(stats.kstest(pull, "norm").pvalue > false_alarm / 2 for pull in pulls.T)
    assert stats.pearsonr(*pulls.T).pvalue > false_alarm


def test_bands_are_detected_together_and_measured_apart():
    """Each band alone is too faint for a detection that both together make."""
    faint, bright = gaussian(40, 50, 1.2), gaussian(70, 20, 6.0)
    both = SepDeblender(draws=50).scenes(scene_of(np.stack([1.2 * faint, 1.2 * faint + bright])))
    assert both.flux_auto.shape == (1, 50, 2, 2)
    place = int(np.abs(both.dataset["x"].values - 40).argmin())
    flux = both.flux_auto.values.mean((0, 1))
    np.testing.assert_allclose(flux[place], 1.44, rtol=0.3)
    np.testing.assert_allclose(flux[1 - place, 1], 6.0, rtol=0.05)
    assert len(SepDeblender(draws=50).scenes(scene_of(1.2 * faint))) == 0


def test_bad_pixels_do_not_matter_where_another_band_is_good():
    scene = scene_of(np.stack([crowd(), crowd()]))
    scene.image[0, 0, 28:33, 28:33] = torch.nan
    assert len(SepDeblender(draws=10).scenes(scene)) == 5


def test_close_pairs_are_split_as_published():
    """Cold sees one source; only where the whole stamp is searched hot it is two."""
    image = gaussian(44, 48, 100.0) + gaussian(54.5, 48, 3.5, sigma=2.0)
    scene = scene_of(image)
    assert len(SepDeblender(draws=10).scenes(scene)) == 1
    assert len(SepDeblender(draws=10, pairs=True).scenes(scene)) == 2


def test_same_seed_same_draws(scene, posterior):
    alone = SepDeblender(draws=300).scenes(scene.select(slice(1)))
    np.testing.assert_array_equal(alone.flux_auto.values, posterior.flux_auto.values[:, :, :5])
    other = SepDeblender(draws=300).scenes(scene, seed=5)
    assert not np.array_equal(other.flux_auto.values, posterior.flux_auto.values)


def test_no_scenes_no_sources(scene):
    assert SepDeblender(draws=10).scenes(scene.select(slice(0))).flux_auto.shape == (1, 10, 0, 1)
    blank = SepDeblender(draws=10).scenes(scene.select(slice(2, 3)))
    assert len(blank) == 0
    assert blank.dataset.attrs["scenes"] == 1


def test_quoted_errors_are_too_small_for_a_close_pair():
    truth = np.array([20.0, 10.0])
    scene = scene_of(*[gaussian(40, 48, truth[0]) + gaussian(47, 48, truth[1])] * 30)
    number = torch.arange(30).repeat_interleave(2)
    positions = (number, torch.tensor([40.0, 47.0]).repeat(30), torch.full((60,), 48.0))
    flux = SepDeblender().scenes(scene, positions=positions).flux_auto.values[0, :, :, 0].reshape(1000, 30, 2)
    low, high = np.quantile(flux, [0.16, 0.84], axis=0)
    assert ((low < truth) & (truth < high)).mean() < 0.4


def test_too_few_draws():
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        SepDeblender(draws=1)
