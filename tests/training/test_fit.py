import math
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from probdeblend.training.fit import Schedule, fit


class LineLoss(nn.Module):
    """Least squares of a line, on batches that depend on their number alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(2, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, image, target):
        return (self.line(self.dropout(image).mean((-1, -2))) - target).square().mean()


def batch(number):
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(16, 2, 3, 3, generator=generator)
    return image, 2 * image.mean((-1, -2))[:, :1] + 1


def batches(first):
    number = first
    while True:
        yield batch(number)
        number += 1


VALIDATION = [batch(1_000_000), batch(1_000_001)]


def train(loss, source=batches, schedule=None, **options):
    schedule = schedule or Schedule(200, learning_rate=0.05, validate_every=20)
    return fit(loss, source, VALIDATION, schedule=schedule, **options)


def test_training_finds_the_line():
    loss = LineLoss()
    history = train(loss)
    assert history.step == 200
    assert history.best < 0.05
    assert not loss.training
    assert loss.line.bias.item() == pytest.approx(1.0, abs=0.1)
    assert loss.line.weight.dtype == torch.float32


def test_training_inside_autocast():
    """The caller's mixed precision must not keep weights as they were before the first step."""
    plain, inside, few = LineLoss(), LineLoss(), Schedule(8, learning_rate=0.05, validate_every=4)
    torch.manual_seed(7)
    reference = train(plain, schedule=few)
    torch.manual_seed(7)
    with torch.autocast("cpu", enabled=False):
        assert train(inside, schedule=few) == reference
    assert torch.equal(inside.line.weight, plain.line.weight)


class StoppedError(Exception):
    pass


class Interrupted:
    """A source that fails at batch 90; its loader is made when training asks for it."""

    def __init__(self, source):
        self.source = source

    def __call__(self, first):
        made = iter(self.source(first))

        def until():
            yield from islice(made, 90)
            raise StoppedError

        return until()


class Numbered(IterableDataset):
    def __init__(self, first):
        self.first = first

    def __iter__(self):
        yield from batches(self.first)


def loaded(first):
    """The same batches by a loader, which draws its seed from torch's generator."""
    return DataLoader(Numbered(first), batch_size=None)


def same(one, other):
    """Whether two states are equal: weights, optimizer, history, and the state of random numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("source", [batches, loaded])
def test_resumed_training_is_the_uninterrupted_one(tmp_path, source):
    whole, first, again = LineLoss(), LineLoss(), LineLoss()
    checkpoint = tmp_path / "state"
    torch.manual_seed(7)
    reference = train(whole, source, checkpoint=tmp_path / "whole")
    torch.manual_seed(7)
    with pytest.raises(StoppedError):
        train(first, Interrupted(source), checkpoint=checkpoint)
    torch.manual_seed(99)
    resumed = train(again, source, checkpoint=checkpoint)
    assert resumed == reference
    states = [torch.load(path, weights_only=True) for path in (tmp_path / "whole", checkpoint)]
    assert same(*states)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    # A run that was over stays as it is.
    assert train(LineLoss(), source, checkpoint=checkpoint) == reference


def test_best_weights_are_kept():
    loss = LineLoss()
    history = train(loss, schedule=Schedule(100, learning_rate=0.3, validate_every=5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        score = sum(float(loss(*item)) for item in VALIDATION) / 2
    assert score == pytest.approx(history.best, rel=1e-6)


def test_schedule_warms_up_and_ends_at_zero():
    schedule = Schedule(100, learning_rate=2.0)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[0] < 1
    assert max(rates) == pytest.approx(2.0)
    assert rates[100] == pytest.approx(0.0, abs=1e-9)


def test_the_history_is_a_table():
    table = train(LineLoss()).table()
    assert table.colnames == ["step", "training", "validation"]
    assert table["step"].tolist() == list(range(20, 201, 20))
    assert table.meta == {"steps": 200, "validation_loss": min(table["validation"])}


class PartsLoss(LineLoss):
    """The same, with its terms stated; an image of NaN has no gradient to follow."""

    def forward(self, image, target):
        value = super().forward(image, target)
        self.parts = {"half": float(value.detach()) / 2}
        return value


def test_parts_of_the_loss_are_told(capsys):
    loss = PartsLoss()
    history = fit(loss, batches, VALIDATION, schedule=Schedule(40, validate_every=20))
    table = history.table()
    assert table["half"].tolist() == pytest.approx((table["validation"] / 2).tolist())
    assert f"step 40: training {table['training'][-1]:.4f}" in capsys.readouterr().out


def test_a_part_that_some_batches_lack_is_the_mean_of_the_others():
    """A term of the fluxes, and batches of empty scenes first and last."""

    class SomeParts(LineLoss):
        def forward(self, image, target):
            value = super().forward(image, target)
            self.parts = {"positive": 3.0} if target.mean() > 0 else {"other": 1.0}
            return value

    image = VALIDATION[0][0]
    validation = [(image, torch.full_like(VALIDATION[0][1], sign)) for sign in (-1.0, 1.0, -1.0)]
    table = fit(SomeParts(), batches, validation, schedule=Schedule(20, validate_every=20)).table()
    assert table["positive"].tolist() == [3.0]
    assert table["other"].tolist() == [1.0]


def test_a_batch_without_a_finite_gradient_is_skipped():
    def some_bad(first):
        for number, (image, target) in enumerate(islice(batches(first), 100)):
            yield image * (math.nan if number == 3 else 1), target

    history = train(LineLoss(), some_bad, Schedule(20, validate_every=10))
    assert history.skipped == 1
    assert math.isfinite(history.best)


def test_errors():
    loss = LineLoss()
    with pytest.raises(ValueError, match="validation must hold at least one batch, got none"):
        fit(loss, batches, [], schedule=Schedule(1))
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        Schedule(0)
    loss.line.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="loss must stay finite"):
        train(loss)
