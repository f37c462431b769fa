"""The first study of blends with a fully convolutional network: labels of pixels, trained on a stored set.

Four labels, background, first galaxy, second galaxy and overlap, are learned from Sérsic pairs whose first galaxy is
the central one, and scored by the intersection over union of each label on the last tenth of the set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option
from probdeblend.cli.options import FILE
from probdeblend.networks.fcn import LABELS, FullyConvolutional, labels
from probdeblend.networks.losses import LabelEntropy
from probdeblend.simulation.conditions import training_batch
from probdeblend.simulation.sets import count_blends, read_blends
from probdeblend.training.fit import Schedule, fit
from probdeblend.training.streams import StoredStream

__all__ = ["confusion", "labels_table", "main", "train_labels"]

TEST_SHARE = 0.1  # and as many to validate on
VALIDATION_BLENDS = 512
CHUNK = 64


def train_labels(data: Path, *, steps: int, batch_size: int, seed: int, kept: Path | None = None) -> FullyConvolutional:
    """Train a network on the first eight tenths of a set of pairs, with a checkpoint in the folder `kept`."""
    total = count_blends(data)
    stop, test = int((1 - 2 * TEST_SHARE) * total), int((1 - TEST_SHARE) * total)
    torch.manual_seed(seed)
    network = FullyConvolutional(first_filters=32, dropout=0.1).to("cuda" if torch.cuda.is_available() else "cpu")
    validation = read_blends(data, stop, min(stop + VALIDATION_BLENDS, test))

    def batches(first: int) -> DataLoader:
        stream = StoredStream(data, batch_size=batch_size, seed=seed, first=first, stop=stop)
        return DataLoader(stream, batch_size=None, num_workers=1)

    fit(
        LabelEntropy(network),
        batches,
        [training_batch(validation.select(part)) for part in torch.arange(len(validation)).split(batch_size)],
        schedule=Schedule(steps, validate_every=min(500, steps)),
        checkpoint=kept and kept / "labels.checkpoint",
    )
    return network.cpu()


def confusion(network: Callable[[torch.Tensor], torch.Tensor], data: Path, *, start: int = 0) -> NDArray[np.int64]:
    """Count the pixels of a set, from one of its blends on, by true (row) and estimated (column) label."""
    stop, names = count_blends(data), range(len(LABELS))
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    for low in tqdm(range(start, stop, CHUNK), desc="labels", unit="chunk"):
        batch = training_batch(read_blends(data, low, min(low + CHUNK, stop)))
        with torch.no_grad():
            estimate = network(batch.image).argmax(1)
        counts += confusion_matrix(labels(batch.mask).flatten(), estimate.flatten(), labels=names)
    return counts


def labels_table(counts: NDArray[np.int64]) -> Table:
    """Return one row per label: intersection over union, share of the true pixels, and where these were assigned."""
    hit, true, found = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        columns = {"label": LABELS, "iou": hit / (true + found - hit), "pixels": true / counts.sum()}
        columns |= {f"as_{name}": counts[:, i] / true for i, name in enumerate(LABELS)}
    table = Table(columns)
    for name in table.colnames[1:]:
        table[name].info.format = ".4f"
    return table


@benchmark("labels")
@click.argument("data", type=FILE)
@sized_option("--steps", 100, 5000, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Blends per batch.")
def main(run: Run, data: Path, steps: int, batch_size: int) -> None:
    """Train a fully convolutional network on DATA to label the pixels of background, each galaxy, and overlap.

    DATA is a set of pairs, such as `probdeblend simulate --smooth --separation anywhere` writes.
    """
    with run.unfinished(data=str(data.resolve()), steps=steps, batch_size=batch_size) as kept:
        network = train_labels(data, steps=steps, batch_size=batch_size, seed=run.seed, kept=kept)
        run.write(labels_table(confusion(network, data, start=int((1 - TEST_SHARE) * count_blends(data)))))


if __name__ == "__main__":
    main()
