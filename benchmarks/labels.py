"""The first study of blends with a fully convolutional network: labels of pixels, trained on a stored set.

Four labels, background, first galaxy, second galaxy and overlap, are learned from Sérsic pairs whose first galaxy is
the central one, and scored by the intersection over union of each label.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from probdeblend._files import whole_file
from probdeblend.metrics.pixels import label_iou
from probdeblend.networks.fcn import LABELS, FullyConvolutional, labels
from probdeblend.networks.losses import LabelEntropy
from probdeblend.simulation.conditions import training_batch
from probdeblend.simulation.sets import count_blends, read_blends
from probdeblend.training.fit import Schedule, checkpoint_beside, fit
from probdeblend.training.streams import StoredStream

__all__ = ["LabelScores", "evaluate_labels", "load_labels", "train_labels"]

FORMAT = "probdeblend labels"
VERSION = "1"
TEST_SHARE = 0.1
VALIDATION_BLENDS = 512
CHUNK = 64


@dataclass(frozen=True, eq=False)
class LabelScores:
    """How well labels are told.

    Parameters
    ----------
    iou
        Intersection over union of each of `LABELS`, over all pixels of the set.
    confusion
        Number of pixels by true (row) and estimated (column) label.
    """

    iou: NDArray[np.float64]
    confusion: NDArray[np.int64]

    def table(self) -> Table:
        """Return a row a label.

        Returns
        -------
        Table
            ``label``, ``iou``, ``pixels`` (share of the true pixels).
        """
        share = self.confusion.sum(1) / self.confusion.sum()
        return Table({"label": LABELS, "iou": np.round(self.iou, 4), "pixels": np.round(share, 5)})


def train_labels(
    data: Path,
    output: Path,
    *,
    steps: int = 5000,
    batch_size: int = 32,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> LabelScores:
    """Train a fully convolutional network on a set, score it on the set's last tenth, and write it.

    Parameters
    ----------
    data
        A set of pairs.
    output
        The weights file.
    steps, batch_size
        Number of batches, and of blends in each.
    seed
        Seed of the network and of the order of the blends.
    resume
        Go on from the checkpoint that an interrupted run left beside the output, with ``.checkpoint`` appended.
    overwrite
        Replace an existing output or checkpoint.
    progress
        Show progress bars.

    Returns
    -------
    LabelScores
        Scores on blends that training did not see.

    Raises
    ------
    ValueError
        If the set is too small, or there is nothing to resume.
    FileExistsError
        If the output, or a checkpoint that is not to be resumed, exists and is not to be replaced.
    """
    checkpoint = checkpoint_beside(output, replace=resume or overwrite)
    total = count_blends(data)
    stop = int((1 - 2 * TEST_SHARE) * total)
    settings = {"first_filters": 32, "dropout": 0.1}
    with whole_file(output, overwrite=overwrite) as temporary:
        torch.manual_seed(seed)
        network = FullyConvolutional(**settings).to("cuda" if torch.cuda.is_available() else "cpu")
        test = int((1 - TEST_SHARE) * total)
        validation = read_blends(data, stop, min(stop + VALIDATION_BLENDS, test))
        parts = torch.arange(len(validation)).split(batch_size)
        fit(
            LabelEntropy(network),
            lambda first: DataLoader(
                StoredStream(data, batch_size=batch_size, seed=seed, first=first, stop=stop),
                batch_size=None,
                num_workers=1,
            ),
            [training_batch(validation.select(part)) for part in parts],
            schedule=Schedule(steps, validate_every=min(500, steps)),
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
        )
        network.cpu()
        scores = evaluate_labels(network, data, start=test, progress=progress)
        training = {"data": data.name, "steps": steps, "batch_size": batch_size, "seed": seed}
        described = {"settings": settings, "training": training, "iou": scores.iou.tolist()}
        metadata = {"format": FORMAT, "version": VERSION, "description": json.dumps(described)}
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary, metadata)
    checkpoint.unlink(missing_ok=True)
    return scores


def load_labels(path: Path | str) -> FullyConvolutional:
    """Load a network that `train_labels` wrote.

    Parameters
    ----------
    path
        The weights file.

    Returns
    -------
    FullyConvolutional
        The network, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such file, of another version, or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise ValueError(f"{path}: not a label network that this version of probdeblend wrote")
            network = FullyConvolutional(**json.loads(metadata["description"])["settings"])
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged, or of other shapes") from error
    return network.eval()


def evaluate_labels(
    network: Callable[[torch.Tensor], torch.Tensor],
    data: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    progress: bool = True,
) -> LabelScores:
    """Score labels on a set.

    Parameters
    ----------
    network
        Image over sky noise to logits of the labels.
    data
        A set of pairs.
    start, stop
        Which of its blends.
    progress
        Show a progress bar.

    Returns
    -------
    LabelScores
        The scores.
    """
    stop = count_blends(data) if stop is None else stop
    confusion = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    for low in tqdm(range(start, stop, CHUNK), disable=not progress, desc="labels", unit="chunk"):
        batch = training_batch(read_blends(data, low, min(low + CHUNK, stop)))
        with torch.no_grad():
            estimate = network(batch.image).argmax(1)
        pair = len(LABELS) * labels(batch.mask) + estimate
        confusion += torch.bincount(pair.flatten(), minlength=confusion.size).reshape(confusion.shape).numpy()
    return LabelScores(label_iou(confusion), confusion)
