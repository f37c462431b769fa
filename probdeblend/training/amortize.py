"""Training of the joint guide: simulated blends to features once, then maximum likelihood on these.

The encoder is frozen, so that what it says of each blend is computed a single time; the hidden layers and the head then
learn from it in minutes.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._files import whole_file
from ..deblending.deblender import Deblender
from ..refinement.guide import JointGuide
from ..refinement.guides import save_guide
from ..refinement.model import BlendModel
from ..scene import seed_of
from ..simulation.prior import Prior
from .fit import History, Schedule, fit_tensors, held_out, training_record

__all__ = ["GuideLikelihood", "encoded_blends", "train_default_guide", "train_guide"]

CHUNK = 64
SETTINGS = {"hidden": 256, "dropout": 0.1}


class GuideLikelihood(nn.Module):
    """Negative log-likelihood of the unknowns of simulated blends, given features (forward KL).

    In training, a guide that learns its dropout adds what that costs a blend.

    Parameters
    ----------
    guide
        The guide.
    blends
        Number of blends that are learned from; infinite where none is seen twice.
    """

    def __init__(self, guide: JointGuide, *, blends: float = math.inf) -> None:
        super().__init__()
        self.guide = guide
        self.blends = blends

    def forward(self, features: Tensor, start: Tensor, unknown: Tensor) -> Tensor:
        """Return the loss a blend in nat.

        Parameters
        ----------
        features, start
            What the guide's ``encode`` returns.
        unknown
            True unknowns ``(blend, number)``.

        Returns
        -------
        Tensor
            Scalar.
        """
        distribution = self.guide.head.distribution(self.guide.numbers(features.float(), start))
        loss = -distribution.log_prob(unknown).mean()
        return loss + self.guide.readout.divergence() / self.blends if self.training else loss


def encoded_blends(
    guide: JointGuide, model: BlendModel, count: int, *, seed: int = 0, progress: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Simulate blends and encode them.

    Parameters
    ----------
    guide
        Its encoder is used.
    model
        What blends are drawn from.
    count
        Number of blends.
    seed
        Same seed, same blends.
    progress
        Show a progress bar.

    Returns
    -------
    features, start, unknown
        ``(blend, feature)`` in half precision, and ``(blend, number)`` twice.
    """
    parts = []
    for number in tqdm(range(math.ceil(count / CHUNK)), disable=not progress, desc="blends", unit="batch", leave=False):
        observed, unknown = model.simulate(min(CHUNK, count - number * CHUNK), seed=seed_of(seed, number))
        features, start = guide.encode(observed.image[:, None])
        parts.append((features.half(), start, unknown))
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def train_guide(
    guide: JointGuide,
    model: BlendModel,
    *,
    blends: int = 40_000,
    steps: int = 6000,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a guide on blends drawn from the model, a tenth of them to validate on.

    Parameters
    ----------
    guide
        The guide; it is left trained and in evaluation mode.
    model
        The generative model.
    blends
        Number of blends that are drawn.
    steps, batch_size
        Number of batches, and blends in each.
    seed
        Same seed, same guide.
    progress
        Show progress bars.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    ValueError
        If there are too few blends for two batches.
    """
    held = held_out(blends, batch_size)
    data = encoded_blends(guide, model, blends, seed=seed, progress=progress)
    guide.readout.normalize(data[0][held:].float())
    schedule = Schedule(steps, learning_rate=1e-3, validate_every=max(1, steps // 20))
    sampling = {"batch_size": batch_size, "seed": seed, "progress": progress}
    return fit_tensors(GuideLikelihood(guide, blends=blends - held), data, schedule=schedule, **sampling)


def train_default_guide(
    deblender: Deblender,
    output: Path,
    *,
    blends: int = 100_000,
    steps: int = 12_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> History:
    """Train a guide on the encoder of weights, and write its file.

    Parameters
    ----------
    deblender
        Trained weights.
    output
        The guide's file.
    blends
        Number of blends that are drawn from the model.
    steps
        Number of batches.
    seed
        Same seed, same guide.
    overwrite
        Whether a file that exists may be replaced.
    progress
        Show progress bars.

    Returns
    -------
    History
        The losses.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be replaced.
    ValueError
        If there are too few blends.
    """
    model = BlendModel(Prior.default(), deblender.instrument)
    with whole_file(output, overwrite=overwrite) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale, **SETTINGS)
        history = train_guide(guide, model, blends=blends, steps=steps, seed=seed, progress=progress)
        described = training_record(history, command="train-guide", blends=blends, seed=seed)
        save_guide(guide, deblender, temporary, training=described)
    return history
