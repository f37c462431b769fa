"""Training: one visible loop for every loss and every source of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..scene import seed_of

__all__ = ["History", "Schedule", "checkpoint_beside", "fit", "fit_tensors", "held_out", "training_record"]

Batches = Callable[[int], Iterable[tuple[Tensor, ...]]]
_WARM_UP = 0.05
_VALIDATION_ROWS = 1024


def checkpoint_beside(output: Path, *, replace: bool) -> Path:
    """Return where the checkpoint of weights to be trained stands.

    Parameters
    ----------
    output
        The weights file.
    replace
        Whether a checkpoint that is there may be gone on from, or replaced.

    Returns
    -------
    Path
        The output with ``.checkpoint`` appended.

    Raises
    ------
    FileExistsError
        If it is there and is not to be touched.
    """
    checkpoint = output.with_name(output.name + ".checkpoint")
    if checkpoint.exists() and not replace:
        raise FileExistsError(f"{checkpoint}: exists; resume goes on from it, overwrite starts anew")
    return checkpoint


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Parameters
    ----------
    steps
        Number of batches.
    learning_rate
        Largest learning rate: reached linearly over the first 5 % of the steps, then a half cosine down to zero.
    weight_decay
        Decoupled weight decay (AdamW).
    validate_every
        Steps between validations, and between checkpoints.
    patience
        Stop after so many validations without a better one.
    clip
        Largest norm of the gradient.

    Raises
    ------
    ValueError
        If a number is not positive.
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
        """Return the learning rate at a step over the largest one.

        Parameters
        ----------
        step
            Number of the step.

        Returns
        -------
        float
            Between 0 and 1.
        """
        warm = max(1.0, _WARM_UP * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, self.steps - warm))))


@dataclass
class History:
    """What happened during training.

    Parameters
    ----------
    step
        Steps done.
    training, validation
        Pairs (step, loss): means since the last validation, and on the validation batches.
    stopped_early
        Whether the plateau was reached before the last step.
    """

    step: int = 0
    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> float:
        """Lowest validation loss; infinite before the first."""
        return min((value for _, value in self.validation), default=math.inf)


def _forward(loss: nn.Module, batch: Sequence[Tensor], *, mixed: bool) -> Tensor:
    device = next(loss.parameters()).device
    moved = [part.to(device, non_blocking=True) for part in batch]
    if moved[0].ndim == 4:
        moved[0] = moved[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        return loss(*moved)


def _validate(loss: nn.Module, batches: Sequence[Sequence[Tensor]], *, mixed: bool) -> float:
    loss.eval()
    with torch.no_grad():
        values = [float(_forward(loss, batch, mixed=mixed)) for batch in batches]
    loss.train()
    return sum(values) / len(values)


def fit(
    loss: nn.Module,
    batches: Batches,
    validation: Sequence[Sequence[Tensor]],
    *,
    schedule: Schedule,
    checkpoint: Path | None = None,
    resume: bool = False,
    mixed: bool = True,
    progress: bool = True,
) -> History:
    """Train a loss's network; at the end it holds the weights that validated best.

    Interrupted training goes on exactly where its last checkpoint stood.

    Parameters
    ----------
    loss
        Module whose ``forward(*batch)`` is the scalar to minimize.
    batches
        Called with the number of the first batch, returns the batches from there on.
    validation
        Batches to validate on.
    schedule
        How long and how fast.
    checkpoint
        File that holds the state of training; none is written if None.
    resume
        Go on from the checkpoint.
    mixed
        Run the network in bfloat16 with float32 weights.
    progress
        Show a progress bar.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    ValueError
        If there is no validation batch, nothing to resume from, a checkpoint of another run in the way, or the loss
        is no longer finite.
    """
    if not validation:
        raise ValueError("validation must hold at least one batch, got none")
    if resume and (checkpoint is None or not checkpoint.exists()):
        raise ValueError(f"checkpoint must exist to resume from, got {checkpoint}")
    loss.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    history, best = History(), _copy(loss)
    if resume:
        history, best = _restore(checkpoint, loss, optimizer, rates)
    running: list[Tensor] = []
    bar = tqdm(total=schedule.steps, initial=history.step, disable=not progress, desc="train", unit="batch")
    for batch in islice(batches(history.step), schedule.steps - history.step):
        value = _forward(loss, batch, mixed=mixed)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(loss.parameters(), schedule.clip)
        optimizer.step()
        rates.step()
        running.append(value.detach())
        history.step += 1
        bar.update()
        if history.step % schedule.validate_every and history.step < schedule.steps:
            continue
        history.training.append((history.step, float(torch.stack(running).mean())))
        running = []
        score = _validate(loss, validation, mixed=mixed)
        if not math.isfinite(score) or not math.isfinite(history.training[-1][1]):
            raise ValueError(f"loss must stay finite, got {score} at step {history.step}: lower the learning rate")
        best = _copy(loss) if score < history.best else best
        history.validation.append((history.step, score))
        bar.set_postfix(training=f"{history.training[-1][1]:.3f}", validation=f"{score:.3f}")
        history.stopped_early = _plateau(history, schedule.patience)
        if checkpoint is not None:
            _store(checkpoint, loss, optimizer, rates, history=history, best=best)
        if history.stopped_early:
            break
    bar.close()
    loss.load_state_dict(best)
    loss.eval()
    return history


def held_out(blends: int, batch_size: int) -> int:
    """Return how many of a number of blends to validate on: a tenth.

    Parameters
    ----------
    blends
        Number of blends.
    batch_size
        Blends a batch.

    Returns
    -------
    int
        The number.

    Raises
    ------
    ValueError
        If what is left is less than a batch, or there is none to validate on.
    """
    count = blends // 10
    if count < 1 or blends - count < batch_size:
        raise ValueError(f"blends must be enough for a batch of {batch_size} and a tenth to validate on, got {blends}")
    return count


def fit_tensors(
    loss: nn.Module,
    data: Sequence[Tensor],
    *,
    schedule: Schedule,
    batch_size: int,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train on tensors that are in memory, the first tenth of which validates.

    Parameters
    ----------
    loss
        Module whose ``forward(*batch)`` is the scalar to minimize.
    data
        Arguments of the loss, a row a blend.
    schedule
        How long and how fast.
    batch_size
        Rows a batch, drawn anew for each.
    seed
        Seed of the batches and of dropout.
    progress
        Show a progress bar.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    ValueError
        If there are too few rows.
    """
    first = held_out(len(data[0]), batch_size)
    training, validation = ([part[rows] for part in data] for rows in (slice(first, None), slice(first)))

    def batches(start: int) -> Iterator[tuple[Tensor, ...]]:
        """Draw batches by their number."""
        for number in range(start, schedule.steps):
            generator = torch.Generator().manual_seed(seed_of(seed, 0, number))
            rows = torch.randint(len(training[0]), (batch_size,), generator=generator)
            yield tuple(part[rows] for part in training)

    parts = list(zip(*(part.split(_VALIDATION_ROWS) for part in validation), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, 1))
        return fit(loss, batches, parts, schedule=schedule, mixed=False, progress=progress)


