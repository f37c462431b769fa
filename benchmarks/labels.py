"""The first study of blends with a fully convolutional network: four labels of pixels, trained on 50,000 pairs.

The labels are background, central galaxy alone (first), companion alone (second), and overlap of the two. They are
learned from pairs of single Sérsic profiles, the central galaxy in the middle and the companion at the published
separations, and scored by the intersection over union of each label on the last tenth of the set.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option
from benchmarks.boucaud2020.pairs import Pairs, make_pairs
from probdeblend.networks.published import LABELS, FullyConvolutional
from probdeblend.simulation.light import SimulatedSources
from probdeblend.training.fit import Schedule, fit

__all__ = ["LabelEntropy", "confusion", "labels", "labels_table", "main", "train_labels"]

TEST_SHARE = 0.1  # and as many to validate on
VALIDATION_PAIRS = 512
CHUNK = 64


@benchmark("labels")
@sized_option("--pairs", 64, 50_000, help="Pairs of the set.", least=20)
@sized_option("--steps", 10, 5000, help="Number of batches.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pairs per batch.")
def main(run: Run, pairs: int, steps: int, batch_size: int) -> None:
    """Train a fully convolutional network to label the pixels of background, each galaxy of a pair, and overlap.

    One row per true label: the intersection over union `iou`, its fraction of all `pixels`, and the fractions of its
    pixels that the network assigns to each label. First is the central galaxy, in the middle of the image, second the
    companion.
    """
    sources = SimulatedSources(smooth=True)
    with run.unfinished(pairs=pairs, steps=steps, batch_size=batch_size) as kept:
        data = make_pairs(kept, "pairs", pairs, seed=run.seed, sources=sources, skies=1)
        network = train_labels(data, steps=steps, batch_size=batch_size, seed=run.seed, kept=kept)
        run.write(labels_table(confusion(network, data, start=int((1 - TEST_SHARE) * len(data)))))


class _Batches(IterableDataset):
    """Endless batches of images and masks of the first pairs of a set; batch i depends on the seed and on i alone."""

    def __init__(self, data: Pairs, stop: int, *, batch_size: int, seed: int, first: int) -> None:
        self.data, self.stop, self.batch_size, self.seed, self.first = data, stop, batch_size, seed, first

    def __iter__(self) -> object:
        number = self.first
        while True:
            rng = np.random.default_rng((self.seed, number))
            yield _batch(self.data, np.sort(rng.integers(self.stop, size=self.batch_size)))
            number += 1


def _batch(data: Pairs, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.from_numpy(data.image[rows].astype(np.float32))
    return image, torch.from_numpy(data.flux[rows]), torch.from_numpy(data.mask[rows])


def labels(mask: Tensor) -> Tensor:
    """Return the label of every pixel ``(scene, y, x)`` from the masks of two galaxies ``(scene, 2, y, x)``."""
    return mask[:, 0].long() + 2 * mask[:, 1].long()


class LabelEntropy(nn.Module):
    """Cross-entropy in nats of the four labels, mean over pixels, of a network that returns their logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, _: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of a batch of images, fluxes and masks."""
        return cross_entropy(self.network(image).float(), labels(mask))


def train_labels(data: Pairs, *, steps: int, batch_size: int, seed: int, kept: Path | None = None) -> nn.Module:
    """Train a network on the first eight tenths of a set, with a checkpoint in the folder `kept`."""
    stop, test = int((1 - 2 * TEST_SHARE) * len(data)), int((1 - TEST_SHARE) * len(data))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FullyConvolutional(first_filters=32, dropout=0.1)

        def batches(first: int) -> DataLoader:
            return DataLoader(_Batches(data, stop, batch_size=batch_size, seed=seed, first=first), batch_size=None)

        held_out = np.arange(stop, min(stop + VALIDATION_PAIRS, test))
        validation = [
            _batch(data, rows) for rows in np.array_split(held_out, max(1, len(held_out) // batch_size)) if len(rows)
        ]
        schedule = Schedule(steps, validate_every=min(500, steps))
        fit(
            LabelEntropy(network),
            batches,
            validation,
            schedule=schedule,
            checkpoint=kept and kept / "labels.checkpoint",
        )
    return network.eval()


def confusion(network: nn.Module, data: Pairs, *, start: int = 0) -> NDArray[np.int64]:
    """Count the pixels of a set, from one of its pairs on, by true (row) and estimated (column) label."""
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    for low in tqdm(range(start, len(data), CHUNK), desc="labels", unit="chunk", leave=False):
        image, _, mask = _batch(data, slice(low, low + CHUNK))
        with torch.no_grad():
            estimate = network(image).argmax(1)
        counts += confusion_matrix(labels(mask).flatten(), estimate.flatten(), labels=range(len(LABELS)))
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


if __name__ == "__main__":
    main()
