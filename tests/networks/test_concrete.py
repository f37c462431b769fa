"""Dropout that learns how much to drop: as much as the data leave open, and no more."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from torch import nn

from probdeblend.networks.composite import Blend2Mask2Flux
from probdeblend.networks.concrete import ConcreteDropout
from probdeblend.networks.count import CountNetwork
from probdeblend.networks.layers import PassDropout, Readout, dropout_passes
from probdeblend.refinement.guide import JointGuide
from probdeblend.training.amortize import GuideLikelihood
from probdeblend.training.counting import CountLikelihood


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Blend2Mask2Flux(unet_filters=4, depth=2, first_filters=2, hidden=8, patch=4)


def learn(parameters, loss, *, steps=250, rate=0.05):
    """Follow the gradient of a loss that is drawn anew in each step."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(parameters, rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("blends", [0, 1, 7])
def test_shapes(blends):
    readout = Readout(5, 4, dropout=0.1, concrete=True)
    assert readout(torch.rand(blends, 5)).shape == (blends, 4)
    with dropout_passes(readout.eval()):
        assert readout(torch.rand(blends, 5)).shape == (blends, 4)
    assert ConcreteDropout(0.2)(torch.ones(blends, 3, 2, 2)).shape == (blends, 3, 2, 2)


def test_so_many_units_are_dropped(false_alarm):
    layer, features = ConcreteDropout(0.2), torch.ones(200, 100)
    torch.manual_seed(0)
    kept = layer(features) * 0.8
    assert stats.binomtest(int((kept < 0.5).sum()), features.numel(), 0.2).pvalue > false_alarm
    assert ((kept < 0.01) | (kept > 0.99)).float().mean() > 0.85
    assert kept.mean().item() == pytest.approx(0.8, abs=0.01)


def test_passes_drop_the_same_units_for_every_blend():
    layer, features = ConcreteDropout(0.5).eval(), torch.ones(6, 100)
    assert torch.equal(layer(features), features)
    with dropout_passes(layer):
        dropped = layer(features)
    assert torch.equal(dropped, dropped[:1].expand(6, 100))
    assert 20 < int((dropped[0] < 0.5).sum()) < 80
    assert torch.equal(layer(features), features)
    trained = layer.train()(features)
    assert not torch.equal(trained, trained[:1].expand(6, 100))


def test_same_seed_same_passes_also_of_a_copy():
    torch.manual_seed(3)
    first, second = (Readout(20, 8, dropout=start, concrete=True).eval() for start in (0.3, 0.1))
    second.load_state_dict(first.state_dict())
    assert second.dense[0].probability.item() == pytest.approx(0.3)
    answers = []
    for readout, seed in ((first, 0), (second, 0), (first, 1)):
        torch.manual_seed(seed)
        with dropout_passes(readout):
            answers.append(readout(torch.ones(3, 20)))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_a_gradient_reaches_the_probability():
    readout = Readout(20, 8, dropout=0.3, concrete=True)
    readout(torch.randn(5, 20)).sum().backward()
    for name, parameter in readout.named_parameters():
        assert bool(parameter.grad.any()), name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("probability", [1e-6, 0.1, 0.5, 0.9])
def test_the_divergence_is_that_of_the_paper(probability):
    layer = nn.Linear(7, 3)
    unscaled = layer.weight.detach().double() / (1 - probability)
    entropy = stats.bernoulli(probability).entropy()
    exact = (1 - probability) / 2 * unscaled.square().sum() - 7 * entropy
    assert ConcreteDropout(probability).divergence(layer).item() == pytest.approx(exact.item(), rel=1e-4)


def test_the_divergence_of_a_readout():
    readout = Readout(5, 4, dropout=0.3, concrete=True)
    first, second = readout.dense[0].divergence(readout.dense[1]), readout.dense[3].divergence(readout.dense[4])
    assert readout.divergence().item() == pytest.approx((first + second).item())
    plain = Readout(5, 4, dropout=0.3)
    assert isinstance(plain.dense[0], PassDropout)
    assert plain.divergence() == 0


