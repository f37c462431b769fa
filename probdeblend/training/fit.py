"""The training loop, shared by all losses and sources of batches."""

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
PATIENCE = 10  # validations without a better one
CLIP = 5.0  # largest norm of the gradient


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The learning rate rises linearly to `learning_rate` over the first 5 % of the steps, then falls as half a cosine
    to zero. Training validates every `validate_every` steps, and ends after ten validations without a better one;
    `weight_decay` is that of AdamW.
    """

    steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    validate_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "validate_every"):
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
        losses = {name: [loss for _, loss in getattr(self, name)] for name in ("training", "validation")}
        rows = {"step": [step for step, _ in self.validation]} | losses
        table = Table(rows, meta={"steps": self.step, "validation_loss": self.best})
        for name in losses:
            table[name].info.format = ".4f"
        return table


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
    optimizer = torch.optim.AdamW(loss.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    parts = {"loss": loss, "optimizer": optimizer, "rates": rates}
    history, best, state, running = History(), loss.state_dict(), None, []
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        history, best = History(**state["history"]), state["best"]
    source = iter(batches(history.step))
    if state is not None:  # only now: a data loader draws its seed from the generator when it starts
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["cuda"])
    bar = tqdm(total=schedule.steps, initial=history.step, disable=not progress, desc="train", unit="batch")
    for batch in islice(source, 0 if history.stopped_early else schedule.steps - history.step):
        value = _forward(loss, batch, mixed=mixed)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(loss.parameters(), CLIP)
        optimizer.step()
        rates.step()
        running.append(value.detach())
        history.step += 1
        bar.update()
        if history.step % schedule.validate_every and history.step < schedule.steps:
            continue
        if _validated(loss, validation, history, float(torch.stack(running).mean()), mixed=mixed):
            best = {name: value.detach().clone() for name, value in loss.state_dict().items()}
        running = []
        if checkpoint is not None:
            stored = {name: part.state_dict() for name, part in parts.items()}
            stored |= {"best": best, "history": vars(history), "random": torch.get_rng_state()}
            stored["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            with whole_file(checkpoint, overwrite=True) as temporary:
                torch.save(stored, temporary)
        if history.stopped_early:
            break
    bar.close()
    loss.load_state_dict(best)
    loss.eval()
    return history


def _forward(loss: nn.Module, batch: Sequence[Tensor], *, mixed: bool) -> Tensor:
    device = next(loss.parameters()).device
    moved = [part.to(device, non_blocking=True) for part in batch]
    if moved[0].ndim == 4:
        moved[0] = moved[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        return loss(*moved)


def _validated(
    loss: nn.Module, batches: Sequence[Sequence[Tensor]], history: History, training: float, *, mixed: bool
) -> bool:
    """Add the training loss and the mean validation loss to the history, and return whether it is the best so far."""
    loss.eval()
    with torch.no_grad():
        score = sum(float(_forward(loss, batch, mixed=mixed)) for batch in batches) / len(batches)
    loss.train()
    if not math.isfinite(score) or not math.isfinite(training):
        raise ValueError(f"loss must stay finite, got {score} at step {history.step}: lower the learning rate")
    better = score < history.best
    history.training.append((history.step, training))
    history.validation.append((history.step, score))
    scores = [score for _, score in history.validation]
    history.stopped_early = len(scores) - 1 - scores.index(min(scores)) >= PATIENCE
    return better


@contextmanager
def unfinished_run(
    output: Path, settings: dict[str, object], *, seed: int, resume: bool, overwrite: bool
) -> Iterator[tuple[Path, Path]]:
    """Give a run its folder of finished parts, a temporary output and a seeded generator.

    The folder is removed at the end; after an error it stays if any part is finished.
    """
    kept = unfinished_folder(output, settings, resume=resume, overwrite=overwrite)
    devices = range(torch.cuda.device_count())
    try:
        with whole_file(output, overwrite=overwrite) as temporary, torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield kept, temporary
    except BaseException:
        if all(part.name == "settings.json" for part in kept.iterdir()):
            shutil.rmtree(kept)
        raise
    shutil.rmtree(kept)


def training_record(history: History, settings: dict[str, object]) -> dict[str, object]:
    """Return what a file states about the training of its network."""
    made = {"command": "probdeblend train", "torch": torch.__version__, "probdeblend": __version__}
    return made | settings | {"steps_done": history.step, "validation_loss": round(history.best, 4)}
