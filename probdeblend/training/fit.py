"""The training loop, shared by all losses and sources of batches."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from astropy.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._files import whole_bytes
from ..scene import check_positive

__all__ = ["History", "Schedule", "fit"]

WARM_UP = 0.05  # fraction of the steps
CLIP = 5.0  # largest norm of the gradient


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    The learning rate rises linearly to `learning_rate` over the first 5 % of the steps, then falls as half a cosine
    to zero. Training validates every `validate_every` steps; `weight_decay` is that of AdamW.
    """

    steps: int
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    validate_every: int = 250

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, learning_rate=self.learning_rate, validate_every=self.validate_every)

    def rate(self, step: int) -> float:
        """Return the learning rate at a step."""
        warm = max(1.0, WARM_UP * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        along = min(1.0, (step - warm) / max(1.0, self.steps - warm))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * along))


@dataclass
class History:
    """Number of steps, and one row per validation: `step`, mean `training` loss, `validation` loss and its parts.

    `skipped` is the number of batches whose gradient was not finite.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0

    @property
    def best(self) -> float:
        """Lowest validation loss; infinite before the first."""
        return min((row["validation"] for row in self.rows), default=math.inf)

    def table(self) -> Table:
        """Return the rows as a table; its metadata has the number of ``steps`` and the best ``validation_loss``."""
        table = Table(self.rows, meta={"steps": self.step, "validation_loss": self.best})
        for name in table.colnames[1:]:
            table[name].info.format = ".4f"
        return table


def fit(
    loss: nn.Module,
    batches: Callable[[int], Iterable[tuple[Tensor, ...]]],
    validation: Sequence[Sequence[Tensor]],
    *,
    schedule: Schedule,
    checkpoint: Path | None = None,
) -> History:
    """Minimize a loss; at the end its network holds the weights that validated best.

    ``loss(*batch)`` is the scalar to minimize; `batches`, called with the number of the first batch, returns the
    batches from there on. A loss may state its terms at the latest call as a dictionary `parts`. With a `checkpoint`,
    the state of training is written to that file at every validation, and read where it exists: training that is
    resumed equals training without interruption. The network runs in bfloat16 with float32 weights.
    """
    if not validation:
        raise ValueError("validation must hold at least one batch, got none")
    loss.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(loss.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    history, best, state, running = History(), loss.state_dict(), None, []
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        loss.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        history, best = History(**state["history"]), state["best"]
    source = iter(batches(history.step))
    if state is not None:  # only now: a data loader draws its seed from the generator when it starts
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["cuda"])
    with tqdm(total=schedule.steps, initial=history.step, desc="train", unit="batch") as bar:
        for batch in islice(source, schedule.steps - history.step):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(history.step)
            value = _step(loss, batch, optimizer)
            running += [] if value is None else [value]
            history.skipped += value is None
            history.step += 1
            bar.update()
            if history.step % schedule.validate_every and history.step < schedule.steps:
                continue
            if _validated(loss, validation, history, running):
                best = {name: value.detach().clone() for name, value in loss.state_dict().items()}
            running = []
            losses = (f"{name} {value:.4f}" for name, value in history.rows[-1].items() if name != "step")
            bar.write(f"step {history.step}: {', '.join(losses)}")
            if checkpoint is not None:
                stored = {"loss": loss.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
                stored |= {"history": vars(history), "random": torch.get_rng_state()}
                stored["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
                with whole_bytes(checkpoint, overwrite=True) as file:
                    torch.save(stored, file)
    loss.load_state_dict(best)
    loss.eval()
    return history


def _step(loss: nn.Module, batch: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Follow the gradient of a batch and return its loss; None if the gradient is not finite, and leads nowhere."""
    value = _forward(loss, batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if not torch.isfinite(nn.utils.clip_grad_norm_(loss.parameters(), CLIP)):
        return None
    optimizer.step()
    return value.detach()


def _forward(loss: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    device = next(loss.parameters()).device
    moved = [part.to(device, non_blocking=True) for part in batch]
    if moved[0].ndim == 4:
        moved[0] = moved[0].contiguous(memory_format=torch.channels_last)
    torch.clear_autocast_cache()  # inside the caller's autocast, it would keep the weights of the first step
    with torch.autocast(device.type, torch.bfloat16):
        return loss(*moved)


def _validated(loss: nn.Module, batches: Sequence[Sequence[Tensor]], history: History, running: list[Tensor]) -> bool:
    """Add the training loss and the mean validation loss to the history, and return whether it is the best so far."""
    training = float(torch.stack(running).mean()) if running else math.nan
    scores: list[dict[str, float]] = []
    loss.eval()
    with torch.no_grad():
        for batch in batches:
            scores.append({"validation": float(_forward(loss, batch))} | getattr(loss, "parts", {}))
    loss.train()
    own = {name: [score[name] for score in scores if name in score] for score in scores for name in score}
    mean = {name: sum(values) / len(values) for name, values in own.items()}  # batches without sources lack some terms
    if not math.isfinite(score := mean["validation"]) or not math.isfinite(training):
        raise ValueError(f"loss must stay finite, got {score} at step {history.step}: lower the learning rate")
    better = score < history.best
    history.rows.append({"step": history.step, "training": training} | mean)
    return better