@pytest.mark.parametrize(("blends", "more"), [(10, True), (150, False)])
def test_the_probability_is_the_best_one(blends, more):
    # For y = w x with known w, inputs of size one and noise of unit variance, dropout adds |w|^2 / 2 times the mean
    # square deviation of what units are multiplied with. It is p / (1 - p) but for the concrete distribution.
    layer, drop = nn.Linear(20, 1, bias=False), ConcreteDropout(0.2)
    nn.init.constant_(layer.weight.requires_grad_(False), 0.2)
    features = torch.randn(400, 20, generator=torch.Generator().manual_seed(0)).sign()

    def loss():
        error = layer(drop(features)) - layer(features)
        return error.square().mean() / 2 + drop.divergence(layer) / blends

    def expected(start):
        p, noise = expit(start), logit((np.arange(5000) + 0.5) / 5000)
        factor = expit((noise - start) / 0.1) / (1 - p)
        divergence = 0.8 / (2 * (1 - p)) - 20 * stats.bernoulli(p).entropy()
        return 0.4 * np.mean((factor - 1) ** 2) + divergence / blends

    learn(drop.parameters(), loss)
    best = expit(minimize_scalar(expected, bounds=(-9, 3), method="bounded").x)
    assert (best > 0.2) == more
    assert drop.probability.item() == pytest.approx(best, rel=0.1)


@pytest.mark.parametrize(("blends", "least", "most"), [(20, 0.3, 0.6), (1000, 0.0, 0.1)])
def test_few_blends_drop_more_than_many(blends, least, most):
    torch.manual_seed(0)
    readout, out = Readout(8, 16, dropout=0.2, concrete=True), nn.Linear(16, 1)
    features = torch.randn(blends, 8)
    truth = 0.2 * features.sum(1, keepdim=True) + torch.randn(blends, 1)

    def loss():
        return (out(readout(features)) - truth).square().mean() / 2 + readout.divergence() / blends

    learn([*readout.parameters(), *out.parameters()], loss)
    assert least < readout.dense[3].probability.item() < most


def test_units_of_noise_are_dropped_and_others_kept():
    torch.manual_seed(0)
    signal, noise = torch.randn(2, 300, 8)
    truth = signal.sum(1, keepdim=True) + torch.randn(300, 1)
    drops = nn.ModuleList(ConcreteDropout(0.1) for _ in range(2))
    layers = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))

    def loss():
        seen = sum(layer(drop(part)) for drop, layer, part in zip(drops, layers, (signal, noise), strict=True))
        divergence = sum(drop.divergence(layer) for drop, layer in zip(drops, layers, strict=True))
        return (seen - truth).square().mean() / 2 + divergence / 300

    learn([*drops.parameters(), *layers.parameters()], loss)
    assert drops[0].probability.item() < 0.03
    assert drops[1].probability.item() > 0.3


@pytest.fixture(scope="module")
def guide(encoder):
    return JointGuide(encoder, pixel_scale=0.06, hidden=16, dropout=0.4, concrete=True)


@pytest.fixture(scope="module")
def blends(guide):
    """Features, starts and unknowns of nine blends for a guide."""
    unknowns = guide.head.fluxes
    return tuple(torch.randn(9, count) for count in (len(guide.readout.mean), unknowns, unknowns))


def test_the_losses_add_the_divergence_in_training(encoder, guide, blends):
    counts = CountNetwork(encoder, hidden=4, concrete=True)
    features = torch.randn(9, len(counts.readout.mean))
    for kind, network, batch in (
        (GuideLikelihood, guide, blends),
        (CountLikelihood, counts, (features, torch.arange(1, 10))),
    ):
        values = []
        for loss in (kind(network, blends=50), kind(network)):
            torch.manual_seed(0)
            values += [loss.train()(*batch), loss.eval()(*batch)]
        added = (values[0] - values[2]).item()
        assert added == pytest.approx(network.readout.divergence().item() / 50, abs=1e-4)
        assert values[1] == values[3]
        values[0].backward()
        assert network.readout.dense[0].logit.grad != 0


def test_a_guide_draws_passes(guide, blends):
    guide = copy.deepcopy(guide).eval()
    sure = guide.numbers(*blends[:2])
    with dropout_passes(guide):
        first, second = (guide.numbers(*blends[:2]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(guide.numbers(*blends[:2]), sure)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
def test_errors(probability):
    with pytest.raises(ValueError, match=f"probability must be between 0 and 1 to be learned, got {probability}"):
        ConcreteDropout(probability)
