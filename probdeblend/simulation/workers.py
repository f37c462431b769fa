"""Work shared out among processes, with results in order and no more of them in memory than are being made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["in_order"]


class _Results(Dataset):
    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self.function, self.tasks = function, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> object:
        # One thread, as workers have: sums depend on how they are split.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.function(self.tasks[number])
        except Exception as error:  # a worker would wrap it; it is raised again by whom it concerns
            return _Failure(error)
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Failure:
    error: Exception


def in_order(function: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int = 0) -> Iterator[Any]:
    """Apply a function to each task and yield the results in the order of the tasks.

    Parameters
    ----------
    function
        What to do; it must give the same result in every process.
    tasks
        Its arguments.
    workers
        Number of processes; 0 works in this one. Each worker is at most two results ahead.

    Returns
    -------
    iterator
        A result a task.

    Raises
    ------
    ValueError
        If the number of workers is negative.
    """
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    results = _Results(function, tasks)
    # A generator of its own: a loader draws a seed for its workers, by default from the global one.
    settings = {"batch_size": None, "collate_fn": _unchanged, "generator": torch.Generator()}
    return _each(DataLoader(results, num_workers=workers, **settings))


def _each(loader: DataLoader) -> Iterator[Any]:
    """Start the workers when the first result is asked for, not before."""
    for result in loader:
        if isinstance(result, _Failure):
            raise result.error
        yield result


def _unchanged(result: object) -> object:
    return result
