"""Shared work: order, and the same results for any number of workers."""

import pytest

from probdeblend.workers import in_order


def square(number):
    return number**2


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(in_order(square, range(9), workers=workers)) == [number**2 for number in range(9)]


def test_no_tasks():
    assert list(in_order(square, [], workers=1)) == []


def test_nothing_starts_before_it_is_asked_for():
    done = []
    results = in_order(done.append, [1, 2, 3])
    assert not done
    next(results)
    assert done == [1]


def test_negative_workers_are_refused():
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        in_order(square, [1], workers=-1)
