"""One visible training loop for every loss and every source of batches."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from astropy.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import __version__
from .._files import unfinished_folder, whole_file

__all__ = ["History", "Schedule", "fit", "training_record", "unfinished_run"]

Batches = Callable[[int], Iterable[tuple[Tensor, ...]]]
WARM_UP = 0.05  # fraction of the steps


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The learning rate rises linearly to `learning_rate` over the first 5 % of the steps, then falls as half a cosine
    to zero. Training validates every `validate_every` steps and ends after `patience` validations without a better
    one; `weight_decay` is that of AdamW, `clip` the largest norm of the gradient.
    """

    steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    validate_every: int = 250
    patience: int = 10
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "validate_every", "patience", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def factor(self, step: int) -> float:
        """Return the learning rate at a step over the largest one."""
        warm = max(1.0, WARM_UP * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, self.steps - warm))))


@dataclass
class History:
    """Losses by step: of training, as means since the last validation, and of validation."""

    step: int = 0
    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> float:
        """Lowest validation loss; infinite before the first."""
        return min((value for _, value in self.validation), default=math.inf)

    def table(self) -> Table:
        """Return one row per validation: ``step``, ``training`` and ``validation`` loss."""
        rows = {"step": [step for step, _ in self.validation]}
        rows |= {name: [loss for _, loss in getattr(self, name)] for name in ("training", "validation")}
        table = Table(rows, meta={"steps": self.step, "validation_loss": self.best})
        for name in ("training", "validation"):
            table[name].info.format = ".4f"
        return table


class _Run:
    """What training changes: the loss, its optimizer and learning rate, the history, and the best weights so far."""

    def __init__(self, loss: nn.Module, schedule: Schedule) -> None:
        self.loss = loss
        self.optimizer = torch.optim.AdamW(
            loss.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule.factor)
        self.history, self.best = History(), _copy(loss)

    def store(self, path: Path) -> None:
        """Write a checkpoint, with the states of the random generators."""
        state = {name: getattr(self, name).state_dict() for name in ("loss", "optimizer", "rates")}
        state |= {"best": self.best, "history": vars(self.history), "random": torch.get_rng_state()}
        state["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        with whole_file(path, overwrite=True) as temporary:
            torch.save(state, temporary)

    def restore(self, state: dict) -> None:
        """Return to a checkpoint; the random generators are left to the caller."""
        for name in ("loss", "optimizer", "rates"):
            getattr(self, name).load_state_dict(state[name])
        self.history, self.best = History(**state["history"]), state["best"]


def fit(
    loss: nn.Module,
    batches: Batches,
    validation: Sequence[Sequence[Tensor]],
    *,
    schedule: Schedule,
    checkpoint: Path | None = None,
    mixed: bool = True,
    progress: bool = True,
) -> History:
    """Minimize a loss; at the end its network holds the weights that validated best.

    ``loss(*batch)`` is the scalar to minimize; `batches`, called with the number of the first batch, returns the
    batches from there on. With a `checkpoint`, the state of training is written to that file at every validation, and
    read where it exists: training that is resumed equals training without interruption. `mixed` runs the network in
    bfloat16 with float32 weights.
    """
    if not validation:
        raise ValueError("validation must hold at least one batch, got none")
    loss.to(memory_format=torch.channels_last).train()
    run, state = _Run(loss, schedule), None
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        run.restore(state)
    history, running = run.history, []
    left = 0 if history.stopped_early else schedule.steps - history.step
    source = iter(batches(history.step))
    if state is not None:  # only now: a data loader draws its seed from the generator when it starts
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["cuda"])
    bar = tqdm(total=schedule.steps, initial=history.step, disable=not progress, desc="train", unit="batch")
    for batch in islice(source, left):
        running.append(_step(run, batch, schedule.clip, mixed=mixed))
        history.step += 1
        bar.update()
        if history.step % schedule.validate_every and history.step < schedule.steps:
            continue
        _validate(run, float(torch.stack(running).mean()), validation, mixed=mixed)
        running = []
        bar.set_postfix(training=f"{history.training[-1][1]:.3f}", validation=f"{history.validation[-1][1]:.3f}")
        history.stopped_early = _plateau(history, schedule.patience)
        if checkpoint is not None:
            run.store(checkpoint)
        if history.stopped_early:
            break
    bar.close()
    loss.load_state_dict(run.best)
    loss.eval()
    return history


def _forward(loss: nn.Module, batch: Sequence[Tensor], *, mixed: bool) -> Tensor:
    device = next(loss.parameters()).device
    moved = [part.to(device, non_blocking=True) for part in batch]
    if moved[0].ndim == 4:
        moved[0] = moved[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        return loss(*moved)


def _step(run: _Run, batch: Sequence[Tensor], clip: float, *, mixed: bool) -> Tensor:
    value = _forward(run.loss, batch, mixed=mixed)
    run.optimizer.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(run.loss.parameters(), clip)
    run.optimizer.step()
    run.rates.step()
    return value.detach()


def _validate(run: _Run, training: float, batches: Sequence[Sequence[Tensor]], *, mixed: bool) -> None:
    """Add the training loss and the mean validation loss to the history; keep the weights if they are the best."""
    loss, history = run.loss, run.history
    loss.eval()
    with torch.no_grad():
        values = [float(_forward(loss, batch, mixed=mixed)) for batch in batches]
    loss.train()
    score = sum(values) / len(values)
    if not math.isfinite(score) or not math.isfinite(training):
        raise ValueError(f"loss must stay finite, got {score} at step {history.step}: lower the learning rate")
    if score < history.best:
        run.best = _copy(loss)
    history.training.append((history.step, training))
    history.validation.append((history.step, score))


def _copy(loss: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loss.state_dict().items()}


def _plateau(history: History, patience: int) -> bool:
    scores = [value for _, value in history.validation]
    return len(scores) - 1 - scores.index(min(scores)) >= patience


@contextmanager
def unfinished_run(
    output: Path, settings: dict[str, object], *, seed: int, resume: bool, overwrite: bool
) -> Iterator[tuple[Path, Path]]:
    """Give a run its folder of finished parts, a temporary output and a seeded generator; clean up when it is done."""
    kept = unfinished_folder(output, settings, resume=resume, overwrite=overwrite)
    devices = range(torch.cuda.device_count())
    with whole_file(output, overwrite=overwrite) as temporary, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield kept, temporary
    shutil.rmtree(kept)


def training_record(history: History, settings: dict[str, object]) -> dict[str, object]:
    """Return what a file states about the training of its network."""
    made = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__}
    return made | settings | {"steps_done": history.step, "validation_loss": round(history.best, 4)}
