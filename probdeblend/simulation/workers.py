"""Batches of scenes, shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from joblib import Parallel, delayed

from ..scene import Scene, seed_of, seeded

__all__ = ["in_batches", "on_threads"]

Maker = Callable[[tuple[int, int], int], Scene]


def in_batches(
    make: Maker, count: int, *, seed: int, batch_size: int, first: int = 0, workers: int = 0
) -> Iterator[Scene]:
    """Make `count` scenes by ``make((seed, number of the batch), size)``, in order; 0 workers means in this process.

    Nothing starts before the first batch is asked for, and an error is that of its batch.
    """
    least = {"count": (count, 0), "seed": (seed, 0), "batch_size": (batch_size, 1), "workers": (workers, 0)}
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
    tasks = [((seed, i), min(batch_size, count - start)) for i, start in enumerate(range(0, count, batch_size))]
    return _results(make, tasks[first:], workers)


def _results(make: Maker, tasks: list[tuple[tuple[int, int], int]], workers: int) -> Iterator[Scene]:
    shared = Parallel(n_jobs=max(workers, 1), return_as="generator")
    yield from shared(delayed(_on_one_thread)(make, *task) for task in tasks)


def _on_one_thread(make: Maker, key: tuple[int, int], size: int) -> Scene:
    """Make a batch on one thread, as sums depend on how they are split: the same for any number of workers."""
    with seeded(seed_of(*key)), on_threads(1):
        return make(key, size)


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Use so many threads at most in the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
