"""Blends of isolated galaxies: their light, noise, truth and seeds."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from libraries import joined, made
from scipy.stats import binomtest

from probdeblend.scene import STAMP_SIZE, Blend
from probdeblend.surveys import PairRules, pair_blends
from probdeblend.surveys.blends import PairScene, blend_batch
from probdeblend.surveys.library import identity_number


def test_a_blend_is_the_sum_of_its_galaxies(hst):
    blends = joined(pair_blends(made(), 24, instrument=hst, seed=2, rules=PairRules(dimming=0.0)))
    assert blends.image.shape == (24, 1, STAMP_SIZE, STAMP_SIZE)
    residual = blends.image[:, 0] - blends.isolated[:, :, 0].sum(1)
    light = blends.isolated[:, :, 0].sum((-2, -1))
    torch.testing.assert_close(light, blends.flux[..., 0], rtol=0.02, atol=0)
    outside = residual[(blends.isolated[:, :, 0] == 0).all(1)]
    assert float(outside.std()) == pytest.approx(3e-3, rel=0.03)
    assert float(residual[(blends.isolated[:, :, 0] != 0).any(1)].std()) < 3e-3


@pytest.mark.parametrize(("sky", "factor"), [("one", 1.0), ("both", 2**0.5)])
@pytest.mark.parametrize("dimming", [0.0, 2.0])
def test_the_sky_noise_is_what_the_blend_says(hst, sky, factor, dimming):
    """Also at the edges, which shifts of whole stamps would leave empty."""
    rules = PairRules(sky=sky, dimming=dimming)
    blends = joined(pair_blends(made(), 24, instrument=hst, rules=rules))
    torch.testing.assert_close(blends.sky_rms, torch.full((24,), factor * 3e-3), rtol=1e-5, atol=0)
    empty = (blends.isolated[:, :, 0] == 0).all(1)
    edges = torch.zeros_like(empty)
    edges[..., :3] = edges[..., -3:] = True
    for where in (empty, empty & edges):
        assert float(blends.image[:, 0][where].std()) == pytest.approx(factor * 3e-3, rel=0.03)


def test_truth_lies_where_the_galaxies_are(hst):
    blends = joined(pair_blends(made(), 30, instrument=hst, seed=5))
    grid = torch.arange(STAMP_SIZE, dtype=torch.float32)
    light = blends.isolated[:, :, 0].clamp(min=0.02) - 0.02
    inside = ((blends.x - 63.5).abs() < 45) & ((blends.y - 63.5).abs() < 45)
    for name, axis in (("x", -1), ("y", -2)):
        profile = light.sum(-2 if axis == -1 else -1)
        centroid = (profile * grid).sum(-1) / profile.sum(-1)
        torch.testing.assert_close(centroid[inside], getattr(blends, name)[inside], atol=0.3, rtol=0)
    assert ((blends.x[:, 0] - 63.5).abs() <= 1).all()
    assert ((blends.y[:, 0] - 63.5).abs() <= 1).all()
    magnitude = -2.5 * blends.flux[..., 0].log10()
    assert ((magnitude[:, 0] - magnitude[:, 1]).abs() < 2).all()
    assert (blends.identity[:, 0] != blends.identity[:, 1]).all()
    numbers = {identity_number(name) for name in made().identity}
    assert set(blends.identity.flatten().tolist()) <= numbers


def test_masks_turn_with_their_galaxies(hst):
    """A galaxy off the middle of its stamp, elongated: mask and light agree whatever the turn."""
    y, x = np.mgrid[:STAMP_SIZE, :STAMP_SIZE]
    light = 2.0 * np.exp(-((x - 60.0) ** 2 / 50 + (y - 66.0) ** 2 / 8))
    library = made(
        4,
        pixels=np.repeat(light[None].astype(np.float32), 4, 0),
        segmentation=np.repeat(light[None] > 0.5, 4, 0),
        x=np.full(4, 60.0),
        y=np.full(4, 66.0),
        sky_rms=np.full(4, 0.5 / 3),
    )
    blends = joined(pair_blends(library, 20, instrument=hst, rules=PairRules(dimming=0.0)))
    above = (blends.isolated[:, :, 0] > 0.5).float()
    agree = (above * blends.mask).sum((-2, -1)) / (above + blends.mask > 0).sum((-2, -1))
    assert float(agree.min()) > 0.9


@pytest.mark.slow
def test_same_seed_same_blends_whatever_the_workers(hst):
    work = {"instrument": hst, "seed": 7, "batch_size": 4}
    alone, shared = (joined(pair_blends(made(), 10, workers=number, **work)) for number in (0, 2))
    for field in fields(Blend):
        first, second = getattr(alone, field.name), getattr(shared, field.name)
        assert first is second is None or torch.equal(first, second), field.name
    assert torch.equal(alone.image[8:], next(iter(pair_blends(made(), 10, first=2, **work))).image)
    assert not torch.equal(alone.image, joined(pair_blends(made(), 10, **(work | {"seed": 8}))).image)


def test_no_galaxy_nor_its_turned_copy_crosses_a_split(hst):
    """Identities of centrals and companions of training and test blends; then the pixels, turned in every way."""
    training, _, test = made(30).split(seed=1)
    drawn = [joined(pair_blends(part, 36, instrument=hst, rules=PairRules(dimming=0.0))) for part in (training, test)]
    seen = [set(blends.identity.flatten().tolist()) for blends in drawn]
    assert not seen[0] & seen[1]
    assert seen[0] <= {identity_number(name) for name in training.identity}

    def prints(blends):
        """The sorted brightest pixels of each galaxy alone: the same for every turn, flip and shift."""
        light = blends.isolated[:, :, 0].flatten(0, 1).flatten(1)
        return {tuple(np.round(row, 5)) for row in light.sort(1, descending=True).values[:, :20].numpy()}

    assert len(prints(drawn[0])) <= len(training)
    assert not prints(drawn[0]) & prints(drawn[1])


@pytest.mark.slow
def test_crowded_stamps_say_how_many_galaxies_they_hold(hst, false_alarm):
    rules = PairRules(crowding=(0.3, 0.3, 0.2, 0.2))
    blends = joined(pair_blends(made(), 300, instrument=hst, rules=rules))
    there = torch.isfinite(blends.flux[..., 0])
    assert torch.equal(there.sum(1), blends.count)
    assert (blends.identity[~there] == -1).all()
    assert not blends.mask[~there].any()
    assert not blends.isolated[~there].any()
    assert binomtest(int((blends.count == 1).sum()), 300, 0.3).pvalue > false_alarm
    singles = joined(pair_blends(made(), 5, instrument=hst, rules=PairRules(crowding=(1.0,))))
    assert singles.flux.shape == (5, 2, 1)
    assert (singles.count == 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"separation": "far"}, "separation must be one of published"),
        ({"sky": "none"}, "sky must be 'one' or 'both', got 'none'"),
        ({"max_difference": 0.0}, "max_difference must be positive"),
        ({"dimming": -1.0}, "dimming must not be negative"),
        ({"crowding": (0.5, 0.4)}, "crowding must be up to 5 probabilities that sum to 1"),
    ],
)
def test_rules_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        PairRules(**values)


def test_libraries_that_cannot_be_blended(hst):
    with pytest.raises(ValueError, match="the library must hold 2 galaxies to keep, with magnitudes, got 1"):
        pair_blends(made(3, keep=np.array([True, False, False])), 5, instrument=hst)
    bright = made(2, flux=np.array([1.0, 1000.0]))
    with pytest.raises(ValueError, match=r"library must contain 2 galaxies within 2.0 mag of each other, found none"):
        list(pair_blends(bright, 5, instrument=hst))
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        pair_blends(made(), -1, instrument=hst)


def test_blends_of_a_batch_do_not_depend_on_its_size(hst):
    scene = PairScene.of(made(), hst, PairRules())
    whole, part = blend_batch(scene, (1, 2), 6), blend_batch(scene, (1, 2), 3)
    assert torch.equal(whole.image[:3], part.image)


def test_masks_are_at_three_times_the_noise_of_the_blend(hst):
    """However much a galaxy was dimmed."""
    blends = joined(pair_blends(made(), 24, instrument=hst, rules=PairRules(dimming=2.0)))
    ratio = blends.isolated[:, :, 0] / blends.sky_rms[:, None, None, None]
    edge = [torch.quantile(ratio[i, g][blends.mask[i, g]], 0.05) for i in range(24) for g in range(2)]
    assert float(torch.stack(edge).median()) == pytest.approx(3.0, abs=0.7)
