"""Shared work: order, and the same results for any number of workers."""

import pytest
import torch

from probdeblend.simulation.workers import in_order

SEVERAL = [0, pytest.param(2, marks=pytest.mark.slow)]  # processes start slowly


def square(number):
    return number**2


@pytest.mark.parametrize("workers", SEVERAL)
def test_results_come_in_order(workers):
    assert list(in_order(square, range(9), workers=workers)) == [number**2 for number in range(9)]


def test_no_tasks():
    assert list(in_order(square, [])) == []


def test_nothing_starts_before_it_is_asked_for():
    done = []
    results = in_order(done.append, [1, 2, 3])
    assert not done
    next(results)
    assert done == [1]


def fail(number):
    raise ValueError(f"task {number} cannot be done")


@pytest.mark.parametrize("workers", SEVERAL)
def test_an_error_is_that_of_the_task(workers):
    with pytest.raises(ValueError, match=r"^task 3 cannot be done$"):
        list(in_order(fail, [3], workers=workers))


@pytest.mark.parametrize("workers", SEVERAL)
def test_a_task_has_one_thread(workers):
    """Sums depend on how they are split among threads."""
    before = torch.get_num_threads()
    assert list(in_order(threads, [0], workers=workers)) == [1]
    assert torch.get_num_threads() == before


def threads(number):
    return torch.get_num_threads()


def test_negative_workers_are_refused():
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        in_order(square, [1], workers=-1)