def _copy(loss: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in loss.state_dict().items()}


def _plateau(history: History, patience: int) -> bool:
    scores = [value for _, value in history.validation]
    return len(scores) - 1 - scores.index(min(scores)) >= patience


def _store(
    path: Path,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LRScheduler,
    *,
    history: History,
    best: dict[str, Tensor],
) -> None:
    state = {
        "loss": loss.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rates": rates.state_dict(),
        "best": best,
        "history": vars(history),
        "random": torch.get_rng_state(),
    }
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    path: Path,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LRScheduler,
) -> tuple[History, dict[str, Tensor]]:
    try:
        state = torch.load(path, weights_only=True)
        loss.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
    except Exception as error:
        raise ValueError(f"checkpoint must come from a run with the same settings, got {path}: {error}") from None
    torch.set_rng_state(state["random"])
    return History(**state["history"]), state["best"]


def training_record(history: History, *, command: str, blends: int, seed: int) -> dict[str, object]:
    """Say how a network was trained.

    Parameters
    ----------
    history
        Its losses.
    command
        The command of ``probdeblend`` that trained it.
    blends, seed
        Number of blends that it was trained on, and the seed.

    Returns
    -------
    dict
        Numbers and words by name.

    Raises
    ------
    ValueError
        If the loss is not finite.
    """
    if not math.isfinite(history.best):
        raise ValueError(f"loss must stay finite, got {history.best}")
    record = {"blends": blends, "steps": history.step, "seed": seed, "torch": torch.__version__}
    return record | {"command": f"probdeblend {command}", "validation_loss": round(history.best, 4)}
