"""Readouts learn from features that are computed once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from probdeblend.training.features import FeatureLikelihood, encode_blends, fit_features, held_out
from probdeblend.training.fit import Schedule


class Stream:
    """Batches of numbers, which may be interrupted; counts how often each is encoded."""

    def __init__(self, breaks_at=None):
        self.breaks_at, self.seen = breaks_at, []

    def __call__(self, number):
        if number == self.breaks_at:
            self.breaks_at = None
            raise KeyboardInterrupt
        self.seen.append(number)
        row = 64 * number + torch.arange(64)
        return row.half(), row.float()[:, None] * torch.ones(3)


def test_blends_are_encoded_once(tmp_path):
    features, truth = encode_blends(Stream(), 150, progress=False)
    np.testing.assert_array_equal(features, np.arange(150))
    assert features.dtype == torch.float16
    assert truth.shape == (150, 3)
    stream = Stream(breaks_at=2)
    with pytest.raises(KeyboardInterrupt):
        encode_blends(stream, 150, kept=tmp_path, progress=False)
    again = encode_blends(stream, 150, kept=tmp_path, progress=False)
    assert stream.seen == [0, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(again, (features, truth), strict=True))


def line(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(2, 1)


def likelihood(layer):
    return FeatureLikelihood(layer, lambda features, start: Normal(layer(features) + start, 0.1))


def test_training_finds_what_features_say():
    layer, state = line(), torch.get_rng_state()
    features, start = torch.randn(2, 1000, 2).unbind()
    start = start[:, :1]
    truth = features.sum(1, keepdim=True) + start + 0.1 * torch.randn(1000, 1)
    state = torch.get_rng_state()
    schedule = Schedule(400, learning_rate=0.05)
    history = fit_features(likelihood(layer), (features, start, truth), schedule=schedule, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    # A hundred rows validate: four standard errors of the mean entropy.
    assert history.best == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 0.01), abs=4 * 0.5**0.5 / 10)
    np.testing.assert_allclose(layer.weight.detach(), [[1, 1]], atol=0.05)


def test_same_seed_same_readout():
    data = (*torch.randn(2, 320, 2).unbind(), torch.randn(320, 1))
    data = (data[0], data[1][:, :1], data[2])
    layers = [line() for _ in range(3)]
    for layer, seed in zip(layers, (0, 0, 1), strict=True):
        fit_features(likelihood(layer), data, schedule=Schedule(3), seed=seed, progress=False)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)


@pytest.mark.parametrize("blends", [9, 280])
def test_too_few_blends(blends):
    message = f"blends must be enough for a batch of 256 and a tenth to validate on, got {blends}"
    with pytest.raises(ValueError, match=message):
        held_out(blends)
    assert held_out(290) == 29
