"""Instances of stars and galaxies: simulated fields and their masks, average precision as COCO has it, and commands."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from benchmarks.peers import instances, overlaps
from benchmarks.peers._fields import SURVEYS, Field, compose, draw_sources, field, flat_masks
from benchmarks.peers._instances import IOU_THRESHOLDS, Instances, curves, expected_iou, hits, judged, precision
from probdeblend.metrics import average_precision
from probdeblend.metrics.masks import iou_matrix
from probdeblend.posterior.cutouts import Cutouts
from probdeblend.scene import SOURCE_TYPES, Scene

SIDE = 64


@pytest.fixture(scope="module")
def made():
    """A star, a galaxy, and a galaxy that is too faint to count, all of them Gaussian."""
    y, x = np.mgrid[:24, :24] - 11.5
    light = [
        peak * np.exp(-(x**2 + y**2) / 2 / sd**2)[None].repeat(3, 0) for peak, sd in ((50, 1.5), (20, 3), (0.5, 2))
    ]
    corner = np.array([[10, 4], [30, 33], [2, 38]])
    truth = Cutouts(corner, (SIDE, SIDE), mask=[np.sqrt((own**2).sum(0)) > 3 for own in light], image=light)
    known = {"sky_rms": torch.ones(1, 3), "psf": torch.ones(1, 3, 1, 1), "pixel_scale": 0.2}
    middle = torch.from_numpy(corner).float() + 11.5
    kinds = torch.tensor([SOURCE_TYPES.index(kind) for kind in ("star", "disk", "disk")])
    places = {"scene": torch.zeros(3, dtype=torch.long), "x": middle[:, 1], "y": middle[:, 0], "source_type": kinds}
    return Field(Scene(torch.zeros(1, 3, SIDE, SIDE), **known, **places), truth)


@pytest.fixture(scope="module")
def random_images():
    """Disks of several images, some found with errors, with scores: lists of masks, and of scores."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:32, :32]

    def disks(center, radius):
        return np.hypot(x - center[:, 0, None, None], y - center[:, 1, None, None]) < radius[:, None, None]

    truth, found, score = [], [], []
    for _ in range(6):
        center, radius = rng.uniform(4, 28, (5, 2)), rng.uniform(3, 7, 5)
        tried = np.concatenate([center + rng.normal(0, 0.8, (5, 2)), rng.uniform(4, 28, (3, 2))])
        truth.append(disks(center, radius))
        found.append(disks(tried, np.concatenate([radius, rng.uniform(3, 7, 3)])))
        score.append(rng.permutation(8) / 8 + rng.uniform(0, 0.1, 8))
    return truth, found, score


def all_curves(truth, found, score):
    overlap = [iou_matrix(*pair) for pair in zip(found, truth, strict=True)]
    hit = [
        np.stack([hits(o, s, level) >= 0 for level in IOU_THRESHOLDS], -1) for o, s in zip(overlap, score, strict=True)
    ]
    hit, flat = np.concatenate(hit), np.concatenate(score)
    return overlap, curves(hit, flat, np.ones(len(flat), dtype=bool), sum(map(len, truth)))


def test_average_precision_is_that_of_the_package(random_images):
    overlap, found = all_curves(*random_images)
    expected = average_precision(overlap, random_images[2])
    assert 0.1 < expected["ap"] < 0.9
    assert found.mean() == pytest.approx(expected["ap"], abs=1e-12)
    assert found[0].mean() == pytest.approx(expected["ap_50"], abs=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_average_precision_is_that_of_coco(random_images):
    pytest.importorskip("pycocotools", reason="pycocotools is needed: pip install pycocotools")
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known, answers = COCO(), COCO()
    images = [{"id": number, "height": 32, "width": 32} for number in range(1, 7)]
    sets = [{"images": images, "categories": [{"id": 1}], "annotations": []} for _ in range(2)]
    for image, (truth, found, score) in enumerate(zip(*random_images, strict=True), start=1):
        for data, masks in zip(sets, (truth, found), strict=True):
            for number, mask in enumerate(masks):
                annotation = {"id": len(data["annotations"]) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
                annotation |= {"segmentation": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))}
                annotation |= {"area": float(mask.sum()), "score": float(score[number]) if masks is found else 1.0}
                data["annotations"].append(annotation)
    for coco, data in zip((known, answers), sets, strict=True):
        coco.dataset = data
        coco.createIndex()
    judge = COCOeval(known, answers, "segm")
    judge.evaluate()
    judge.accumulate()
    assert_allclose(all_curves(*random_images)[1], judge.eval["precision"][:, :, 0, 0, -1], atol=1e-12)


@pytest.mark.slow
def test_field_is_its_sources_and_noise():
    survey = SURVEYS["hsc"]
    places, star = np.array([[15.0, 20.0], [44.0, 40.0], [50.0, 10.0]]), np.array([True, False, False])
    sources = draw_sources(np.array([20.0, 21.0, 28.5]), star, places, survey.pixel_scale, seed=1)
    drawn = compose(sources, survey.camera(np.random.default_rng(0)), (SIDE, SIDE), seed=2)
    scene, light = drawn.scene, np.zeros((3, SIDE, SIDE))
    for number in range(len(drawn.truth)):
        cutout = drawn.truth.cutout("image", number)
        light[:, *cutout.slices] += cutout.data
    rms = scene.sky_rms[0].double().numpy()[:, None, None]
    spread = np.sqrt(rms**2 + light / scene.exposure[0].double().numpy()[:, None, None])
    residual = (scene.image[0].double().numpy() - light) / spread
    assert residual.std((1, 2)) == pytest.approx(1, abs=5 / np.sqrt(2 * SIDE**2))
    over = drawn.truth.image[0] / rms
    assert_array_equal(drawn.truth.mask[0], np.sqrt((over**2).sum(0)) > 3)
    assert drawn.star.tolist() == [True, False, False]
    assert (drawn.snr > 5).tolist() == [True, True, False]
    assert ((drawn.contested >= 0) & (drawn.contested < 0.9)).all()


