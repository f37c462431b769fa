"""The fully convolutional network: labels, training on a stored set, scores, files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import labels as segment
from probdeblend.networks.fcn import LABELS, FullyConvolutional, labels, mask_probabilities
from probdeblend.scene import Instrument
from probdeblend.simulation.galsim import render_torch, simulate_blends
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import write_blends


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "pairs"
    hst = Instrument.candels_f160w()
    settings = {"prior": Prior.published(separation="anywhere"), "instrument": hst, "seed": 1, "render": render_torch}
    write_blends(path, simulate_blends(60, **settings), instrument=hst)
    return path


@pytest.mark.parametrize("count", [0, 1, 7])
def test_logits_have_the_shape_of_the_image(count):
    network = FullyConvolutional(first_filters=2)
    assert network(torch.randn(count, 1, 64, 96)[..., :64]).shape == (count, len(LABELS), 64, 64)


def test_a_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    network = FullyConvolutional(first_filters=4)
    network(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in network.parameters())


def test_evaluation_is_deterministic():
    network = FullyConvolutional(first_filters=2).eval()
    image = torch.randn(2, 1, 64, 64)
    assert torch.equal(network(image), network(image))


def test_first_filters_are_positive():
    with pytest.raises(ValueError, match="first_filters must be at least 1, got 0"):
        FullyConvolutional(first_filters=0)


def test_labels_and_masks():
    mask = torch.tensor([[[[0, 1, 0, 1]], [[0, 0, 1, 1]]]], dtype=torch.bool)
    assert labels(mask).tolist() == [[[0, 1, 2, 3]]]
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().reshape(1, 4, 1, 1)
    torch.testing.assert_close(mask_probabilities(logits).flatten(), torch.tensor([0.6, 0.7]))


@pytest.mark.slow
def test_training_learns_and_comes_back(pairs, tmp_path):
    path = tmp_path / "labels.safetensors"
    torch.manual_seed(0)
    before = segment.evaluate_labels(FullyConvolutional(), pairs, start=54, progress=False)
    scores = segment.train_labels(pairs, path, steps=60, batch_size=8, progress=False)
    assert scores.confusion.sum() == 6 * 128**2
    assert np.nanmean(scores.iou[:3]) > np.nanmean(before.iou[:3]) + 0.2
    assert scores.table()["label"].tolist() == list(LABELS)
    again = segment.evaluate_labels(segment.load_labels(path), pairs, start=54, progress=False)
    np.testing.assert_array_equal(again.confusion, scores.confusion)
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.safetensors"]
    with pytest.raises(FileExistsError):
        segment.train_labels(pairs, path, steps=1, progress=False)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        segment.load_labels(tmp_path / "none")
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="damaged, or of other shapes"):
        segment.load_labels(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not a label network that this version of probdeblend wrote"):
        segment.load_labels(tmp_path / "other")


def test_a_short_training_writes_what_loads(pairs, tmp_path):
    path = tmp_path / "labels.safetensors"
    scores = segment.train_labels(pairs, path, steps=1, batch_size=4, progress=False)
    again = segment.evaluate_labels(segment.load_labels(path), pairs, start=54, progress=False)
    np.testing.assert_array_equal(again.confusion, scores.confusion)
    checkpoint = tmp_path / "other.safetensors.checkpoint"
    checkpoint.touch()
    with pytest.raises(FileExistsError, match="resume goes on from it, overwrite starts anew"):
        segment.train_labels(pairs, tmp_path / "other.safetensors", steps=1, progress=False)
