"""Work shared among processes, with results in the order of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from joblib import Parallel, delayed

__all__ = ["in_order"]


def in_order(function: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int = 0) -> Iterator[Any]:
    """Apply a function to each task and yield the results in order; 0 workers means in this process.

    Nothing starts before the first result is asked for, and an error is that of its task.
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    return _results(function, tasks, workers)


def _results(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    shared = Parallel(n_jobs=max(workers, 1), return_as="generator")
    yield from shared(delayed(_on_one_thread)(function, task) for task in tasks)


def _on_one_thread(function: Callable[[Any], Any], task: object) -> object:
    """Call the function on one thread, as sums depend on how they are split: the same for any number of workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(threads)
