"""Mask R-CNN of torchvision: what it learns from, that a resumed training is the same one, and what it answers."""

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_array_equal

from benchmarks.peers import mask_rcnn
from benchmarks.peers._fields import SURVEYS, field


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision is needed: pip install torchvision")


@pytest.fixture
def small(monkeypatch):
    """Make crops of 64 pixels, of which a block is two steps of two crops."""
    for name, value in {"CROP": 64, "CROPS": 2, "FIELDS": 1, "BLOCK": 2, "MOST": 20}.items():
        monkeypatch.setattr(mask_rcnn, name, value)


@pytest.mark.parametrize("turn", range(8))
def test_crops_turn_with_their_masks_and_boxes(turn):
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, 1, 2:5], masks[1, 3:, 0] = True, True
    image = torch.cat([masks.float(), torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))])
    crop, known = mask_rcnn.turned((image, masks, torch.tensor([1, 2])), turn)
    assert torch.equal(crop[:2], known["masks"].float())
    for (left, top, right, bottom), mask in zip(known["boxes"].int().tolist(), known["masks"], strict=True):
        assert mask[top:bottom, left:right].all()  # these masks are rectangles
        assert mask.sum() == (right - left) * (bottom - top) == 3
    shapes = {torch.rot90(image.flip(-1) if n >= 4 else image, n, (-2, -1)).numpy().tobytes() for n in range(8)}
    assert len(shapes) == 8


def test_the_better_of_two_alike_is_kept():
    overlap = np.array([[1, 0.8, 0.1], [0.8, 1, 0.7], [0.1, 0.7, 1]])
    assert_array_equal(mask_rcnn.best(overlap, np.array([0.9, 0.8, 0.7])), [0.9, np.nan, 0.7])
    assert_array_equal(mask_rcnn.best(overlap, np.array([0.7, 0.8, 0.7])), [np.nan, 0.8, np.nan])


@pytest.mark.slow
def test_crops_hold_the_sources_that_count():
    drawn = field(SURVEYS["decam"], 128, seed=3)
    found = mask_rcnn.targets(drawn, 64)
    assert len(found) == 4
    for image, masks, label in found:
        assert image.shape == (3, 64, 64)
        assert masks.shape[1:] == (64, 64)
        assert (masks.sum((1, 2)) >= 5).all()
        if len(masks):
            assert image.sum(0)[masks.any(0)].mean() > 2 * image.sum(0)[~masks.any(0)].mean()
        assert set(label.tolist()) <= {1, 2}
    assert sum(len(masks) for _, masks, _ in found) > 3
    whole = mask_rcnn.targets(drawn, 128)[0]
    assert (whole[2] == mask_rcnn.STAR).sum() == (drawn.star & [mask.sum() >= 5 for mask in drawn.truth.mask]).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision", "small")
def test_a_resumed_training_is_the_same(tmp_path):
    state = torch.get_rng_state()
    mask_rcnn.train(tmp_path / "whole.pt", 3, seed=0)
    mask_rcnn.train(tmp_path / "parts.pt", 3, seed=0, limit=1)
    begun = torch.load(tmp_path / "parts.pt", weights_only=True)
    mask_rcnn.train(tmp_path / "parts.pt", 3, seed=0)
    whole, parts = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "parts.pt"))
    assert (begun["step"], parts["step"]) == (1, 3)
    for name, value in whole["network"].items():
        assert torch.equal(value, parts["network"][name])
    assert not all(torch.equal(value, begun["network"][name]) for name, value in whole["network"].items())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"must have been trained with .*'steps': 4.* got .*'steps': 3"):
        mask_rcnn.train(tmp_path / "parts.pt", 4, seed=0)
    network = mask_rcnn.load_mask_rcnn(tmp_path / "whole.pt", 64)
    network.roi_heads.score_thresh = 0.0
    scene = field(SURVEYS["decam"], 64, seed=1).scene
    found = mask_rcnn.by_mask_rcnn(network, scene)
    assert found.mask.shape == (len(found.score), 64**2)
    assert np.isfinite(found.score[:, 1:]).sum(1).tolist() == [1] * len(found.score)  # one class each
    assert len(found.score) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision", "small")
def test_training_lowers_the_loss(monkeypatch):
    monkeypatch.setattr(mask_rcnn, "WARM_UP", 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = mask_rcnn.build(64).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=mask_rcnn.RATE)
    batch = next(mask_rcnn.batches(0, seed=0))
    losses = [mask_rcnn._step(network, optimizer, batch, seed=0) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(value.grad is not None for value in network.parameters() if value.requires_grad)


def test_a_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    result = CliRunner().invoke(mask_rcnn.main, ["--steps", "1", "--output", str(tmp_path / "network.pt")])
    assert result.exit_code == 1
    assert "torchvision is needed for Mask R-CNN" in result.output