@pytest.mark.slow
def test_point_sources_of_the_quoted_depth_have_its_signal_to_noise():
    survey = SURVEYS["hsc"]
    sources = draw_sources(np.array([survey.depth[2]]), np.ones(1, dtype=bool), np.full((1, 2), 32.0), 0.168, seed=1)
    alone = compose(sources, survey.camera(np.random.default_rng(1)), (SIDE, SIDE), seed=1)
    light = alone.truth.image[0][2] / float(alone.scene.sky_rms[0, 2])
    assert np.linalg.norm(light) == pytest.approx(5, rel=0.02)


@pytest.mark.slow
def test_field_has_the_counted_galaxies_and_depends_on_its_seed():
    survey = SURVEYS["decam"]
    first, again, other = (field(survey, 200, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scene.image, again.scene.image)
    assert not torch.equal(first.scene.image, other.scene.image)
    area = (200 * 0.263 / 60) ** 2
    for drawn in (first, other):
        assert (~drawn.star).sum() == pytest.approx(46 * area, abs=4 * np.sqrt(46 * area))
        assert drawn.star.sum() == pytest.approx(8 * area, abs=4 * np.sqrt(8 * area))


def instances_of(mask, center, score, star):
    kinds = np.where(star, np.nan, score), np.where(star, score, np.nan)
    return Instances(csr_array(mask), np.asarray(center, dtype=float), np.stack([np.asarray(score, float), *kinds], -1))


def test_the_truth_is_precise_and_what_is_wrong_is_not(made):
    mask = flat_masks(made.truth).toarray()
    center = torch.stack([made.scene.x, made.scene.y], -1).numpy()
    right = judged(made, instances_of(mask, center, [0.9, 0.8, 0.95], made.star))
    for kind, sources in (("any", 2), ("galaxy", 1), ("star", 1)):
        found, count = precision(right, kind)
        assert (count, found.mean()) == (sources, 1)  # the faint galaxy is neither missed nor false
    swapped = judged(made, instances_of(mask, center, [0.9, 0.8, 0.95], ~made.star))
    assert [precision(swapped, kind)[0].mean() for kind in ("any", "galaxy", "star")] == [1, 0, 0]
    blank = np.zeros_like(mask[:1])
    blank[0, -5:] = 1
    false = instances_of(
        np.concatenate([blank, mask]), [[60, 63], *center], [0.99, 0.9, 0.8, 0.95], [False, *made.star]
    )
    found = precision(judged(made, false), "any")[0]
    assert_allclose(found, 2 / 3)  # one false source before two real ones
    in_bin = precision(judged(made, false), "any", feature="snr", low=made.snr[0] - 1, high=np.inf)
    assert in_bin[1] == 1  # the star's, and the false source is nearest to the galaxy
    assert in_bin[0].mean() == 1


def test_expected_overlap_is_the_overlap_of_masks_drawn_from_the_probabilities():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-20:20, -20:20]
    probability = 1 / (1 + np.exp(np.hypot(x, y) - 9))
    mask = probability >= 0.5
    truth = rng.random((400, 40, 40)) < probability
    overlap = (truth & mask).sum((1, 2)) / (truth | mask).sum((1, 2))
    assert expected_iou(probability) == pytest.approx(overlap.mean(), abs=0.005)
    assert expected_iou(np.zeros((3, 3))) == 0


def test_galaxies_of_a_group_are_as_far_apart_as_asked():
    rng = np.random.default_rng(5)
    for number in (2, 3):
        for _ in range(5):
            found = overlaps.places(number, 7.0, rng)
            away = np.linalg.norm(found[:, None] - found, axis=-1) + 1e9 * np.eye(number)
            assert_allclose(away.min(1), 7.0)
            assert_allclose(found.mean(0), 0, atol=1e-9)


@pytest.mark.slow
def test_instances_command(run):
    table = run(instances, "--count", "1", "--side", "96")
    every = table[table["feature"] == "all"]
    assert every["class"][(every["survey"] == "hsc") & (every["method"] == "network")].tolist() == [
        "any",
        "galaxy",
        "star",
    ]
    sep = every[(every["method"] == "sep") & (every["class"] == "any")]
    assert (sep["sources"] > 3).all()
    assert ((sep["ap_50"] > 0.2) & (sep["ap"] < sep["ap_50"])).all()
    assert table.meta["CPU seconds per field, network"] > 0


@pytest.mark.slow
def test_overlaps_command(run, monkeypatch):
    monkeypatch.setattr(overlaps, "NUMBERS", (2,))
    table = run(overlaps, "--count", "6")
    every = table[(table["low"] == 0.5) & (table["high"] == 4.0)]
    assert every["sources"].tolist() == [12] * 4
    sep = table[(table["method"] == "sep") & (table["low"] >= 3.0)]
    assert (sep["ap_50"][sep["sources"] > 0] > 0.5).all()
