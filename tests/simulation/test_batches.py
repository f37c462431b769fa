"""Shared work: order, and the same results for any number of workers."""

import pytest
import torch

from probdeblend.simulation.scenes import in_batches

SEVERAL = [0, pytest.param(2, marks=pytest.mark.slow)]  # processes start slowly
ONE = {"seed": 7, "batch_size": 1}


def task(key, size):
    return key, size


@pytest.mark.parametrize("workers", SEVERAL)
def test_batches_come_in_order(workers):
    made = list(in_batches(task, 17, seed=7, batch_size=2, workers=workers))
    assert made == [((7, number), 2) for number in range(8)] + [((7, 8), 1)]


def test_later_batches():
    made = list(in_batches(task, 7, seed=7, batch_size=3))
    assert list(in_batches(task, 7, seed=7, batch_size=3, first=1)) == made[1:] == [((7, 1), 3), ((7, 2), 1)]
    assert list(in_batches(task, 7, seed=7, batch_size=3, first=3)) == []
    assert list(in_batches(task, 0, seed=7, batch_size=3)) == []


def test_nothing_starts_before_it_is_asked_for():
    done = []
    results = in_batches(lambda key, size: done.append(key[1]), 3, **ONE)
    assert not done
    next(results)
    assert done == [0]


def fail(key, size):
    raise ValueError(f"batch {key[1]} cannot be made")


@pytest.mark.parametrize("workers", SEVERAL)
def test_an_error_is_that_of_the_batch(workers):
    with pytest.raises(ValueError, match=r"^batch 3 cannot be made$"):
        list(in_batches(fail, 4, first=3, **ONE, workers=workers))


@pytest.mark.parametrize("workers", SEVERAL)
def test_a_batch_has_one_thread(workers):
    """Sums depend on how they are split among threads."""
    before = torch.get_num_threads()
    assert list(in_batches(threads, 1, **ONE, workers=workers)) == [1]
    assert torch.get_num_threads() == before


def threads(key, size):
    return torch.get_num_threads()


@pytest.mark.parametrize(("name", "least"), [("count", 0), ("seed", 0), ("batch_size", 1), ("workers", 0)])
def test_numbers_are_not_negative(name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        in_batches(task, **({"count": 1} | ONE | {name: least - 1}))
